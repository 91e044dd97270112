"""simo-eval: one table for every stage, or for finished bundles."""

from pathlib import Path

import click

from simo_build.cli.ending import finish
from simo_build.cli.manners import in_one_process, polite
from simo_build.cli.options import (
    BUNDLES,
    STAGES,
    data_option,
    experts_option,
    json_option,
    out_option,
    recipe_option,
    split_option,
)


@click.command()
@recipe_option
@split_option
@json_option("the table, with hashes and versions")
@out_option
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
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=("fp32",),
    show_default=True,
    help="With --bundle: one that the bundle has; can be given several times.",
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
    precisions: tuple[str, ...],
    data: Path | None,
    experts: Path,
) -> None:
    """Measure a recipe, stage by stage, against its experts; the bundle runs in ONNX Runtime.

    Builds the bundle first if it is not there. With --bundle the recipe gives the data and the
    experts alone.
    """
    if bundles and (out is not None or controls):
        raise click.UsageError("--bundle measures what is finished; -o and --controls build.")
    if not bundles and precisions != ("fp32",):
        raise click.UsageError("--precision is of a finished bundle; give it with --bundle.")
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars
    from simo_build.report import study, study_bundles, table

    loaded = load_recipe(recipe, data=data, experts=experts)
    if bundles:
        found = study_bundles(
            loaded, bundles, split, stages=STAGES, progress=Bars(), precisions=precisions
        )
    else:
        target = out or BUNDLES / loaded.recipe.name
        found = study(loaded, target, split, progress=Bars(), with_controls=controls)
    finish(found, table(found), json_file)
