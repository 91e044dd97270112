"""simo-train: experts, or one model for all tasks."""

from pathlib import Path

import click

from simo_build.cli.manners import polite, refuse_several
from simo_build.cli.options import data_option, experts_option, recipe_option, tensorboard_option


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
