"""What a graph must keep of PyTorch's answers, and in what it fails."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a graph may be from PyTorch."""

    cosine: float  # at least
    patch_cosine: float  # of features: the cosine that one patch in a hundred is below, at least
    frobenius: float  # |x - y| / |y|, at most
    argmax: float  # share of pixels of the same class, at least
    metric_change: float  # relative, at most


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near one output of a graph comes to PyTorch's on the same images."""

    task: str  # or a tap
    finite: bool
    cosine: float
    frobenius: float
    largest_difference: float
    patch_cosine: float | None = None  # of taps
    argmax: float | None = None  # of tasks with classes
    metric_torch: float | None = None  # None without labelled images
    metric_onnx: float | None = None

    @property
    def metric_change(self) -> float:
        """The relative change of the task's metric; 0 without labelled images."""
        if self.metric_torch is None or self.metric_onnx is None:
            return 0.0
        return abs(self.metric_onnx - self.metric_torch) / max(abs(self.metric_torch), 1e-12)


def faults(found: Agreement, limits: Limits) -> Iterator[str]:
    """Say in what a graph is too far from PyTorch; comparisons are such that NaN fails."""
    if not found.finite:
        yield f"{found.task}: there are numbers that are not finite"
    least = [("cosine", found.cosine), ("patch_cosine", found.patch_cosine)]
    for name, value in [*least, ("argmax", found.argmax)]:
        limit = getattr(limits, name)
        if value is not None and not value >= limit:
            yield f"{found.task}: {_words(name)} {value:.6f}, at least {limit} is needed"
    if not found.frobenius <= limits.frobenius:
        yield (
            f"{found.task}: relative difference {found.frobenius:.6f}, "
            f"at most {limits.frobenius} is allowed"
        )
    if not found.metric_change <= limits.metric_change:
        yield (
            f"{found.task}: the metric goes from {found.metric_torch} to {found.metric_onnx}, "
            f"a change of {found.metric_change:.3%}; at most {limits.metric_change:.3%} is allowed"
        )


def _words(name: str) -> str:
    said = {"patch_cosine": "cosine of the worst hundredth of patches", "argmax": "same classes"}
    return said.get(name, name)
