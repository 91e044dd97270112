"""Steps that train the encoder and all heads together, held to the experts or to the truths.

The experts are free teachers: what they and their heads say of an image needs no label.

Shapes: n images, B of a batch, S tokens, D width, K channels, H x W pixels, T tasks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_build.data import Samples, joined_to
from simo_build.devices import device
from simo_build.encoder import Encoder
from simo_build.features import BATCH, compute_features, take
from simo_build.fit import Outcome, fit
from simo_build.joint import Joint
from simo_build.losses import torch_kind
from simo_build.names import Name
from simo_build.progress import Silent
from simo_build.realign.bench import Bench, Log, SharedModel, looked_at, seeded
from simo_build.realign.teachers import Term, asked, by_output, by_tap, by_truth, compared
from simo_build.statedict import on_cpu
from simo_build.steps import DistillStep, JointStep

TINY = 1e-12  # a loss below this is rounding, and no unit to measure others in


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Images, and for every task and kind of loss a term; terms are divided by their units."""

    images: Tensor  # uint8 (n, H, W, 3)
    names: Sequence[Name]  # of the images, for messages
    terms: Mapping[str, Mapping[str, Term]]  # by task, then labels, outputs or features
    weights: Mapping[str, float]

    def losses(self, joint: Joint, index: Tensor) -> dict[tuple[str, str], Tensor]:
        """Give every term on some images."""
        taps = joint.tapped(self.images[index].to(joint.encoder.mean.device))
        pixels = compared(index, joint.encoder.geometry.image_size)
        heads = joint.by_task()
        found: dict[tuple[str, str], Tensor] = {}
        for task, terms in self.terms.items():
            raw = heads[task].enlarging.at(heads[task].coarse(taps), pixels)
            found |= {(task, name): term(taps, raw, index) for name, term in terms.items()}
        return found

    def loss(self, joint: Joint, index: Tensor, units: Mapping[tuple[str, str], float]) -> Tensor:
        """Give the mean over the tasks of the weighted terms, each in units of its own."""
        found = self.losses(joint, index)
        parts = [self.weights[key[1]] * loss / units[key] for key, loss in found.items()]
        return torch.stack(parts).sum() / (len(self.terms) * sum(self.weights.values()))

    @torch.no_grad()
    def measured(self, joint: Joint, rows: int) -> dict[tuple[str, str], float]:
        """Give the mean of every term over the first images."""
        joint.eval()
        sums: dict[tuple[str, str], float] = {}
        for index in torch.arange(rows).split(BATCH):
            for key, loss in self.losses(joint, index).items():
                sums[key] = sums.get(key, 0.0) + float(loss) * len(index)
        return {key: total / rows for key, total in sums.items()}

    def closeness(self, joint: Joint, units: Mapping[tuple[str, str], float]) -> float:
        """Give the loss on all images with its sign turned, the higher the better."""
        found = self.measured(joint, len(self.images))
        parts = [self.weights[key[1]] * loss / units[key] for key, loss in found.items()]
        return -sum(parts) / (len(self.terms) * sum(self.weights.values()))


def lessons_of(bench: Bench, step: JointStep, samples: Samples) -> Lessons:
    """Make the lessons of a step on some images; their truths are used if the step says so."""
    work = bench.work
    teachers = work.expert_heads() if step.outputs or step.features else {}
    terms: dict[str, dict[str, Term]] = {}
    for task, part in work.recipe.tasks.items():
        kind, mine = torch_kind(part), terms.setdefault(task, {})
        if step.labels:
            mine["labels"] = by_truth(kind, torch.from_numpy(samples.truths[task]))
        if not teachers:
            continue
        half, wanted = step.precision == "bf16", step.features > 0
        answers, taps = asked(work, task, teachers[task], samples, bf16=half, features=wanted)
        if step.outputs:
            mine["outputs"] = by_output(kind, answers, step.targets, mirror=step.mirror)
        if step.features:
            mine["features"] = by_tap(taps)
    weights = {"labels": float(step.labels), "outputs": step.outputs, "features": step.features}
    return Lessons(
        images=torch.from_numpy(samples.images),
        names=samples.names,
        terms=terms,
        weights={name: weight for name, weight in weights.items() if weight},
    )


def distill(bench: Bench, model: SharedModel, step: DistillStep) -> tuple[SharedModel, Log]:
    """Train all weights of the encoder and the heads; the best epoch stays."""
    joint = joined(bench, model, step)
    log = train_jointly(bench, joint, step)
    return SharedModel(on_cpu(joint.encoder.weights()), joint.by_task()), log


def joined(bench: Bench, model: SharedModel, step: JointStep) -> Joint:
    """Put a model into one module, its own copies of all weights."""
    encoder = deepcopy(bench.work.encoder)
    encoder.load(model.encoder, source="the shared encoder", adapters=True)
    encoder.requires_grad_(True)
    heads = {task: deepcopy(head) for task, head in model.heads.items()}
    bf16 = step.precision == "bf16"
    if bf16 and device().type == "cpu":
        unfuse_attention(encoder)
    return Joint(encoder, heads, bf16=bf16).to(device())


