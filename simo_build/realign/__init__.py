"""Re-align what merging bent out of shape: the recipe's `realign` steps, one after another.

A step takes the shared model and gives another, with a log of what it used; `STEPS` holds one
function for each.
"""

from collections.abc import Callable, Mapping
from typing import Any

from simo_build.realign.bench import Bench, Log, SharedModel, looked_at
from simo_build.realign.calibrate import calibrate
from simo_build.realign.head import realign_heads
from simo_build.realign.joint import distill
from simo_build.realign.lora import lora
from simo_build.realign.representation import representation
from simo_build.realign.tint import tint
from simo_build.saved import States
from simo_build.scalars import Under
from simo_build.statedict import StateDict, part, prefixed
from simo_build.steps import CalibrateStep
from simo_build.workers import workers
from simo_build.workshop import Workshop, flat_heads

ENCODER = "encoder."  # no task can be called so

STEPS: dict[str, Callable[[Bench, SharedModel, Any], tuple[SharedModel, Log]]] = {
    "calibrate": calibrate,
    "distill": distill,
    "head": realign_heads,
    "lora": lora,
    "representation": representation,
    "tint": tint,
}


def check_steps(work: Workshop) -> None:
    """Refuse, before any heavy work, steps that ask for more images than there are."""
    for number, step in enumerate(work.recipe.realign):
        if isinstance(step, CalibrateStep):
            work.check_images(step.images, f"realign.{number}.images")


def run_steps(
    work: Workshop, encoder: StateDict, states: States | None = None
) -> tuple[StateDict, dict[str, Any]]:
    """Re-align the experts' heads and an encoder to each other.

    In `states` every step keeps what a killed run goes on from.
    Gives the heads' tensors, `<task>.<tensor>`, and those of the encoder, `encoder.<tensor>`, if a
    step has changed it; and a log of what every step used and did.
    """
    bench, model = Bench(work), SharedModel(encoder, work.expert_heads())
    steps: list[Log] = []
    for number, step in enumerate(work.recipe.realign, start=1):
        name = f"{number}-{step.step}"
        bench.saved = states.of(name) if states else None
        bench.scalars = Under(name, work.scalars) if work.scalars else None
        model, log = STEPS[step.step](bench, model, step)
        steps.append({"step": step.step, **log})
    used = {key: max(log[key] for log in steps) for key in looked_at(0, 0, 0, 0)}
    metrics = {}
    if not work.recipe.blind:
        metrics = workers().from_main(lambda: bench.judged(model.heads, model.encoder))
    tensors = flat_heads(model.heads)
    if model.encoder is not encoder:
        tensors |= prefixed(model.encoder, ENCODER)
    return tensors, {**used, "steps": steps, "metrics": metrics}


def shared_encoder(merged: StateDict, aligned: Mapping[str, Any]) -> StateDict:
    """Give the encoder after re-alignment: the merged one if no step changed it."""
    return part(aligned, ENCODER) or merged
