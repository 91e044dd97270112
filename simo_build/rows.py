"""What `simo-eval` puts side by side: the model after every stage, controls, and bundles.

A control says what a part of the method is worth: it is the same recipe without that part, or with
the simplest thing in its place. To add one: a function in CONTROLS, from the workshop to its model.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from simo_build.build import realign
from simo_build.checkpoints import METADATA, read_metadata
from simo_build.costs import Cost, of_merge, of_realign
from simo_build.gauge import Model
from simo_build.merging import merge
from simo_build.multitask import read_multitask, train_multitask
from simo_build.realign import run_steps, shared_encoder
from simo_build.recipe import MergePart, Recipe
from simo_build.stages import Result
from simo_build.steps import HeadStep
from simo_build.took import beside, noted
from simo_build.workshop import Workshop, split_heads


@contextmanager
def changed(work: Workshop, **parts: Any) -> Iterator[Recipe]:
    """Let the workshop's recipe have other parts meanwhile."""
    before = work.loaded
    work.loaded = replace(before, recipe=before.recipe.model_copy(update=parts))
    try:
        yield work.loaded.recipe
    finally:
        work.loaded = before


def stage_rows(work: Workshop, merged: Result, aligned: Result) -> Iterator[Model]:
    """Give the base and the merged encoder, with the experts' heads and after re-alignment."""
    yield Model(name="base + experts' heads", encoder=work.base, heads=work.expert_heads())
    yield Model(
        name="merged + experts' heads",
        encoder=merged.tensors,
        heads=work.expert_heads(),
        costs=(of_merge(merged.log, merged.seconds),),
    )
    if work.recipe.realign:
        yield realigned(work, "base", base_result(work), base_realigned(work))
        yield realigned(work, "merged", merged, aligned)


def base_result(work: Workshop) -> Result:
    """Give the base as if it were what merging gave: it cost nothing."""
    return Result(work.base, {}, work.base_hash)


def base_realigned(work: Workshop) -> Result:
    """Run the recipe's steps on the base itself: the control that says what merging is worth."""
    steps = [step.model_dump(mode="json") for step in work.recipe.realign]
    inputs = {**work.inputs(), "steps": steps}
    return work.stages.run_in_parts(
        "control", inputs, lambda states: run_steps(work, work.base, states)
    )


def realigned(
    work: Workshop, name: str, before: Result, after: Result, *, how: str = "re-aligned"
) -> Model:
    """Give the model after re-alignment; its name says whether the encoder was changed too."""
    encoder = shared_encoder(before.tensors, after.tensors)
    told = f"{name} + {how} heads" if encoder is before.tensors else f"{name}, {how}"
    merging = (of_merge(before.log, before.seconds),) if before.log else ()
    return Model(
        name=told,
        encoder=encoder,
        heads=split_heads(work, after.tensors),
        costs=(*merging, *of_realign(after.log, after.seconds)),
    )


def head_step(recipe: Recipe) -> HeadStep:
    """Give the recipe's own re-alignment of heads, or the default one."""
    own = [step for step in recipe.realign if isinstance(step, HeadStep)]
    return own[-1] if own else HeadStep(step="head")


def base_with_heads(work: Workshop) -> Model | None:
    """Re-align heads alone to the base: what neither merging nor other steps are needed for."""
    head = head_step(work.recipe)
    if work.recipe.realign == (head,):
        return None  # a row of every study
    with changed(work, realign=(head,)):
        return realigned(work, "base", base_result(work), base_realigned(work))


def average_with_heads(work: Workshop) -> Model | None:
    """Re-align heads alone to the average of the experts: what a better merge is worth."""
    head, average = head_step(work.recipe), MergePart(method="average")
    own = work.recipe.merge
    if work.recipe.realign == (head,) and own.method == "average" and not (own.lines or own.params):
        return None
    with changed(work, merge=average, realign=(head,)):
        merged = merge(work)
        return realigned(work, "average", merged, realign(work, merged))


def merged_with_heads(work: Workshop) -> Model | None:
    """Re-align heads alone to the recipe's own merge: what the other steps are worth."""
    head = head_step(work.recipe)
    if work.recipe.realign == (head,):
        return None
    with changed(work, realign=(head,)):
        merged = merge(work)
        return realigned(work, "merged", merged, realign(work, merged))


def jointly(role: str) -> Callable[[Workshop], Model]:
    """Train one encoder and all heads together on the labels of a split: no merging at all."""

    def control(work: Workshop) -> Model:
        path = train_multitask(work.loaded, role, work.stages.progress)
        encoder, heads = read_multitask(work, path)
        about = json.loads(read_metadata(path)[METADATA])
        used = (
            {role: about[what], "select": about[f"select_{what}"]} for what in ("images", "labels")
        )
        images, labels = used
        steps = sum(about["steps"]["heads"].values()) + about["steps"]["all"]
        cost = Cost(
            stage=f"joint, {role}",
            images=images,
            labels=labels,
            steps=steps,
            seconds=noted(beside(path)),
        )
        name = f"joint training on {role}"
        return Model(name=name, encoder=encoder, heads=heads, costs=(cost,))

    return control


# A control gives None where it is another row already.
CONTROLS: tuple[Callable[[Workshop], Model | None], ...] = (
    base_with_heads,
    average_with_heads,
    merged_with_heads,
    jointly("realign"),
    jointly("train"),
)


def controls(work: Workshop) -> Iterator[Model]:
    """Give all controls that are not rows of every study."""
    for control in CONTROLS:
        model = control(work)
        if model is not None:
            yield model
