"""What a shared model is held to, task by task: the truths, an expert's outputs, an expert's taps.

A loss is of every fourth pixel either way, others in the next batch: neighbours say almost the
same, and comparing all of them takes longer than the encoder does.

Shapes: n images, B of a batch, S tokens, D width, K channels, h x w a coarse map, H x W pixels,
R rows and C columns that are compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_build.data import Samples
from simo_build.features import chunks, collected
from simo_build.heads import Enlarging, Head, Pixels
from simo_build.learned.lessons import by_features
from simo_build.losses import TorchKind
from simo_build.steps import Target
from simo_build.teaching import mean_where
from simo_build.workshop import Workshop

THIN = 4  # one row in so many is compared, and one column

# Takes the taps of a batch, a task's raw output at the pixels that are compared, (B, K, R, C), and
# the indices; gives the mean loss.
Term = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]


def compared(index: Tensor, size: tuple[int, int]) -> Pixels:
    """Say which pixels are compared: it changes from batch to batch."""
    starts = int(index[0]) % THIN, int(index[-1]) % THIN
    rows, columns = (
        torch.arange(min(start, side - 1), side, THIN)
        for start, side in zip(starts, size, strict=True)
    )
    return Pixels(rows, columns)


def by_truth(kind: TorchKind, truth: Tensor) -> Term:
    """Hold an output to the truth, (n, H, W) or (n, H, W, 3), by the loss of the task."""
    size = truth.shape[1], truth.shape[2]

    def term(_: Sequence[Tensor], raw: Tensor, index: Tensor) -> Tensor:
        return kind.loss(raw, compared(index, size).of(truth[index]).to(raw.device))

    return term


@dataclass(frozen=True)
class Answers:
    """What an expert says of images: coarse maps (n, K, h, w), and how they are enlarged."""

    coarse_nKhw: Tensor
    enlarging: Enlarging

    def at(self, index: Tensor, pixels: Pixels, device: torch.device) -> Tensor:
        """Give the raw outputs of some images at some pixels."""
        return self.enlarging.at(self.coarse_nKhw[index].to(device), pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.enlarging.geometry.image_size


def by_output(
    kind: TorchKind, answers: Answers, targets: Target = "soft", *, mirror: bool = False
) -> Term:
    """Hold an output to an expert's.

    With `mirror` the second half of the images are the first, mirrored, and the expert's answer
    is its mean over both, which is better than either.
    """
    teaching, images, size = kind.teaching, len(answers.coarse_nKhw), answers.size
    distance = teaching.distance if targets == "soft" else teaching.pseudo
    trusted = teaching.trusted if targets == "trusted" else None

    def taught(index: Tensor, device: torch.device) -> Tensor:
        pixels = compared(index, size)
        teacher = answers.at(index, pixels, device)
        if not mirror:
            return teacher
        other = (index + images // 2) % images
        turned = teaching.turned(answers.at(other, pixels.mirrored(size[1]), device))
        return teaching.mean(teacher, turned)

    def term(_: Sequence[Tensor], raw: Tensor, index: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = taught(index, raw.device)
        if trusted is None:
            return distance(raw, teacher).mean()
        return mean_where(distance(raw, teacher), trusted(raw.detach(), teacher))

    return term


def by_tap(taps: Sequence[Tensor]) -> Term:
    """Hold the taps to those of an expert: the mean absolute difference."""
    lesson = by_features(taps)
    return lambda found, _, index: lesson(found, index)


@torch.no_grad()
def asked(
    work: Workshop, task: str, head: Head, samples: Samples, *, bf16: bool, features: bool
) -> tuple[Answers, list[Tensor]]:
    """Ask an expert about images: its answers, and its taps (n, S, D) if they are wanted.

    Taps are kept in half precision, unless one would overflow.
    """
    work.encoder.load(work.experts[task].encoder, source=f"expert {task}", adapters=True)
    label, progress = f"expert {task}", work.stages.progress
    seen = chunks(work.encoder, samples, label=label, progress=progress, bf16=bf16)
    coarse, *kept = collected(
        (
            (rows, [head.coarse(taps), *(halved(tap) for tap in taps if features)])
            for rows, taps in seen
        ),
        count=len(samples),
    )
    return Answers(coarse, head.enlarging), kept


def halved(tap: Tensor) -> Tensor:
    """Give a tap in half precision, unless it would overflow."""
    half = tap.half()
    return half if half.isfinite().all() else tap
