"""ONNX Runtime on the CPU: the default, which works anywhere.

Features go from the encoder to the heads as ONNX Runtime values, bound on both sides: they are
never copied and never become Python objects.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError

Pixels = NDArray[np.uint8]


class OnnxRuntimeCpu:
    """The backend; it holds nothing."""

    name = "onnxruntime-cpu"

    def why_not(self) -> str | None:
        if find_spec("onnxruntime") is None:
            return "onnxruntime is not installed: pip install onnxruntime"
        return None

    def open(self, bundle: Bundle, *, threads: int | None) -> "OnnxRuntimeCpuSession":
        return OnnxRuntimeCpuSession(bundle, threads or available_cpus())


class OnnxRuntimeCpuSession:
    """One encoder session and one session a head, opened when they are first asked for.

    `run` may be called from several threads at once.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._bundle = bundle
        self._threads = threads
        self._sessions: dict[str, Any] = {}
        self._session("encoder")

    def run(self, pixels_BHW3: Pixels, tasks: Sequence[str]) -> dict[str, NDArray[Any]]:
        encoder = self._session("encoder").io_binding()
        encoder.bind_cpu_input("image", np.ascontiguousarray(pixels_BHW3))
        for feature in self._bundle.manifest.features:
            encoder.bind_output(feature, "cpu")
        self._session("encoder").run_with_iobinding(encoder)
        features = dict(zip(self._bundle.manifest.features, encoder.get_outputs(), strict=True))
        return {task: self._head(task, features) for task in tasks}

    def _head(self, task: str, features: dict[str, Any]) -> NDArray[Any]:
        session = self._session(task)
        head = session.io_binding()
        for value in session.get_inputs():
            head.bind_ortvalue_input(value.name, features[value.name])
        head.bind_output(task, "cpu")
        session.run_with_iobinding(head)
        return np.asarray(head.get_outputs()[0].numpy())

    def _session(self, name: str) -> Any:
        # Two threads may both open a session; either one serves, and the dictionary keeps one.
        if name not in self._sessions:
            self._sessions.setdefault(name, open_graph(self._bundle, name, self._threads))
        return self._sessions[name]

    def close(self) -> None:
        self._sessions.clear()


def open_graph(bundle: Bundle, name: str, threads: int) -> Any:
    """Open one graph of a bundle in ONNX Runtime; BackendError if it cannot."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    path = bundle.graph(name)
    try:
        return onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NoSuchFile,
        errors.NotImplemented,
        errors.RuntimeException,
    ) as error:
        raise BackendError(f"{path}: ONNX Runtime cannot load the graph: {error}") from error


def available_cpus() -> int:
    """Count the CPUs that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


BACKEND = OnnxRuntimeCpu()
