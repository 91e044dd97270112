"""Run a graph, to compare what it gives with what PyTorch gives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]


class Graph:
    """A graph loaded in ONNX Runtime on the CPU: arrays in by name, every output out by name.

    Unless it is `fused` it runs node by node, as it stands.
    """

    def __init__(self, model: onnx.ModelProto | Path, *, fused: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        if not fused:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
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
