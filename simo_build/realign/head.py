"""`head`: train every head on the features of the frozen encoder.

From arXiv 2504.11268, section 4: compute the features of the re-alignment images once, and train
every head on them, from the weights it has.
"""

import torch
from torch import Tensor

from simo_build.evaluate import measure_head
from simo_build.features import take
from simo_build.fit import Outcome, fit
from simo_build.heads import Head
from simo_build.losses import TORCH_KINDS
from simo_build.realign.bench import Bench, Log, SharedModel, looked_at, seeded
from simo_build.steps import HeadStep
from simo_runtime.metrics import metric_named
from simo_runtime.tasks import TaskSpec


def realign_heads(bench: Bench, model: SharedModel, step: HeadStep) -> tuple[SharedModel, Log]:
    """Train all heads in place; the encoder stays as it is."""
    specs = bench.work.recipe.specs()
    tasks = {
        task: vars(realign_head(bench, model, head, specs[task], step))
        for task, head in model.heads.items()
    }
    images, select = (len(bench.labelled(role)) for role in ("realign", "select"))
    return model, {**looked_at(images, images, select, select), "tasks": tasks}


def realign_head(
    bench: Bench, model: SharedModel, head: Head, spec: TaskSpec, step: HeadStep
) -> Outcome:
    """Train one head in place on the features of `realign`; its best epoch on `select` stays."""
    kind, select = TORCH_KINDS[spec.kind], bench.labelled("select")
    where = next(head.parameters()).device
    features = bench.features(model.encoder, "realign", flip=step.flip)
    checked = bench.features(model.encoder, "select")
    samples = bench.labelled("realign")
    samples = bench.mirrored(samples) if step.flip else samples
    truth = torch.from_numpy(samples.truths[spec.name])

    def loss_of(index: Tensor) -> Tensor:
        return kind.loss(head(take(features, index, where)), truth[index].to(where))

    return fit(
        head,
        metric=spec.metric,
        better=metric_named(spec.metric).better,
        schedule=step,
        limits=step,
        images=len(truth),
        generator=seeded(step.seed),
        loss_of=loss_of,
        measure=lambda: measure_head(head, spec, features=checked, samples=select),
        label=f"re-align {spec.name}",
        progress=bench.progress,
    )
