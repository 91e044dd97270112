"""How sure a measured number is: a paired bootstrap over the images of a split.

A resample draws as many images as there are, with replacement. Both models of a comparison, and the
experts that they are compared with, get the same images, so that what is hard about an image does
not count as a difference between them. Metrics are computed anew from the sums of every image
(`Accumulator.sums`), never averaged over images.

Shapes: n images, S sums, R resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_runtime.metrics import changes, metric_named, performances
from simo_runtime.tasks import TaskSpec

Array = NDArray[np.float64]
Interval = tuple[float, float] | None
EQUATIONS = ("normalised_performance", "relative_drop")


@dataclass(frozen=True)
class Measured:
    """What one model came to on a split: the sums of every image by task, (n, S)."""

    specs: Mapping[str, TaskSpec]
    sums: Mapping[str, Array]

    def metrics(self) -> dict[str, float]:
        """Give the metric of every task over the whole split."""
        return {
            task: float(self._score(task, sums.sum(axis=0))) for task, sums in self.sums.items()
        }

    def resampled(self, counts_Rn: Array) -> dict[str, Array]:
        """Give the metric of every task (R,), image i counted as often as a row says."""
        return {task: self._score(task, counts_Rn @ sums) for task, sums in self.sums.items()}

    def _score(self, task: str, sums: Array) -> Array:
        return metric_named(self.specs[task].metric).score(sums)

    def compared(self, baseline: "Measured", counts_Rn: Array | None = None) -> dict[str, Array]:
        """Give both equations and every task's performance against a baseline.

        They are numbers, or with resamples arrays (R,). Tasks' are under `performance.<task>`.
        """
        one, two = (
            each.metrics() if counts_Rn is None else each.resampled(counts_Rn)
            for each in (self, baseline)
        )
        kinds = {task: spec.metric for task, spec in self.specs.items()}
        ratios, drops = performances(one, two, kinds), changes(one, two, kinds)
        return {
            "normalised_performance": np.mean(list(ratios.values()), axis=0),
            "relative_drop": np.mean(list(drops.values()), axis=0),
            **{f"performance.{task}": ratio for task, ratio in ratios.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The resamples of a split's images: the same for everything that is measured on it."""

    images: int
    resamples: int = 2000
    seed: int = 0
    level: float = 0.95

    @cached_property
    def counts_Rn(self) -> Array:
        """How often every resample has every image; a row's sum is the number of images."""
        draw = np.random.default_rng(self.seed)
        shares = np.full(self.images, 1.0 / self.images)
        return draw.multinomial(self.images, shares, size=self.resamples).astype(np.float64)

    def about(self) -> dict[str, Any]:
        """Describe it in plain values."""
        return {
            "resamples": self.resamples,
            "seed": self.seed,
            "level": self.level,
            "over": "images",
            "paired": True,
        }

    def interval(self, values_R: Array) -> Interval:
        """Give the percentiles that leave half of 1 - level on either side.

        None says that there is no interval: of one image, or where resamples have no number.
        """
        if self.images < 2 or not np.isfinite(values_R).all():
            return None
        tail = (1.0 - self.level) / 2
        low, high = np.quantile(values_R, (tail, 1.0 - tail))
        return float(low), float(high)


def against(measured: Measured, experts: Measured, bootstrap: Bootstrap) -> dict[str, Any]:
    """Compare a model with the experts: equations 1 and 2, every task's performance, intervals."""
    whole = {name: float(value) for name, value in measured.compared(experts).items()}
    drawn = measured.compared(experts, bootstrap.counts_Rn)
    found: dict[str, Any] = {name: whole[name] for name in EQUATIONS}
    found["performance"] = {task: whole[f"performance.{task}"] for task in measured.sums}
    ends = {name: bootstrap.interval(values) for name, values in drawn.items()}
    found["interval"] = {
        **{name: ends[name] for name in EQUATIONS},
        "performance": {task: ends[f"performance.{task}"] for task in measured.sums},
    }
    return found


def difference(
    one: Measured, other: Measured, experts: Measured, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Give by how much the first model is better than the second, by both equations.

    All three models see the same images in every resample; where an interval does not hold 0, the
    two differ by more than the choice of images explains.
    """
    whole = [model.compared(experts) for model in (one, other)]
    drawn = [model.compared(experts, bootstrap.counts_Rn) for model in (one, other)]
    found: dict[str, Any] = {name: float(whole[0][name] - whole[1][name]) for name in EQUATIONS}
    found["interval"] = {
        name: bootstrap.interval(drawn[0][name] - drawn[1][name]) for name in EQUATIONS
    }
    return found
