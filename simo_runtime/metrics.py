"""Measure predictions against the truth: one accumulator per metric, plain numpy.

Shapes: B images, K classes, H x W pixels, S sums.  An accumulator sees a split batch by batch and
gives one number for the whole of it, so that the number does not depend on the batch size. It keeps
nothing but sums over pixels: those of two sets of images add up to those of both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import unknown

Array = NDArray[Any]
IGNORE = 255  # the label of pixels that have none


class Accumulator(Protocol):
    """Collects predictions and truths as sums over pixels, then gives one number."""

    def update(self, predicted: Array, truth: Array) -> None: ...

    def sums(self) -> NDArray[np.float64]:
        """Give the sums so far, (S,); `Metric.score` makes a number of them."""
        ...

    def result(self) -> float: ...


class MeanIoU:
    """Mean intersection over union from one confusion matrix over all the images, 0 to 1.

    The mean is over the classes that occur in the truth or in the prediction.
    `predicted` and `truth` are class indices (B, H, W). Truths outside [0, classes) do not count;
    a prediction outside it, where the truth counts, is refused with ValueError.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.confusion_KK: NDArray[np.int64] = np.zeros((classes, classes), dtype=np.int64)

    def update(self, predicted: Array, truth: Array) -> None:
        known = (truth >= 0) & (truth < self.classes)
        guess, right = predicted[known].astype(np.int64), truth[known].astype(np.int64)
        if guess.size and not 0 <= guess.min() <= guess.max() < self.classes:
            raise ValueError(f"predicted {guess.min()} to {guess.max()} of {self.classes} classes")
        counts = np.bincount(right * self.classes + guess, minlength=self.classes**2)
        self.confusion_KK += counts.reshape(self.classes, self.classes)

    def sums(self) -> NDArray[np.float64]:
        """Give every class's intersection, then every class's union, (2 K,): all that counts."""
        hit_K = np.diag(self.confusion_KK)
        union_K = self.confusion_KK.sum(axis=0) + self.confusion_KK.sum(axis=1) - hit_K
        return np.concatenate((hit_K, union_K)).astype(np.float64)

    def result(self) -> float:
        return float(mean_ratio(self.sums()))


class AbsoluteError:
    """Mean absolute error over the valid pixels, in the unit of the task (metres for depth).

    `predicted` and `truth` are (B, H, W); a truth of 0 is invalid.
    """

    def __init__(self, classes: int) -> None:
        self.total, self.count = 0.0, 0

    def update(self, predicted: Array, truth: Array) -> None:
        valid = truth > 0
        self.total += float(np.abs(predicted[valid].astype(np.float64) - truth[valid]).sum())
        self.count += int(valid.sum())

    def sums(self) -> NDArray[np.float64]:
        return np.array((self.total, self.count), np.float64)

    def result(self) -> float:
        return float(mean_ratio(self.sums()))


class KnownError:
    """Mean absolute error over the pixels whose truth is a number, averaged over the channels.

    `predicted` and `truth` are (B, H, W) or (B, H, W, C); a truth with NaN in it is invalid.
    """

    def __init__(self, classes: int) -> None:
        self.total, self.count = 0.0, 0

    def update(self, predicted: Array, truth: Array) -> None:
        finite = np.isfinite(truth)
        known = np.all(finite, axis=-1) if truth.ndim == 4 else finite
        error = np.abs(predicted[known].astype(np.float64) - truth[known])
        self.total += float(error.sum())
        self.count += error.size

    def sums(self) -> NDArray[np.float64]:
        return np.array((self.total, self.count), np.float64)

    def result(self) -> float:
        return float(mean_ratio(self.sums()))


class ComponentError:
    """Mean absolute error of the components of normals over the valid pixels.

    Both are normalised first, as for `MeanAngle`; a truth of (0, 0, 0) is invalid.
    """

    def __init__(self, classes: int) -> None:
        self.total, self.count = 0.0, 0

    def update(self, predicted: Array, truth: Array) -> None:
        valid = np.any(truth != 0, axis=-1)
        error = np.abs(unit(predicted[valid]) - unit(truth[valid]))
        self.total += float(error.sum())
        self.count += error.size

    def sums(self) -> NDArray[np.float64]:
        return np.array((self.total, self.count), np.float64)

    def result(self) -> float:
        return float(mean_ratio(self.sums()))


