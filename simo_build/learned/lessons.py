"""What the shared encoder is held to while coefficients are learnt: one lesson a task.

Shapes: n images, B of them in a batch, K channels, H x W pixels, S tokens, D width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simo_build.data import Samples
from simo_build.encoder import Encoder
from simo_build.features import BATCH
from simo_build.heads import Head
from simo_build.learned.settings import Settings
from simo_build.losses import TORCH_KINDS, TorchKind, torch_kind
from simo_build.progress import Progress
from simo_build.statedict import StateDict
from simo_build.teaching import mean_where, surest
from simo_build.workshop import Workshop
from simo_runtime.tasks import TaskSpec

# Takes the taps of a batch and its indices among the images; gives the mean loss.
Lesson = Callable[[Sequence[Tensor], Tensor], Tensor]


def lesson_of(
    work: Workshop, task: str, head: Head, samples: Samples, settings: Settings
) -> Lesson:
    """Make the lesson of a task on some images, as `loss` says; the head is frozen."""
    spec = work.recipe.specs()[task]
    head.requires_grad_(False)
    kind = torch_kind(work.recipe.tasks[task])
    if settings.loss == "labels":
        return by_truth(head, kind, torch.from_numpy(samples.truths[task]))
    if settings.loss == "entropy":
        assert kind.teaching.entropy is not None  # the rehearsal has checked
        return by_itself(head, kind.teaching.entropy)
    expert = work.experts[task].encoder
    if settings.loss == "features":
        return by_features(work.features(expert, samples, f"expert {task}"))
    return by_output(work, head, spec, expert, samples, settings)


def by_truth(head: Head, kind: TorchKind, truth: Tensor) -> Lesson:
    """Hold a head's output to the truth, by the loss of the task."""
    return lambda taps, index: kind.loss(head(taps), truth[index].to(taps[0].device))


def by_itself(head: Head, entropy: Callable[[Tensor], Tensor]) -> Lesson:
    """Want a head's output to be certain, whatever it says."""
    return lambda taps, _: entropy(head(taps)).mean()


def by_features(features: Sequence[Tensor]) -> Lesson:
    """Hold the taps to an expert's: the mean absolute difference, averaged over the taps."""

    def lesson(taps: Sequence[Tensor], index: Tensor) -> Tensor:
        pairs = zip(taps, features, strict=True)
        gaps = [(tap - whole[index].to(tap.device)).abs().mean() for tap, whole in pairs]
        return torch.stack(gaps).mean()

    return lesson


def by_output(
    work: Workshop,
    head: Head,
    spec: TaskSpec,
    expert: StateDict,
    samples: Samples,
    settings: Settings,
) -> Lesson:
    """Hold a head's output on the shared encoder to its output on the expert's own."""
    teaching = TORCH_KINDS[spec.kind].teaching
    work.encoder.load(expert, source=f"expert {spec.name}")
    raws, kept = taught(
        work.encoder, head, spec, samples, settings.confidence, progress=work.stages.progress
    )
    pseudo = settings.loss == "pseudo"
    distance = teaching.pseudo if pseudo else teaching.distance
    trusted = teaching.trusted if pseudo else None

    def lesson(taps: Sequence[Tensor], index: Tensor) -> Tensor:
        student = head(taps)
        teacher, counts = raws[index].to(student.device), kept[index].to(student.device)
        if trusted is not None:
            counts = counts & trusted(student.detach(), teacher)
        return mean_where(distance(student, teacher), counts)

    return lesson


@torch.no_grad()
def taught(
    encoder: Encoder,
    head: Head,
    spec: TaskSpec,
    samples: Samples,
    share: float,
    *,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Give an expert's raw outputs (n, K, H, W) and which pixels of them teach (n, H, W)."""
    teaching, where = TORCH_KINDS[spec.kind].teaching, encoder.mean.device
    encoder.eval()
    count, (height, width) = len(samples), samples.images.shape[1:3]
    raws = torch.empty(count, spec.channels, height, width)
    kept = torch.ones(count, height, width, dtype=torch.bool)
    starts = range(0, count, BATCH)
    for start in progress.track(starts, f"outputs of expert {spec.name}", total=len(starts)):
        rows = slice(start, start + BATCH)
        pixels = torch.from_numpy(samples.images[rows]).to(where)
        raw = head(encoder(pixels))
        raws[rows] = raw.cpu()
        if share < 1:
            turned_back = teaching.turned(head(encoder(pixels.flip(2))))
            kept[rows] = surest(teaching.sure(raw, turned_back), share).cpu()
    return raws, kept
