"""Add a task: open the bundle, train a head on its features, write it anew."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from simo_build.addition.bundle import write
from simo_build.addition.place import Addition, opened
from simo_build.data import Samples, mirrored
from simo_build.features import BATCH, collected, take
from simo_build.fit import Outcome, fit_together
from simo_build.heads import Head, make_head
from simo_build.heads.file import load_head
from simo_build.loading import LoadedRecipe
from simo_build.losses import torch_kind
from simo_build.progress import Progress
from simo_build.realign.bench import seeded
from simo_build.realign.head import goal_of
from simo_runtime.bundle import Bundle


def add_task(loaded: LoadedRecipe, task: str, out: Path, *, progress: Progress) -> Bundle:
    """Add a task of a recipe to the bundle at `out`; it stays as it was unless all goes well.

    The head starts from the task's `expert` if the recipe names one, else from random weights, and
    is trained as the recipe's first `head` step says.
    """
    adding = opened(loaded, task, out, progress)
    head = begin(adding)
    outcome = train(adding, head)
    return write(adding, head.eval(), outcome)


def begin(adding: Addition) -> Head:
    """Make the head, with its expert's weights if there is one."""
    part = adding.loaded.recipe.tasks[adding.task]
    head = make_head(part.head, adding.spec, adding.shape, seed=adding.step.seed)
    if part.expert is not None:
        load_head(head, adding.loaded.locate(part.expert), named=f"{part.head} head")
    return head


def train(adding: Addition, head: Head) -> Outcome:
    """Train the head on the encoder's features of `realign`; its best epoch on `select` stays."""
    step, spec = adding.step, adding.spec
    samples, select = adding.samples["realign"], adding.samples["select"]
    samples = mirrored(samples, {adding.task: spec.kind}) if step.flip else samples
    kind = torch_kind(adding.loaded.recipe.tasks[adding.task])
    learnt, judged = features(adding, samples, "realign"), features(adding, select, "select")
    where = torch.device("cpu")
    (outcome,) = fit_together(
        [goal_of(head, spec, kind, samples, lambda: (judged, select))],
        schedule=step,
        limits=step,
        images=len(samples),
        generator=seeded(step.seed),
        batch_of=lambda index: (take(learnt, index, where), index),
        label=f"re-align {adding.task}",
        progress=adding.progress,
    )
    return outcome


@torch.inference_mode()
def features(adding: Addition, samples: Samples, label: str) -> list[Tensor]:
    """Give the taps of every image of a split: one (n, S, D) float32 tensor a tap."""

    def parts() -> Iterator[tuple[slice, list[Tensor]]]:
        starts = range(0, len(samples), BATCH)
        for start in adding.progress.track(starts, f"features of {label}", total=len(starts)):
            rows = slice(start, start + BATCH)
            yield rows, adding.encoder(torch.from_numpy(samples.images[rows]))

    return collected(parts(), len(samples))
