"""Whether an arm gives the answers that it should: without that, its time says nothing.

The reference of an arm is its own model in fp32, encoder and heads one by one, in ONNX Runtime on
the CPU. That graph was compared with PyTorch when the bundle was built; what was found then is in
the bundle, and is told in the report.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[Any]]

# The least cosine of values, and the least share of pixels with the same class: for fewer bits
# those of the build's gate.
LEAST = {"fp32": (0.99999, 0.999), "fp16": (0.999, 0.99), "bf16": (0.999, 0.97)}
LEAST_OTHER = (0.99, 0.9)


@dataclass(frozen=True, kw_only=True)
class Equality:
    """What comparing one output with its reference found."""

    task: str
    measure: str  # "cosine", or "equal pixels" for classes
    found: float
    least: float
    finite: bool

    @property
    def passed(self) -> bool:
        """Tell whether it is near enough; no number is not."""
        return self.finite and self.found >= self.least

    def plain(self) -> dict[str, Any]:
        """Give plain values."""
        return {**asdict(self), "passed": self.passed}


def compare(found: Outputs, wanted: Outputs, precision: str) -> list[Equality]:
    """Compare every task's output; a missing one has no equality at all."""
    cosine, pixels = LEAST.get(precision, LEAST_OTHER)
    rows = []
    for task, reference in wanted.items():
        output = found.get(task)
        classes = reference.dtype.kind in "ui"
        rows.append(
            Equality(
                task=task,
                measure="equal pixels" if classes else "cosine",
                found=_measured(output, reference, classes),
                least=pixels if classes else cosine,
                finite=output is not None and bool(np.isfinite(output).all()),
            )
        )
    return rows


def _measured(output: NDArray[Any] | None, reference: NDArray[Any], classes: bool) -> float:
    if output is None or output.shape != reference.shape:
        return 0.0
    if classes:
        return float((output == reference).mean())
    one, two = output.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    length = float(np.linalg.norm(one) * np.linalg.norm(two))
    value = float(one @ two) / length if length else float(np.array_equal(one, two))
    return value if np.isfinite(value) else 0.0
