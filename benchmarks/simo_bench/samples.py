"""What samples of one quantity say: percentiles, paired ratios with an interval, steadiness.

Samples come in groups, one a process, each in the order in which they were taken.  A ratio is
formed round by round: what slows a machine down for a while slows both arms of a round.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from statistics import median

import numpy as np

Groups = Sequence[Sequence[float]]

RESAMPLES, LEVEL = 2000, 0.95
SPREAD = {"cpu": 0.10, "gpu": 0.025}  # coefficient of variation of one arm's times
DRIFT = 0.05  # between the medians of the first and the second half of a process
APART = 0.10  # between the medians of the slowest and the fastest process
LOAD = 0.05  # of the CPUs' time, used by others
WIDE = 0.03  # half an interval, as a share of its median
HALVES = 8  # samples in a process, below which halves say nothing


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Count, mean and percentiles. A percentile is None where too few samples are beyond it."""

    count: int
    mean: float
    std: float
    cv: float
    least: float
    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    most: float


def summary(groups: Groups) -> Summary:
    """Summarise all samples of all processes; the standard deviation is that of the samples.

    A percentile needs one sample beyond it: p90 ten samples, p95 twenty, p99 a hundred.
    """
    values = np.array(pooled(groups), np.float64)
    mean, std = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Summary(
        count=len(values),
        mean=mean,
        std=std,
        cv=std / mean,
        least=float(values.min()),
        p50=float(np.percentile(values, 50)),
        p90=_percentile(values, 90),
        p95=_percentile(values, 95),
        p99=_percentile(values, 99),
        most=float(values.max()),
    )


def _percentile(values: "np.typing.NDArray[np.float64]", rank: int) -> float | None:
    needed = ceil(100 / (100 - rank))
    return float(np.percentile(values, rank)) if len(values) >= needed else None


def pooled(groups: Groups) -> list[float]:
    """Put the samples of all processes together."""
    return list(chain.from_iterable(groups))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How samples of one process are spread, in short."""

    count: int
    median: float
    p05: float
    p95: float


def spread(samples: Sequence[float]) -> Spread:
    """Give count, median and the 5th and 95th percentile."""
    low, middle, high = np.percentile(samples, (5, 50, 95))
    return Spread(count=len(samples), median=float(middle), p05=float(low), p95=float(high))


def rounded(samples: Sequence[float]) -> dict[str, float]:
    """Give the same in plain values, to six decimals."""
    return {name: round(value, 6) for name, value in vars(spread(samples)).items()}


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The median of paired ratios and the ends of its interval."""

    median: float
    low: float
    high: float
    count: int
    processes: int

    @property
    def wide(self) -> bool:
        """Tell whether the interval is too wide to say much."""
        return (self.high - self.low) / 2 > WIDE * self.median


def paired(above: Groups, below: Groups) -> list[list[float]]:
    """Divide two arms' times round by round."""
    return [
        [a / b for a, b in zip(one, other, strict=True)]
        for one, other in zip(above, below, strict=True)
    ]


def ratio_of(above: Groups, below: Groups, *, seed: int = 0) -> Ratio:
    """Give the median of the paired ratios of two arms, with a bootstrap interval of 95 %."""
    ratios = paired(above, below)
    low, high = interval(ratios, seed=seed)
    values = pooled(ratios)
    return Ratio(
        median=median(values), low=low, high=high, count=len(values), processes=len(ratios)
    )


def interval(groups: Groups, *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Give the 95 % bootstrap interval of the median.

    Processes are drawn with replacement, and then rounds within each, since the rounds of one
    process have more in common than those of two. Axes: R resamples, P processes, n rounds.
    """
    draw, most = np.random.default_rng(seed), max(map(len, groups))
    padded, sizes = np.full((len(groups), most), np.nan), np.array([len(one) for one in groups])
    for row, group in zip(padded, groups, strict=True):
        row[: len(group)] = group
    chosen_RP = draw.integers(len(groups), size=(resamples, len(groups)))
    share_RPn = draw.random((resamples, len(groups), most))
    rounds_RPn = (share_RPn * sizes[chosen_RP][..., None]).astype(np.int64)
    drawn_RPn = padded[chosen_RP[..., None], rounds_RPn]
    if len(set(sizes)) > 1:  # a shorter process gives as many rounds as it has
        drawn_RPn[np.arange(most) >= sizes[chosen_RP][..., None]] = np.nan
    medians = np.nanmedian(drawn_RPn.reshape(resamples, -1), axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return float(low), float(high)


def unsteady(groups: Groups, *, device: str) -> list[str]:
    """Say in what way an arm's times are unsteady; nothing if they are steady.

    `device` is "cpu" or "gpu": a GPU's times spread less.
    """
    found = []
    cv, limit = summary(groups).cv, SPREAD[device]
    if cv > limit:
        found.append(f"spread {cv:.0%}, at most {limit:.1%}")
    moved = max((drift(group) for group in groups), default=0.0)
    if moved > DRIFT:
        found.append(f"drift {moved:.0%} within a process, at most {DRIFT:.0%}")
    middles = [median(group) for group in groups]
    if max(middles) > (1 + APART) * min(middles):
        found.append(f"processes {max(middles) / min(middles) - 1:.0%} apart, at most {APART:.0%}")
    return found


def drift(group: Sequence[float]) -> float:
    """Give by how much the medians of the two halves of a process differ; 0 for a short one."""
    if len(group) < HALVES:
        return 0.0
    half = len(group) // 2
    return abs(median(group[half:]) / median(group[:half]) - 1)


def disturbed(loads: Iterable[float | None], *, throttled: bool) -> list[str]:
    """Say what else was going on: others' share of the CPUs in every process, a slowed clock."""
    known = [load for load in loads if load is not None]
    found = []
    if known and max(known) > LOAD:
        found.append(f"other programs used {max(known):.0%} of the CPUs, at most {LOAD:.0%}")
    if throttled:
        found.append("the clock was throttled")
    return found
