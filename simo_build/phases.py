"""The paper's two phases for any number of tasks: heads on frozen features, then everything.

Shapes: n images, S tokens, D width.  Samples are those to learn from, `train`, and `select`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_build.augment import augmented
from simo_build.data import Samples
from simo_build.evaluate import measure_head, measure_heads
from simo_build.features import compute_features, take
from simo_build.fit import Outcome, fit
from simo_build.heads import Head
from simo_build.joint import Joint
from simo_build.losses import torch_kind
from simo_build.progress import Progress, Silent
from simo_build.recipe import Phase, TaskPart, TrainPart
from simo_build.saved import Saved
from simo_build.scalars import Scalars
from simo_runtime.metrics import metric_named, normalised_performance
from simo_runtime.tasks import TaskSpec

Measured = Mapping[str, float]  # metrics by task
Watch = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number for the metrics of all tasks, which tells the best epoch."""

    name: str
    of: Callable[[Measured], float]
    better: Callable[[float, float], bool]


def own_metric(spec: TaskSpec) -> Score:
    """Score by the metric of the one task that there is."""
    better = metric_named(spec.metric).better
    return Score(name=spec.metric, of=lambda measured: measured[spec.name], better=better)


def equation_1(baseline: Measured, specs: Mapping[str, TaskSpec]) -> Score:
    """Score by equation 1 of the paper against some metrics."""
    metrics = {task: spec.metric for task, spec in specs.items()}
    return Score(
        name="eq. 1",
        of=lambda measured: normalised_performance(measured, baseline, metrics),
        better=lambda one, other: one > other,
    )


def train_head(
    head: Head,
    spec: TaskSpec,
    part: TaskPart,
    *,
    features: Callable[[str], Sequence[Tensor]],
    samples: Mapping[str, Samples],
    train: TrainPart,
    progress: Progress,
    watch: Watch = lambda score: None,
    saved: Saved | None = None,
    scalars: Scalars | None = None,
) -> Outcome:
    """Train one head in place on the features of the splits; phase `head`.

    `features` gives those of a split, one (n, S, D) a tap; it is not asked if the phase is done
    and kept in `saved`. `watch` is told the metric where training begins and after every epoch.
    """
    kind, where = torch_kind(part), next(head.parameters()).device
    truth = torch.from_numpy(samples["train"].truths[spec.name])

    def loss_of(index: Tensor) -> Tensor:
        return kind.loss(head(take(features("train"), index, where)), truth[index].to(where))

    def measure() -> float:
        found = measure_head(head, spec, features=features("select"), samples=samples["select"])
        watch(found)
        return found

    return fit(
        head,
        metric=spec.metric,
        better=metric_named(spec.metric).better,
        schedule=train.head,
        limits=train,
        images=len(truth),
        names=samples["train"].names,
        generator=torch.Generator().manual_seed(train.seed),
        loss_of=loss_of,
        measure=measure,
        label=f"{spec.name}, head",
        progress=progress,
        saved=saved,
        scalars=scalars,
    )


def train_all(
    joint: Joint,
    specs: Mapping[str, TaskSpec],
    parts: Mapping[str, TaskPart],
    *,
    samples: Mapping[str, Samples],
    train: TrainPart,
    phase: Phase,
    score: Score,
    label: str,
    progress: Progress,
    units: Mapping[str, float] | None = None,
    watch: Watch = lambda score: None,
    saved: Saved | None = None,
    scalars: Scalars | None = None,
) -> Outcome:
    """Train encoder and heads in place on images that are changed at random; phase `full`.

    The loss is the mean over the tasks, each divided by its unit if there are any. `watch` is told
    the score where training begins and after every epoch.
    """
    images = torch.from_numpy(samples["train"].images)
    truths = {task: torch.from_numpy(samples["train"].truths[task]) for task in specs}
    kinds = {task: spec.kind for task, spec in specs.items()}
    loss = {task: torch_kind(parts[task]).loss for task in specs}
    where = joint.encoder.mean.device
    chance = torch.Generator().manual_seed(train.seed + 1)

    def loss_of(index: Tensor) -> Tensor:
        batch = {task: truth[index] for task, truth in truths.items()}
        pixels, found = augmented(images[index], batch, kinds, train, chance)
        _, raws = joint(pixels.to(where))
        losses = [
            loss[task](raws[task], found[task].to(where)) / (units or {}).get(task, 1.0)
            for task in specs
        ]
        return torch.stack(losses).mean()

    def measure() -> float:
        found = score.of(measured(joint, specs, samples["select"]))
        watch(found)
        return found

    return fit(
        joint,
        metric=score.name,
        better=score.better,
        schedule=phase,
        limits=train,
        images=len(images),
        names=samples["train"].names,
        generator=torch.Generator().manual_seed(train.seed + 2),
        loss_of=loss_of,
        measure=measure,
        label=label,
        progress=progress,
        saved=saved,
        draws=[chance],
        scalars=scalars,
    )


def measured(joint: Joint, specs: Mapping[str, TaskSpec], samples: Samples) -> dict[str, float]:
    """Measure every task on a split."""
    taps = compute_features(joint.encoder, samples, label="select", progress=Silent())
    return measure_heads(joint.by_task(), specs, features=taps, samples=samples)
