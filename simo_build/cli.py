"""The commands of the build side: simo-build, simo-merge, simo-train, simo-eval, and pictures of
what merging does: simo-relate, simo-scaling, simo-coefficients.

Heavy imports wait until a command runs, so that `--help` is instant.
"""

import os
from collections.abc import Callable, Mapping
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from simo_runtime.errors import SimoError, listing

if TYPE_CHECKING:
    from simo_build.loading import LoadedRecipe
    from simo_runtime.bundle import Bundle

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
tensorboard_option = click.option(
    "--tensorboard",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write loss, rate, metric and time of every epoch to this folder, for TensorBoard.",
)


def in_one_process(command: Callable[Given, Result]) -> Callable[Given, Result]:
    """Refuse a launcher of several processes: this command would do everything several times."""

    @wraps(command)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        refuse_several()
        return command(*args, **kwargs)

    return run


def refuse_several() -> None:
    """Refuse a launcher of several processes."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.ClickException(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but this runs in one process; simo-train "
            "without --search and simo-build are those that use several"
        )


# What installs a missing module.
EXTRAS = {"matplotlib": "plot", "optuna": "search", "tensorboard": "tensorboard"}


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
            extra = EXTRAS.get(missing, "build")
            raise click.ClickException(
                f"this command needs {missing}: pip install 'simo-runtime[{extra}]'"
            ) from error

    return run


@click.command()
@recipe_option
@click.option("--task", required=True, help="The task to train, `all`, or `joint`: one for all.")
@click.option(
    "--on",
    "role",
    type=click.Choice(["train", "realign"]),
    help="The split that `joint` learns from.  [default: train]",
)
@click.option(
    "--search",
    "trials",
    type=click.IntRange(min=1),
    metavar="N",
    help="Search the learning rates first, N trials for each phase.",
)
@tensorboard_option
@data_option
@experts_option
@polite
def train_command(
    recipe: str,
    task: str,
    role: str | None,
    trials: int | None,
    tensorboard: Path | None,
    data: Path | None,
    experts: Path,
) -> None:
    """Train the experts of a recipe: the head on the frozen encoder, then both.

    With --task joint, train one encoder and all heads together instead: what merging is compared
    with. What was trained with the same settings before is kept, and a training that was killed
    goes on. Prints one file a line. `accelerate launch --no_python simo-train ...` uses several
    GPUs.

    With --search, find the learning rates first, by the select split: prints all trials, the
    lines to copy into the recipe, and the file, which is what training with these lines gives.
    Trials are kept; a search that was killed goes on, and more trials go on from those.
    """
    if role is not None and task != "joint":
        raise click.UsageError("--on goes with --task joint: experts learn from `train`.")
    if trials is not None:
        refuse_several()
        from simo_build.search import search, table  # Optuna, if it is missing, is told of first
    from simo_build.loading import load_recipe
    from simo_build.multitask import train_multitask
    from simo_build.progress import Bars, Silent
    from simo_build.scalars import TensorBoard
    from simo_build.train import train_expert
    from simo_build.workers import workers

    main = workers().main
    progress = Bars() if main else Silent()
    loaded = load_recipe(recipe, data=data, experts=experts)
    scalars = TensorBoard(tensorboard) if tensorboard is not None and main else None
    for name in loaded.recipe.tasks if task == "all" else [task]:
        if trials is not None:
            found = search(loaded, name, trials, progress, role=role or "train")
            click.echo(f"{table(found)}\n\n{found.path}")
            continue
        path = (
            train_multitask(loaded, role or "train", progress, scalars)
            if name == "joint"
            else train_expert(loaded, name, progress, scalars)
        )
        if main:
            click.echo(path)


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
@click.option(
    "--with-experts",
    is_flag=True,
    help="Also write a bundle of every expert to <out>.experts, which simo-bench compares with.",
)
@tensorboard_option
@click.option(
    "--engines",
    is_flag=True,
    help="Also build the bundle's TensorRT engines for this machine, as simo-engines does.",
)
@click.option(
    "--add-task",
    metavar="NAME",
    help="Add one task of the recipe to the finished bundle; all else in it stays.",
)
@data_option
@experts_option
@polite
def build_command(
    recipe: str,
    out: Path | None,
    dry_run: bool,
    with_experts: bool,
    tensorboard: Path | None,
    engines: bool,
    add_task: str | None,
    data: Path | None,
    experts: Path,
) -> None:
    """Build a bundle: merge the experts of a recipe, re-align, fold, export and check.

    Finished stages are kept beside the bundle and skipped the next time. Prints the bundle's path.
    """
    if dry_run and tensorboard is not None:
        raise click.UsageError("--tensorboard writes what happens; with --dry-run nothing does.")
    if engines:
        refuse_no_tensorrt()
    if add_task is not None:
        refuse_beside_add_task(
            {"dry-run": dry_run, "with-experts": with_experts, "tensorboard": tensorboard}
        )
        click.echo(added_to(recipe, add_task, out, data, experts, engines=engines))
        return
    from simo_build.build import build
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars, Silent
    from simo_build.scalars import TensorBoard
    from simo_build.workers import workers

    main = workers().main
    loaded = load_recipe(recipe, data=data, experts=experts)
    target = out or Path("bundles") / loaded.recipe.name
    if dry_run:
        tell_plan(loaded, target, with_experts=with_experts)
        return
    scalars = TensorBoard(tensorboard) if tensorboard is not None and main else None
    bundle = build(loaded, target, progress=Bars() if main else Silent(), scalars=scalars)
    if main:
        click.echo(bundle.root)
        beside(loaded, bundle, with_experts=with_experts, engines=engines)


def tell_plan(loaded: "LoadedRecipe", target: Path, *, with_experts: bool) -> None:
    """Print what a build would do; exit code 1 and the faults where something is missing."""
    from simo_build.plan import many, plan
    from simo_build.singles import experts_folder

    refuse_several()
    planned = plan(loaded, target)
    click.echo("\n".join(planned.lines))
    if with_experts:
        count = many(len(loaded.recipe.tasks), "bundle")
        click.echo(f"4 experts {count} of an expert to {experts_folder(target)}")
    if planned.faults:
        raise click.ClickException(f"this cannot be built yet:\n{listing(planned.faults)}")


def beside(loaded: "LoadedRecipe", bundle: "Bundle", *, with_experts: bool, engines: bool) -> None:
    """Make what is wanted beside a bundle, and print where it is."""
    if with_experts:
        from simo_build.progress import Bars
        from simo_build.singles import build_experts

        for one in build_experts(loaded, bundle.root, progress=Bars()).values():
            click.echo(one.root)
    if engines:
        build_engines(bundle)


def refuse_beside_add_task(options: Mapping[str, object]) -> None:
    """Refuse what has no effect where one task is added, and several processes."""
    given = [name for name, value in options.items() if value]
    if given:
        raise click.UsageError(f"--{given[0]} has no effect with --add-task.")
    refuse_several()


def refuse_no_tensorrt() -> None:
    """Say before any work that engines cannot be built here."""
    from simo_engines.availability import why_not

    reason = why_not()
    if reason is not None:
        raise click.ClickException(f"--engines: {reason}")


def build_engines(bundle: "Bundle") -> None:
    """Build all engines of a bundle, with the options that simo-engines has by itself."""
    from simo_engines.cli import build, choose
    from simo_runtime.engines import EngineOptions

    for line in build(bundle, list(choose(bundle, None, None)), options=EngineOptions()):
        click.echo(line)


def added_to(
    recipe: str, task: str, out: Path | None, data: Path | None, experts: Path, *, engines: bool
) -> Path:
    """Add a task to a finished bundle, and give its path."""
    from simo_build.addition import add_task
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars

    loaded = load_recipe(recipe, data=data, experts=experts)
    target = out or Path("bundles") / loaded.recipe.name
    bundle = add_task(loaded, task, target, progress=Bars())
    if engines:
        build_engines(bundle)
    return bundle.root


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
@in_one_process
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
@click.option(
    "--controls",
    is_flag=True,
    help="Also measure what shows what each part is worth, as heads re-aligned to an average.",
)
@click.option(
    "--bundle",
    "bundles",
    type=click.Path(file_okay=False, path_type=Path),
    multiple=True,
    help="Measure this finished bundle and build nothing; several are compared with the first.",
)
@data_option
@experts_option
@polite
@in_one_process
def eval_command(
    recipe: str,
    split: str,
    json_file: Path | None,
    out: Path | None,
    controls: bool,
    bundles: tuple[Path, ...],
    data: Path | None,
    experts: Path,
) -> None:
    """Measure a recipe, stage by stage, against its experts; the bundle runs in ONNX Runtime.

    Builds the bundle first if it is not there. With --bundle the recipe gives the data and the
    experts alone.
    """
    if bundles and (out is not None or controls):
        raise click.UsageError("--bundle measures what is finished; -o and --controls build.")
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars
    from simo_build.report import study, study_bundles, table, write_json

    loaded = load_recipe(recipe, data=data, experts=experts)
    if bundles:
        stages = Path("bundles") / ".stages"
        found = study_bundles(loaded, bundles, split, stages=stages, progress=Bars())
    else:
        target = out or Path("bundles") / loaded.recipe.name
        found = study(loaded, target, split, progress=Bars(), with_controls=controls)
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
@in_one_process
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


@click.command()
@recipe_option
@click.option(
    "--realign",
    "realigned",
    is_flag=True,
    help="Also run the recipe's re-alignment steps on every subset.",
)
@click.option(
    "--subsets",
    "most",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="How many subsets of every size at most; where there are more, they are drawn.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of drawing."
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write every subset, with hashes and versions, to this file.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=picture,
    help="Also draw performance against the number of experts (.png, .svg or .pdf).",
)
@data_option
@experts_option
@polite
def scaling_command(
    recipe: str,
    realigned: bool,
    most: int,
    seed: int,
    json_file: Path | None,
    plot_file: Path | None,
    data: Path | None,
    experts: Path,
) -> None:
    """Show what merging costs as there are more experts: merge subsets of them, and measure.

    Every subset is merged as the recipe says, and measured on its own tasks, on the select split,
    with the experts' heads. Subsets are kept beside bundles.
    """
    if plot_file is not None:
        from simo_build.plots import draw_scaling, save  # what is missing is told before any work
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars
    from simo_build.report import write_json
    from simo_build.scaling import scaling, table

    loaded, stages = load_recipe(recipe, data=data, experts=experts), Path("bundles") / ".stages"
    found = scaling(loaded, stages, most=most, seed=seed, realigned=realigned, progress=Bars())
    click.echo(table(found))
    if json_file is not None:
        write_json(found, json_file)
    if plot_file is not None:
        save(draw_scaling(found), plot_file)


@click.command()
@recipe_option
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the table, with hashes and versions, to this file.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=picture,
    help="Also draw them, one panel for each kind of layer (.png, .svg or .pdf).",
)
@data_option
@experts_option
@polite
def coefficients_command(
    recipe: str,
    json_file: Path | None,
    plot_file: Path | None,
    data: Path | None,
    experts: Path,
) -> None:
    """Show the coefficients that a recipe learns, by block and kind of layer, for every task.

    By a learned merging method, steps `tint`, or both. Finished stages are kept beside bundles.
    """
    if plot_file is not None:
        from simo_build.plots import draw_coefficients, save  # what is missing is told before work
    from simo_build.coefficients import coefficients, table
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars
    from simo_build.report import write_json

    loaded = load_recipe(recipe, data=data, experts=experts)
    found = coefficients(loaded, Path("bundles") / ".stages", progress=Bars())
    click.echo(table(found))
    if json_file is not None:
        write_json(found, json_file)
    if plot_file is not None:
        save(draw_coefficients(found), plot_file)
