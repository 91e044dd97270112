"""Measure heads on features, or whole models on a split.

Shapes: n images, S tokens, D width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simo_build.data import Samples
from simo_build.features import BATCH, take
from simo_build.heads import Head
from simo_build.losses import TORCH_KINDS, as_measured
from simo_runtime.metrics import metric_named, normalised_performance, relative_drop
from simo_runtime.tasks import TaskSpec


@torch.inference_mode()
def measure_head(
    head: Head, spec: TaskSpec, *, features: Sequence[Tensor], samples: Samples
) -> float:
    """Give the metric of one head on the features (one (n, S, D) a tap) of a split."""
    head.eval()
    device = next(head.parameters()).device
    accumulator = metric_named(spec.metric).start(spec.channels)
    for start in range(0, len(samples), BATCH):
        rows = slice(start, start + BATCH)
        finished = TORCH_KINDS[spec.kind].finish(head(take(features, rows, device)))
        accumulator.update(as_measured(finished), samples.truths[spec.name][rows])
    return accumulator.result()


def measure_heads(
    heads: Mapping[str, Head],
    specs: Mapping[str, TaskSpec],
    *,
    features: Sequence[Tensor],
    samples: Samples,
) -> dict[str, float]:
    """Give the metric of every task on one set of features."""
    return {
        task: measure_head(head, specs[task], features=features, samples=samples)
        for task, head in heads.items()
    }


def compare(
    measured: Mapping[str, float], experts: Mapping[str, float], specs: Mapping[str, TaskSpec]
) -> dict[str, float]:
    """Give equations 1 and 2 of the paper against the experts, under names that keep them apart."""
    metrics = {task: spec.metric for task, spec in specs.items()}
    return {
        "normalised_performance": normalised_performance(measured, experts, metrics),
        "relative_drop": relative_drop(measured, experts, metrics),
    }
