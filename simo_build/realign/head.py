"""`head`: train every head on the features of the frozen encoder.

From arXiv 2504.11268, section 4: compute the features of the re-alignment images once, and train
every head on them, from the weights it has. All heads are trained in one pass over the features,
so that a batch of them is read, and moved to the device, once; each has its own optimiser and best
epoch, and comes out as if it had been trained alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from simo_build.data import Samples
from simo_build.evaluate import measure_head
from simo_build.features import take
from simo_build.fit import Goal, Outcome, fit_together, snapshot
from simo_build.heads import Head
from simo_build.losses import TorchKind, torch_kind
from simo_build.realign.bench import Bench, Log, SharedModel, looked_at, seeded
from simo_build.statedict import StateDict
from simo_build.steps import HeadStep
from simo_build.workers import workers
from simo_runtime.metrics import metric_named
from simo_runtime.tasks import TaskSpec

Batch = tuple[list[Tensor], Tensor]  # the taps of some images, and their indices


def realign_heads(bench: Bench, model: SharedModel, step: HeadStep) -> tuple[SharedModel, Log]:
    """Train all heads in place, in the main process; the encoder stays as it is."""
    outcomes, weights = workers().from_main(lambda: trained(bench, model, step))
    for task, head in model.heads.items():
        head.load_state_dict(weights[task])
    images, select = (len(bench.labelled(role)) for role in ("realign", "select"))
    tasks = {task: vars(outcome) for task, outcome in outcomes.items()}
    return model, {**looked_at(images, images, select, select), "tasks": tasks}


def trained(
    bench: Bench, model: SharedModel, step: HeadStep
) -> tuple[dict[str, Outcome], dict[str, StateDict]]:
    """Train all heads on the features of `realign`; their best epochs on `select` stay."""
    samples = bench.labelled("realign")
    samples = bench.mirrored(samples) if step.flip else samples
    where = next(next(iter(model.heads.values())).parameters()).device

    def batch_of(index: Tensor) -> Batch:
        features = bench.features(model.encoder, "realign", flip=step.flip)
        return take(features, index, where), index

    def select() -> tuple[list[Tensor], Samples]:
        return bench.features(model.encoder, "select"), bench.labelled("select")

    specs, tasks = bench.work.recipe.specs(), bench.work.recipe.tasks
    outcomes = fit_together(
        [
            goal_of(head, specs[task], torch_kind(tasks[task]), samples, select)
            for task, head in model.heads.items()
        ],
        schedule=step,
        limits=step,
        images=len(samples),
        generator=seeded(step.seed),
        batch_of=batch_of,
        label="re-align heads",
        progress=bench.progress,
        saved=bench.saved,
        scalars=bench.scalars,
    )
    return (
        dict(zip(model.heads, outcomes, strict=True)),
        {task: snapshot(head) for task, head in model.heads.items()},
    )


def goal_of(
    head: Head,
    spec: TaskSpec,
    kind: TorchKind,
    samples: Samples,
    select: Callable[[], tuple[list[Tensor], Samples]],
) -> Goal:
    """Say what one head is trained for: the truths of `samples`, and its metric on `select`.

    `select` gives the features and the truths of that split, when they are first measured on.
    """
    truth = torch.from_numpy(samples.truths[spec.name])

    def loss_of(batch: Batch) -> Tensor:
        taps, index = batch
        return kind.loss(head(taps), truth[index].to(taps[0].device))

    def measure() -> float:
        features, judged = select()
        return measure_head(head, spec, features=features, samples=judged)

    return Goal(
        module=head,
        loss_of=loss_of,
        measure=measure,
        metric=spec.metric,
        better=metric_named(spec.metric).better,
        label=f"re-align {spec.name}",
    )
