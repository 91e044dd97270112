"""The commands of the build side: simo-build, simo-merge, simo-train, simo-eval, simo-relate.

Heavy imports wait until a command runs, so that `--help` is instant.
"""

from collections.abc import Callable
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from simo_runtime.errors import SimoError, listing

Given = ParamSpec("Given")
Result = TypeVar("Result")

recipe_option = click.option(
    "--recipe", required=True, help="A recipe file, or the name of one that ships."
)
data_option = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="SIMO_DATA",
    show_envvar=True,
    help="What $DATA stands for in the recipe.",
)
experts_option = click.option(
    "--experts",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("experts"),
    show_default=True,
    help="Where trained experts are kept.",
)


def polite(command: Callable[Given, Result]) -> Callable[Given, Result]:
    """Turn errors that people can fix into one message and exit code 1, never a traceback."""

    @wraps(command)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return command(*args, **kwargs)
        except SimoError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:  # a full disk, a folder without permission
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            extra = "plot" if missing == "matplotlib" else "build"
            raise click.ClickException(
                f"this command needs {missing}: pip install 'simo-runtime[{extra}]'"
            ) from error

    return run


@click.command()
@recipe_option
@click.option("--task", required=True, help="The task to train, or `all`.")
@data_option
@experts_option
@polite
def train_command(recipe: str, task: str, data: Path | None, experts: Path) -> None:
    """Train the experts of a recipe: the head on the frozen encoder, then both.

    An expert that was trained with the same settings before is kept. Prints one file a line.
    """
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars
    from simo_build.train import train_expert

    loaded = load_recipe(recipe, data=data, experts=experts)
    for name in loaded.recipe.tasks if task == "all" else [task]:
        click.echo(train_expert(loaded, name, Bars()))


@click.command()
@recipe_option
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the bundle.  [default: bundles/<name of the recipe>]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what would be done, and what is missing for it; do nothing.",
)
@data_option
@experts_option
@polite
def build_command(
    recipe: str, out: Path | None, dry_run: bool, data: Path | None, experts: Path
) -> None:
    """Build a bundle: merge the experts of a recipe, re-align, fold, export and check.

    Finished stages are kept beside the bundle and skipped the next time. Prints the bundle's path.
    """
    from simo_build.build import build
    from simo_build.loading import load_recipe
    from simo_build.plan import plan
    from simo_build.progress import Bars

    loaded = load_recipe(recipe, data=data, experts=experts)
    target = out or Path("bundles") / loaded.recipe.name
    if not dry_run:
        click.echo(build(loaded, target, progress=Bars()).root)
        return
    planned = plan(loaded, target)
    click.echo("\n".join(planned.lines))
    if planned.faults:
        raise click.ClickException(f"this cannot be built yet:\n{listing(planned.faults)}")


@click.command()
@recipe_option
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the merged encoder.  [default: bundles/<name of the recipe>.safetensors]",
)
@data_option
@experts_option
@polite
def merge_command(recipe: str, out: Path | None, data: Path | None, experts: Path) -> None:
    """Merge the experts' encoders into one and write its weights as safetensors. Prints the file.

    The experts' heads stay as they are: simo-build re-aligns them and makes a bundle.
    """
    from simo_build.checkpoints import check_target
    from simo_build.loading import load_recipe
    from simo_build.streamed import open_inputs, write_merged

    loaded = load_recipe(recipe, data=data, experts=experts)
    target = out or Path("bundles") / f"{loaded.recipe.name}.safetensors"
    check_target(target)
    inputs = open_inputs(loaded)
    if inputs is None or not write_merged(loaded, inputs, target):
        # what needs a model, or images, takes timm and its seconds
        from simo_build.merging import merge_to
        from simo_build.progress import Bars

        merge_to(loaded, target, progress=Bars())
    click.echo(target)


@click.command()
@recipe_option
@click.option(
    "--split",
    type=click.Choice(["select", "test"]),
    default="select",
    show_default=True,
    help="Choose on `select`; measure `test` once nothing will be chosen any more.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the table, with hashes and versions, to this file.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the bundle.  [default: bundles/<name of the recipe>]",
)
@data_option
@experts_option
@polite
def eval_command(
    recipe: str,
    split: str,
    json_file: Path | None,
    out: Path | None,
    data: Path | None,
    experts: Path,
) -> None:
    """Measure a recipe, stage by stage, against its experts; the bundle runs in ONNX Runtime.

    Builds the bundle first if it is not there.
    """
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars
    from simo_build.report import study, table, write_json

    loaded = load_recipe(recipe, data=data, experts=experts)
    found = study(loaded, out or Path("bundles") / loaded.recipe.name, split, progress=Bars())
    click.echo(table(found))
    if json_file is not None:
        write_json(found, json_file)


PICTURES = (".png", ".svg", ".pdf")


def picture(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Refuse the name of a picture in a form that is not written."""
    if path is not None and path.suffix not in PICTURES:
        raise click.BadParameter(f"{path} must end in one of {', '.join(PICTURES)}.")
    return path


def numbers(_context: click.Context, _option: click.Parameter, text: str) -> list[float]:
    """Read numbers with commas between them, each once, in ascending order."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} must be numbers with commas between them.") from error
    if not all(map(isfinite, found)):
        raise click.BadParameter(f"{text!r} must be finite numbers.")
    if twice := [value for value in found if found.count(value) > 1]:
        raise click.BadParameter(f"{twice[0]:g} stands twice.")
    return sorted(found)


@click.command()
@recipe_option
@click.option(
    "--lambdas",
    default="-0.5,-0.25,0,0.25,0.5,0.75,1,1.25,1.5",
    show_default=True,
    callback=numbers,
    help="How far to move: 0 is the base, 1 the expert.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the curves, with hashes and versions, to this file.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=picture,
    help="Also draw the curves, one panel for each moved task (.png, .svg or .pdf).",
)
@data_option
@experts_option
@polite
def relate_command(
    recipe: str,
    lambdas: list[float],
    json_file: Path | None,
    plot_file: Path | None,
    data: Path | None,
    experts: Path,
) -> None:
    """Show how tasks are related: move from the base to one expert, and measure all tasks.

    On the select split, with the experts' heads. Points are kept beside bundles.
    """
    if plot_file is not None:
        from simo_build.plots import draw_relations, save  # what is missing is told before any work
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars
    from simo_build.relate import relate, table
    from simo_build.report import write_json

    loaded = load_recipe(recipe, data=data, experts=experts)
    found = relate(loaded, lambdas, Path("bundles") / ".stages", progress=Bars())
    click.echo(table(found))
    if json_file is not None:
        write_json(found, json_file)
    if plot_file is not None:
        save(draw_relations(found), plot_file)
