"""Compare what a graph gives with what PyTorch gives, and refuse a graph that differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from simo_runtime.errors import ExportError, listing

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near one output of a graph comes to PyTorch's on the same images."""

    task: str
    cosine: float
    largest_difference: float
    metric_torch: float | None = None  # None without labelled images
    metric_onnx: float | None = None

    @property
    def metric_change(self) -> float:
        """The relative change of the task's metric; 0 without labelled images."""
        if self.metric_torch is None or self.metric_onnx is None:
            return 0.0
        return abs(self.metric_onnx - self.metric_torch) / max(abs(self.metric_torch), 1e-12)


def agreement(
    task: str, torch_output: Array, onnx_output: Array, *, metrics: tuple[float, float] | None
) -> Agreement:
    """Compare two arrays of one shape; `metrics` are the task's metric, PyTorch's and ONNX's."""
    one, two = torch_output.astype(np.float64).ravel(), onnx_output.astype(np.float64).ravel()
    length = float(np.linalg.norm(one) * np.linalg.norm(two))
    return Agreement(
        task=task,
        cosine=float(one @ two) / length if length else float(np.array_equal(one, two)),
        largest_difference=float(np.abs(one - two).max()),
        metric_torch=None if metrics is None else metrics[0],
        metric_onnx=None if metrics is None else metrics[1],
    )


def gate(found: Sequence[Agreement], *, cosine: float, metric_change: float) -> None:
    """Raise ExportError, naming every task whose graph is too far from PyTorch."""
    faults = []
    for one in found:
        # written so that NaN fails
        if not one.cosine >= cosine:
            faults.append(f"{one.task}: cosine {one.cosine:.6f}, at least {cosine} is needed")
        if not one.metric_change <= metric_change:
            faults.append(
                f"{one.task}: the metric goes from {one.metric_torch} to {one.metric_onnx}, "
                f"a change of {one.metric_change:.3%}; at most {metric_change:.3%} is allowed"
            )
    if faults:
        raise ExportError(f"the exported graphs differ from PyTorch\n{listing(faults)}")


class Graph:
    """A graph loaded in ONNX Runtime on the CPU: arrays in by name, every output out by name."""

    def __init__(self, model: onnx.ModelProto | Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(model) if isinstance(model, Path) else model.SerializeToString(),
            sess_options=options,
            providers=["CPUExecutionProvider"],
        )
        self.outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = self._session.run(self.outputs, dict(inputs))
        return dict(zip(self.outputs, found, strict=True))
