"""Tables and pictures of what merging does: simo-relate, simo-scaling, simo-coefficients."""

from pathlib import Path

import click

from simo_build.cli.ending import finish
from simo_build.cli.manners import in_one_process, polite
from simo_build.cli.options import (
    STAGES,
    data_option,
    experts_option,
    json_option,
    numbers,
    plot_option,
    recipe_option,
)


@click.command()
@recipe_option
@click.option(
    "--lambdas",
    default="-0.5,-0.25,0,0.25,0.5,0.75,1,1.25,1.5",
    show_default=True,
    callback=numbers,
    help="How far to move: 0 is the base, 1 the expert.",
)
@json_option("the curves, with hashes and versions")
@plot_option("the curves, one panel for each moved task")
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
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars
    from simo_build.relate import relate, table

    loaded = load_recipe(recipe, data=data, experts=experts)
    found = relate(loaded, lambdas, STAGES, progress=Bars())
    finish(found, table(found), json_file, plot_file)


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
@json_option("every subset, with hashes and versions")
@plot_option("performance against the number of experts")
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
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars
    from simo_build.scaling import scaling, table

    loaded = load_recipe(recipe, data=data, experts=experts)
    found = scaling(loaded, STAGES, most=most, seed=seed, realigned=realigned, progress=Bars())
    finish(found, table(found), json_file, plot_file)


@click.command()
@recipe_option
@json_option("the table, with hashes and versions")
@plot_option("them, one panel for each kind of layer")
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
    from simo_build.coefficients import coefficients, table
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars

    loaded = load_recipe(recipe, data=data, experts=experts)
    found = coefficients(loaded, STAGES, progress=Bars())
    finish(found, table(found), json_file, plot_file)
