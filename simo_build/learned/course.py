"""The course of learning: images, lessons, and the loop that keeps the best epoch.

Shapes: n images, H x W pixels, T tasks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from simo_build.encoder import Encoder
from simo_build.features import BATCH
from simo_build.fit import refuse_nan, shuffled, snapshot
from simo_build.learned.lessons import Lesson
from simo_build.learned.registry import Mixture
from simo_build.learned.settings import Settings, held_out
from simo_build.names import Name
from simo_build.progress import Progress
from simo_build.statedict import StateDict, prefixed


@dataclass(frozen=True, kw_only=True)
class Course:
    """What coefficients are learnt on.

    A task's loss is divided by `units`, so that no task counts for more because its loss is of
    another size.
    """

    encoder: Encoder
    base: StateDict  # on the encoder's device
    images: Tensor  # uint8 (n, H, W, 3)
    names: Sequence[Name]  # of the images, for messages
    lessons: Sequence[Lesson]
    units: Tensor  # (T,)
    half: bool = False

    def taps(self, weights: StateDict, index: Tensor) -> list[Tensor]:
        """Give the taps of some images under some weights of the encoder."""
        where = self.encoder.mean.device
        with torch.autocast(where.type, torch.bfloat16, enabled=self.half):
            pixels = self.images[index].to(where)
            taps = functional_call(self.encoder, prefixed(weights, "vit."), (pixels,))
        return [tap.float() for tap in taps]

    def losses(self, weights: StateDict, index: Tensor) -> Tensor:
        """Give the loss of every task on some images, (T,), each in units of its own."""
        taps = self.taps(weights, index)
        return torch.stack([lesson(taps, index) for lesson in self.lessons]) / self.units

    def merged(self, delta: StateDict) -> StateDict:
        """Add a delta to the base."""
        return {name: tensor + delta[name] for name, tensor in self.base.items()}

    def measured_in(self, units: Tensor) -> "Course":
        """Give the same course with other units, (T,)."""
        return replace(self, units=units)

    @torch.no_grad()
    def measured(self, weights: StateDict, index: Tensor) -> Tensor:
        """Give the mean loss of every task on images without learning from them, (T,)."""
        parts = [self.losses(weights, rows) * len(rows) for rows in index.split(BATCH)]
        return torch.stack(parts).sum(dim=0) / len(index)


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """The parameters of the best epoch, and the held-out loss after every one.

    Epoch 0 is the start: when no epoch is better, nothing has changed.
    """

    state: StateDict
    epoch: int
    history: tuple[float, ...]


def split_rows(images: int, share: float) -> tuple[Tensor, Tensor]:
    """Give the indices to learn on and those held out, which are spread evenly."""
    count = held_out(images, share)
    held = (2 * torch.arange(count) + 1) * images // (2 * count)
    learns = torch.ones(images, dtype=torch.bool)
    learns[held] = False
    return learns.nonzero().squeeze(1), held


def learn(
    mixture: Mixture, course: Course, settings: Settings, *, label: str, progress: Progress
) -> Learnt:
    """Learn a mixture's parameters in place, and leave it at its best epoch.

    The best epoch is the first one of the lowest mean loss on the held-out images.
    """
    optimiser = torch.optim.AdamW(
        mixture.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    generator = torch.Generator().manual_seed(int(settings.seed))
    rows, held = split_rows(len(course.images), settings.hold)

    def measure() -> float:
        with torch.no_grad():
            return float(course.measured(course.merged(mixture()), held).mean())

    history, best, kept = [measure()], 0, snapshot(mixture)
    epochs = int(settings.epochs)
    for epoch in range(1, epochs + 1):
        batches = [rows[i] for i in shuffled(len(rows), int(settings.batch), generator)]
        for index in progress.track(batches, f"{label}, epoch {epoch}/{epochs}"):
            optimiser.zero_grad(set_to_none=True)
            loss = course.losses(course.merged(mixture()), index).mean()
            refuse_nan(loss, label, epoch, course.names, index)
            loss.backward()
            optimiser.step()
            mixture.project()
        history.append(measure())
        if history[-1] < history[best] or math.isnan(history[best]):
            best, kept = epoch, snapshot(mixture)
        progress.detail(f"{label}: epoch {epoch}/{epochs}, held-out loss {history[-1]:.4f}")
    mixture.load_state_dict(kept)
    progress.say(
        f"{label}: held-out loss {history[0]:.4f} -> {history[best]:.4f}, epoch {best} of {epochs}"
    )
    return Learnt(state=kept, epoch=best, history=tuple(history))
