"""simo-merge: the merged encoder alone."""

from pathlib import Path

import click

from simo_build.cli.manners import in_one_process, polite
from simo_build.cli.options import BUNDLES, data_option, experts_option, recipe_option


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
    target = out or BUNDLES / f"{loaded.recipe.name}.safetensors"
    check_target(target)
    inputs = open_inputs(loaded)
    if inputs is None or not write_merged(loaded, inputs, target):
        # what needs a model, or images, takes timm and its seconds
        from simo_build.merging import merge_to
        from simo_build.progress import Bars

        merge_to(loaded, target, progress=Bars())
    click.echo(target)
