"""simo-build: a bundle from a recipe, the plan of one, and what can be made beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simo_build.cli.manners import polite, refuse_several
from simo_build.cli.options import (
    BUNDLES,
    data_option,
    experts_option,
    out_option,
    recipe_option,
    tensorboard_option,
)
from simo_runtime.errors import listing

if TYPE_CHECKING:
    from simo_build.loading import LoadedRecipe
    from simo_runtime.bundle import Bundle


@click.command()
@recipe_option
@out_option
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
    target = out or BUNDLES / loaded.recipe.name
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
    from simo_build.expert_bundles import experts_folder
    from simo_build.plan import many, plan

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
        from simo_build.expert_bundles import build_experts
        from simo_build.progress import Bars

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
    from simo_build.addition.task import add_task
    from simo_build.loading import load_recipe
    from simo_build.progress import Bars

    loaded = load_recipe(recipe, data=data, experts=experts)
    target = out or BUNDLES / loaded.recipe.name
    bundle = add_task(loaded, task, target, progress=Bars())
    if engines:
        build_engines(bundle)
    return bundle.root
