"""Sum up how near one output comes to another, image by image, so that nothing large is kept.

Needs numpy alone: engines are held to graphs by it where there is neither PyTorch nor onnx.
Shapes: B images, S = P + N tokens, D width; heads' outputs as they come.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_export.gate import Agreement

Array = NDArray[Any]


@dataclass
class Meter:
    """The sums that an agreement is made of."""

    task: str
    classes: bool = False
    tokens: bool = False
    prefix: int = 0
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))  # xy, xx, yy, (x - y)^2
    largest: float = 0.0
    finite: bool = True
    pixels: int = 0
    same: int = 0
    cosines: list[Array] = field(default_factory=list)

    def update(self, expected: Array, found: Array) -> None:
        """Add the same output of both, PyTorch's first."""
        with np.errstate(invalid="ignore", over="ignore"):
            self._update(expected.astype(np.float64), found.astype(np.float64))

    def _update(self, one: Array, two: Array) -> None:
        self.finite &= bool(np.isfinite(two).all())
        apart = one - two
        self.sums += [
            np.vdot(a, b) for a, b in ((one, two), (one, one), (two, two), (apart, apart))
        ]
        self.largest = float(np.fmax(self.largest, np.abs(apart).max()))
        if self.classes:
            self.pixels += one[:, 0].size
            self.same += int((one.argmax(axis=1) == two.argmax(axis=1)).sum())
        if self.tokens:
            self.cosines.append(_cosines(one[:, self.prefix :], two[:, self.prefix :]))

    def agreement(self, metrics: tuple[float, float] | None = None) -> Agreement:
        """Give the agreement; `metrics` are the task's metric, PyTorch's and ONNX's."""
        both, one, two, apart = self.sums
        with np.errstate(invalid="ignore"):  # what is not finite is to be found, not warned of
            length = np.sqrt(one) * np.sqrt(two)
            cosine = both / length if length else float(apart == 0)
        patches = np.concatenate([found.ravel() for found in self.cosines]) if self.tokens else None
        return Agreement(
            task=self.task,
            finite=self.finite,
            cosine=float(cosine),
            frobenius=float(np.sqrt(apart / one)) if one else float(apart > 0),
            largest_difference=self.largest,
            patch_cosine=None if patches is None else float(np.percentile(patches, 1)),
            argmax=self.same / self.pixels if self.classes else None,
            metric_torch=None if metrics is None else metrics[0],
            metric_onnx=None if metrics is None else metrics[1],
        )


def _cosines(one_BND: Array, two_BND: Array) -> Array:
    lengths_BN = np.linalg.norm(one_BND, axis=-1) * np.linalg.norm(two_BND, axis=-1)
    return np.asarray((one_BND * two_BND).sum(axis=-1) / np.maximum(lengths_BN, 1e-30))
