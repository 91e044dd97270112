"""Measure heads on features, or whole models on a split.

Shapes: n images, S tokens, D width.  Sums of a metric are (n, sums), an image a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simo_build.data import Samples
from simo_build.features import BATCH, take
from simo_build.heads import Head
from simo_build.losses import TORCH_KINDS, as_measured
from simo_runtime.metrics import (
    METRICS,
    metric_named,
    normalised_performance,
    relative_drop,
)
from simo_runtime.tasks import TaskSpec


def measure_head(
    head: Head, spec: TaskSpec, *, features: Sequence[Tensor], samples: Samples
) -> float:
    """Give the metric of one head on the features (one (n, S, D) a tap) of a split."""
    accumulator = metric_named(spec.metric).start(spec.channels)
    for rows, predicted in predictions(head, spec, features):
        accumulator.update(predicted, samples.truths[spec.name][rows])
    return accumulator.result()


@torch.inference_mode()
def predictions(
    head: Head, spec: TaskSpec, features: Sequence[Tensor]
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Give what a head says of the images of some features, batch by batch, channels last."""
    head.eval()
    device = next(head.parameters()).device
    for start in range(0, len(features[0]), BATCH):
        rows = slice(start, start + BATCH)
        yield rows, as_measured(TORCH_KINDS[spec.kind].finish(head(take(features, rows, device))))


def image_sums(spec: TaskSpec, predicted: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Give the sums of a task's metric image by image, of predictions and truths (n, ...)."""
    rows = []
    for one, right in zip(predicted, truth, strict=True):
        accumulator = metric_named(spec.metric).start(spec.channels)
        accumulator.update(one[None], right[None])
        rows.append(accumulator.sums())
    return np.stack(rows)


def sums_of_head(
    head: Head, spec: TaskSpec, *, features: Sequence[Tensor], samples: Samples
) -> NDArray[np.float64]:
    """Give the sums of one head's metric on the features of a split."""
    truth = samples.truths[spec.name]
    parts = [
        image_sums(spec, predicted, truth[rows])
        for rows, predicted in predictions(head, spec, features)
    ]
    return np.concatenate(parts)


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


def titled(metric: str) -> str:
    """Name a metric for people."""
    return metric.replace("_", " ").replace("iou", "IoU")


def percent(share: float, digits: int = 1, *, signed: bool = False) -> str:
    """Show a share in percent."""
    return f"{100 * share:{'+' if signed else ''}.{digits}f} %"


def shown(value: float, metric: str) -> str:
    """Show a metric with its unit and the digits that matter."""
    unit = METRICS[metric].unit
    if metric == "mean_iou":
        return f"{100 * value:.2f} %"
    return f"{value:.2f}{unit}" if unit == "°" else f"{value:.4f} {unit}".rstrip()
