"""How near two outputs come: finite, cosine, the worst patches, relative distance, agreement.

A is what is trusted, B what is looked at. Everything is computed in float64.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """How near an output comes to the one that is trusted."""

    finite: bool
    cosine: float  # of all numbers at once
    worst_patches: float | None  # first percentile of the cosines of tokens; features alone
    distance: float  # |A - B| / |A|
    agreement: float | None  # share of equal classes; classes alone


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How near is near enough."""

    cosine: float
    worst_patches: float
    distance: float
    agreement: float


# Of an engine against ONNX Runtime's float32 on the CPU. Those of fp16 are NVIDIA's for DINOv3.
LIMITS = {
    "fp32": Limits(cosine=0.99999, worst_patches=0.9999, distance=0.002, agreement=0.999),
    "fp16": Limits(cosine=0.999, worst_patches=0.995, distance=0.01, agreement=0.99),
    "bf16": Limits(cosine=0.999, worst_patches=0.99, distance=0.03, agreement=0.98),
    "int8": Limits(cosine=0.99, worst_patches=0.95, distance=0.15, agreement=0.95),
    "fp8": Limits(cosine=0.99, worst_patches=0.95, distance=0.15, agreement=0.95),
}


def nearness(trusted: Array, found: Array, *, tokens: bool = False) -> Nearness:
    """Compare two outputs of one shape; uint8 are classes, `tokens` are features (B, N, D)."""
    if trusted.dtype == np.uint8:
        same = float(np.mean(trusted == found))
        return Nearness(finite=True, cosine=1.0, worst_patches=None, distance=0.0, agreement=same)
    a, b = trusted.astype(np.float64), found.astype(np.float64)
    patches = cosines(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])) if tokens else None
    length = float(np.linalg.norm(a))
    return Nearness(
        finite=bool(np.isfinite(b).all()),
        cosine=float(cosines(a.reshape(1, -1), b.reshape(1, -1))[0]),
        worst_patches=None if patches is None else float(np.percentile(patches, 1)),
        distance=float(np.linalg.norm(a - b)) / (length or 1.0),
        agreement=None,
    )


def cosines(a_ND: Array, b_ND: Array) -> Array:
    """Give the cosine of every pair of rows; of two rows of zeros 1, of one and another 0."""
    lengths = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    equal = (a_ND == b_ND).all(axis=1)
    found = (a_ND * b_ND).sum(axis=1) / np.where(lengths == 0, 1.0, lengths)
    made: Array = np.where(lengths == 0, equal.astype(np.float64), found)
    return made


def faults(name: str, found: Nearness, limits: Limits) -> list[str]:
    """List what is not near enough; written so that NaN is not."""
    lines = [] if found.finite else [f"{name}: there are numbers that are not finite"]
    for what in ("cosine", "worst_patches", "agreement"):
        value, least = getattr(found, what), getattr(limits, what)
        if value is not None and not value >= least:
            lines.append(f"{name}: {what} {value:.6f}, at least {least} is needed")
    if not found.distance <= limits.distance:
        lines.append(f"{name}: distance {found.distance:.3g}, at most {limits.distance} is allowed")
    return lines