class MeanAngle:
    """Mean angle between predicted and true normals over the valid pixels, in degrees.

    `predicted` and `truth` are (B, H, W, 3); both are normalised here, and a truth of (0, 0, 0)
    is invalid. Normalising the prediction departs from the paper's released code, which measures
    the angle of vectors of any length. A prediction of (0, 0, 0) has no direction and counts as
    90 degrees, there as here.
    """

    def __init__(self, classes: int) -> None:
        self.total, self.count = 0.0, 0

    def update(self, predicted: Array, truth: Array) -> None:
        valid = np.any(truth != 0, axis=-1)
        one, two = unit(predicted[valid]), unit(truth[valid])
        # atan2 keeps its accuracy near 0 and 180 degrees, where arccos loses it
        across = np.linalg.norm(np.cross(one, two), axis=-1)
        along = np.sum(one * two, axis=-1)
        angle = np.where((across == 0) & (along == 0), np.pi / 2, np.arctan2(across, along))
        self.total += float(np.degrees(angle).sum())
        self.count += int(valid.sum())

    def sums(self) -> NDArray[np.float64]:
        return np.array((self.total, self.count), np.float64)

    def result(self) -> float:
        return float(mean_ratio(self.sums()))


def mean_ratio(sums: Array) -> NDArray[np.float64]:
    """Give the mean of above / below over what was seen; `sums` (..., S) has one half of each.

    Of one pair it is total / count, of K pairs the mean over the classes whose union is not empty.
    NaN where nothing was seen.
    """
    above, below = np.split(np.asarray(sums, np.float64), 2, axis=-1)
    seen = below > 0
    ratios = np.divide(above, below, out=np.zeros_like(above), where=seen)
    with np.errstate(invalid="ignore"):
        return np.asarray(ratios.sum(axis=-1) / seen.sum(axis=-1))


def unit(vectors: Array) -> NDArray[np.float64]:
    """Scale vectors (..., 3) to length 1 in float64; the zero vector stays zero."""
    vectors = vectors.astype(np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A way to measure a task."""

    name: str
    unit: str
    lower_is_better: bool
    start: Callable[[int], Accumulator]  # takes the number of classes
    score: Callable[[Array], NDArray[np.float64]] = mean_ratio  # of sums (..., S), gives (...)

    def better(self, one: float, other: float) -> bool:
        """Tell whether `one` is strictly better than `other`; NaN is never better."""
        return one < other if self.lower_is_better else one > other


METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="mean_iou", unit="", lower_is_better=False, start=MeanIoU),
        Metric(name="absolute_error", unit="m", lower_is_better=True, start=AbsoluteError),
        Metric(name="disparity_error", unit="", lower_is_better=True, start=AbsoluteError),
        Metric(name="value_error", unit="", lower_is_better=True, start=KnownError),
        Metric(name="mean_angle", unit="°", lower_is_better=True, start=MeanAngle),
        Metric(name="component_error", unit="", lower_is_better=True, start=ComponentError),
    )
}


def metric_named(name: str) -> Metric:
    """Look a metric up, or say which ones there are."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def normalised_performance(
    measured: Mapping[str, float], baseline: Mapping[str, float], metrics: Mapping[str, str]
) -> float:
    """Equation 1 of arXiv 2504.11268: the mean of measured / baseline, or its inverse.

    The inverse is taken where lower is better, so that 1.0 means as good as the baseline and
    more is better. The paper's tables print this number minus 100 %. Each mapping goes from task
    to value, `metrics` from task to metric name. A value divided by zero is infinite, 0 / 0 NaN.
    """
    return float(np.mean(list(performances(measured, baseline, metrics).values())))


def relative_drop(
    measured: Mapping[str, float], baseline: Mapping[str, float], metrics: Mapping[str, str]
) -> float:
    """Equation 2 of arXiv 2504.11268: the mean signed relative change, 0 as good, more is better.

    It is not equation 1 minus 1: an error that doubles counts -1.0 here and -0.5 there, so one
    task that explodes rules the mean.
    """
    return float(np.mean(list(changes(measured, baseline, metrics).values())))


Value = float | NDArray[np.float64]


def performances(
    measured: Mapping[str, Value], baseline: Mapping[str, Value], metrics: Mapping[str, str]
) -> dict[str, NDArray[np.float64]]:
    """Give what equation 1 is the mean of: every task's measured / baseline, or its inverse.

    Values may be arrays of one shape; what comes back has this shape.
    """
    return {
        task: _ratio(baseline[task], value)
        if metric_named(metrics[task]).lower_is_better
        else _ratio(value, baseline[task])
        for task, value in measured.items()
    }


def changes(
    measured: Mapping[str, Value], baseline: Mapping[str, Value], metrics: Mapping[str, str]
) -> dict[str, NDArray[np.float64]]:
    """Give what equation 2 is the mean of, as `performances` does for equation 1."""
    return {
        task: _ratio(value - baseline[task], baseline[task])
        * (-1.0 if metric_named(metrics[task]).lower_is_better else 1.0)
        for task, value in measured.items()
    }


def _ratio(above: Value, below: Value) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.float64(above) / np.float64(below))
