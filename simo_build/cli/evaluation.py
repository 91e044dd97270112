"""simo-eval: one table for every stage, or for finished bundles."""

from pathlib import Path

import click

from simo_build.cli.manners import in_one_process, polite
from simo_build.cli.options import data_option, experts_option, recipe_option


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
