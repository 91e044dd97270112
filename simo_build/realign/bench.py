"""What all re-alignment steps work on and with: the model, the images, and how it is measured.

Shapes: n images, S tokens, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from simo_build.data import Samples, load_split, mirrored, viewed
from simo_build.evaluate import measure_heads
from simo_build.heads import Head
from simo_build.progress import Progress
from simo_build.saved import Saved
from simo_build.scalars import Scalars
from simo_build.statedict import StateDict
from simo_build.steps import JointStep
from simo_build.workshop import Workshop, against, measure_experts

Log = dict[str, Any]
APART = 1_000_003  # between the seeds of two epochs, so that no other run's seed is met


@dataclass(frozen=True)
class SharedModel:
    """The shared encoder's weights and all heads: what goes from step to step."""

    encoder: StateDict
    heads: Mapping[str, Head]


@dataclass
class Bench:
    """The images of `realign` to learn on, those of `select` to measure on, and the experts.

    No other split is ever read, and truths only when they are asked for.
    """

    work: Workshop
    saved: Saved | None = None  # where the step that runs keeps its state
    scalars: Scalars | None = None  # takes its numbers
    kept: list[tuple[StateDict, dict[str, list[Tensor]]]] = field(default_factory=list)

    @property
    def progress(self) -> Progress:
        """How the work tells where it is."""
        return self.work.stages.progress

    @cached_property
    def experts(self) -> dict[str, float]:
        """The experts' own metrics on `select`."""
        return measure_experts(self.work, self.labelled("select"))

    def labelled(self, role: str) -> Samples:
        """Give the images of a split with their truths."""
        return self.work.samples[role]

    def bare(self, role: str) -> Samples:
        """Give the images of a split; no truth is read."""
        return load_split(self.work.loaded, role, tasks=(), progress=self.progress)

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of all tasks."""
        return {task: spec.kind for task, spec in self.work.recipe.specs().items()}

    def mirrored(self, samples: Samples) -> Samples:
        """Add the mirror image of every image."""
        return mirrored(samples, self.kinds)

    def viewed(self, samples: Samples, step: JointStep, epoch: int = 1) -> Samples:
        """Add the views that a step wants of every image; mirroring is left to `mirrored`.

        Another epoch has other views, the same ones whenever it is asked for.
        """
        if step.views == 1:
            return samples
        how = step.model_copy(update={"flip": False})
        chance = seeded(step.seed + 1 + APART * (epoch - 1))
        return viewed(samples, step.views, self.kinds, how, chance)

    def features(self, encoder: StateDict, samples: Samples, name: str) -> list[Tensor]:
        """Compute the taps of some images; those of one encoder are kept, under their names."""
        if not self.kept or self.kept[0][0] is not encoder:
            self.kept[:] = [(encoder, {})]
        found = self.kept[0][1]
        if name not in found:
            found[name] = self.work.features(encoder, samples, name)
        return found[name]

    def judged(self, heads: Mapping[str, Head], encoder: StateDict) -> dict[str, float]:
        """Measure all heads on an encoder, on `select`."""
        return self.measured(heads, self.features(encoder, self.labelled("select"), "select"))

    def measured(self, heads: Mapping[str, Head], features: Sequence[Tensor]) -> dict[str, float]:
        """Measure all heads on the features of `select`."""
        specs = self.work.recipe.specs()
        return measure_heads(heads, specs, features=features, samples=self.labelled("select"))

    def performance(self, heads: Mapping[str, Head], features: Sequence[Tensor]) -> float:
        """Give equation 1 on the features of `select`: the mean performance against the experts."""
        measured = self.measured(heads, features)
        return against(self.work, measured, self.experts)["normalised_performance"]


def looked_at(images: int, labels: int, select: int, select_labels: int) -> dict[str, int]:
    """Say how many images and labels a step has used, for the log."""
    return {
        "images": images,
        "labels": labels,
        "select_images": select,
        "select_labels": select_labels,
    }


def seeded(seed: int) -> torch.Generator:
    """Give a generator of random numbers."""
    return torch.Generator().manual_seed(seed)