def unfuse_attention(encoder: Encoder) -> None:
    """Take attention apart: torch's fused one for CPUs has a slow backward pass in bf16.

    A step of a ViT-Ti at 192 x 256 takes 0.50 s instead of 0.70 s.
    """
    for block in encoder.vit.blocks:
        setattr(block.attn, "fused_attn", False)  # noqa: B010  # timm calls it final


def train_jointly(bench: Bench, joint: Joint, step: JointStep) -> Log:
    """Train what asks for a gradient, and leave it at its best epoch; give the log."""
    own = bench.labelled("realign") if step.labels else bench.bare("realign")
    more = bench.bare("unlabelled") if step.unlabelled else None
    drawn = Drawn(bench, step, joined_to(own, more, bench.kinds) if more else own)
    units = units_of(bench, step, drawn.lessons, len(own))
    select = len(bench.labelled("select") if step.by == "select" else bench.bare("select"))
    metric, measure = judged(bench, joint, step, units)
    outcome: Outcome = fit(
        joint,
        metric=metric,
        better=lambda one, other: one > other,
        schedule=step,
        limits=step,
        images=len(drawn.lessons.images),
        names=drawn.lessons.names,
        generator=seeded(step.seed),
        loss_of=lambda index: drawn.lessons.loss(joint, index, units),
        begin=drawn.begin,
        measure=measure,
        label="re-align",
        progress=bench.progress,
        ema=step.ema,
        patience=step.patience,
        saved=bench.saved,
        scalars=bench.scalars,
        rates=joint.rates(),
    )
    by_truth = step.by == "select" or step.units == "experts"
    used = looked_at(len(own), len(own) if step.labels else 0, select, select if by_truth else 0)
    further = {"unlabelled_images": len(more)} if more else {}
    told = {f"{task}.{name}": unit for (task, name), unit in units.items()}
    return {**used, **further, "by": step.by, "units": told, **vars(outcome)}


class Drawn:
    """The lessons on images, their views and mirror images, as they are drawn for an epoch."""

    def __init__(self, bench: Bench, step: JointStep, images: Samples) -> None:
        self.bench, self.step, self.images = bench, step, images
        self.epoch, self.lessons = 1, self._draw(1)

    def begin(self, epoch: int) -> None:
        """Draw the views of an epoch, if every epoch has its own."""
        if self.step.fresh and epoch != self.epoch:
            del self.lessons  # or the lessons of two epochs would be in memory at once
            self.epoch, self.lessons = epoch, self._draw(epoch)

    def _draw(self, epoch: int) -> Lessons:
        samples = self.bench.viewed(self.images, self.step, epoch)
        samples = self.bench.mirrored(samples) if self.step.flip else samples
        return lessons_of(self.bench, self.step, samples)


def units_of(
    bench: Bench, step: JointStep, lessons: Lessons, rows: int
) -> dict[tuple[str, str], float]:
    """Give what every term is divided by, so that none counts for more for its scale.

    It is the term's value with the base for encoder and the experts' heads, which is how far there
    is to go, or for labels the expert's own loss on `select`.
    """
    start = SharedModel(bench.work.base, bench.work.expert_heads())
    found = lessons.measured(joined(bench, start, step), rows)
    if step.units == "experts":
        found |= {(task, "labels"): loss for task, loss in own_losses(bench)}
    return {key: unit if unit > TINY else 1.0 for key, unit in found.items()}


@torch.no_grad()
def own_losses(bench: Bench) -> Iterator[tuple[str, float]]:
    """Give every expert's loss on the truths of its task, on `select`."""
    work, samples = bench.work, bench.labelled("select")
    for task, head in work.expert_heads().items():
        kind = torch_kind(work.recipe.tasks[task])
        taps = work.features(work.experts[task].encoder, samples, f"expert {task}")
        truth, total = torch.from_numpy(samples.truths[task]), 0.0
        for index in torch.arange(len(samples)).split(BATCH):
            raw = head(take(taps, index, device()))
            total += float(kind.loss(raw, truth[index].to(raw.device))) * len(index)
        yield task, total / len(samples)


def judged(
    bench: Bench, joint: Joint, step: JointStep, units: Mapping[tuple[str, str], float]
) -> tuple[str, Callable[[], float]]:
    """Give what tells the best epoch, the higher the better: its name, and how it is measured.

    By the select split it is equation 1; by teachers, which need no labels, the loss with its
    sign turned, on the same images.
    """
    if step.by == "select":
        samples = bench.labelled("select")

        def performance() -> float:
            taps = compute_features(joint.settled(), samples, label="select", progress=Silent())
            return bench.performance(joint.by_task(), taps)

        return "eq. 1", performance
    taught = step.model_copy(update={"labels": False, "mirror": False})
    if step.targets == "trusted":  # or a student that is sure of what is wrong would come nearer
        taught = taught.model_copy(update={"targets": "pseudo"})
    lessons = lessons_of(bench, taught, bench.bare("select"))
    return "closeness", lambda: lessons.closeness(joint, units)
