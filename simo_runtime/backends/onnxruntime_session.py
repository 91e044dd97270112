"""A bundle in ONNX Runtime: the encoder once, then the heads that are asked for.

Features go from the encoder to the heads as ONNX Runtime values, bound on both sides: they are
never copied and never become Python objects. Where a bundle has one graph of everything, all tasks
at once can run in it; which way is faster is timed at the first use and remembered.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_runtime.backends import Joint, Pixels, check_joint
from simo_runtime.backends.onnxruntime_graph import OpenGraph, Settings, open_graph
from simo_runtime.bundle import Bundle, signature
from simo_runtime.errors import BackendError, BundleError
from simo_runtime.gpu import find_gpu
from simo_runtime.graphs import ENCODER, IMAGE, JOINT
from simo_runtime.heap import give_back
from simo_runtime.remembered import recall, remember

PAIRS, SECONDS = 3, 2.0  # of the measurement that chooses: at most so many runs each, so much time

Arrays = dict[str, NDArray[Any]]


class OnnxRuntimeSession:
    """Graphs are opened when they are first needed; `run` may be called from several threads."""

    graph_class = OpenGraph

    def __init__(
        self, bundle: Bundle, settings: Settings, *, precision: str = "fp32", joint: Joint = "auto"
    ) -> None:
        self._bundle, self._settings, self._precision = bundle, settings, precision
        self._names = bundle.manifest.graph_files(precision).named()
        self._tasks = frozenset(task.name for task in bundle.manifest.tasks)
        self._lock = threading.Lock()
        self._open: dict[str, OpenGraph] | None = {}
        # Weights lie beside their graph, under its name; only they are mapped, graphs are read.
        weights = {Path(file).with_suffix(".bin").name for file in self._names.values()}
        self._mapped = {
            str(bundle.root / name): one for name, one in bundle.seen.items() if name in weights
        }
        self._content = bundle.content()
        check_joint(bundle, precision, joint)
        known = recall("joint", self._key()) if joint == "auto" else joint
        self._joint: bool | None = False if JOINT not in self._names else known
        self._graph(JOINT if self._joint else ENCODER)

    def run(self, pixels_BHW3: Pixels, tasks: Sequence[str]) -> Arrays:
        """Give every task's output, as `Session` says it."""
        self._unchanged()
        pixels = np.ascontiguousarray(pixels_BHW3)
        if self._tasks.issubset(tasks) and self._one_graph(pixels):
            return self._run_joint(pixels)
        return self._run_split(pixels, tasks)

    def _run_joint(self, pixels: Pixels) -> Arrays:
        return self._graph(JOINT).arrays({IMAGE: pixels}, len(pixels))

    def _run_split(self, pixels: Pixels, tasks: Sequence[str]) -> Arrays:
        features = self._graph(ENCODER).values({IMAGE: pixels})
        return {t: self._graph(t).arrays(features, len(pixels))[t] for t in tasks}

    def _one_graph(self, pixels: Pixels) -> bool:
        """Tell whether all tasks run in one graph; the first call may have to time both ways."""
        with self._lock:
            if self._joint is None:
                tasks = sorted(self._tasks)
                joint, split = timed(
                    lambda: self._run_joint(pixels), lambda: self._run_split(pixels, tasks)
                )
                self._joint = joint < split
                remember("joint", self._key(), self._joint)
                self._forget([JOINT] if not self._joint else [ENCODER, *tasks])
            return self._joint

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            if self._open is not None:
                self._open.pop(name, None)

    def _key(self) -> dict[str, Any]:
        files = self._bundle.manifest.files
        return {
            "graphs": {name: files[file].sha256 for name, file in self._names.items()},
            "settings": repr(self._settings),
            "onnxruntime": version(),
        }

    def _graph(self, name: str) -> OpenGraph:
        graphs = self._open
        if graphs is None:
            raise BackendError(f"{self._bundle.root}: the predictor is closed; open it again")
        if name not in graphs:
            self._bundle.check_untouched()
            path = self._bundle.graph(name, self._precision)
            # Two threads may both come here; they are given the same graph.
            graphs.setdefault(
                name, open_graph(path, self._content, self._settings, self.graph_class)
            )
        return graphs[name]

    def _unchanged(self) -> None:
        """Refuse weights that were written over: ONNX Runtime has them mapped, not read."""
        for path, before in self._mapped.items():
            now = signature(path)
            if now is not None and now != before and now[0] == before[0]:
                raise BundleError(
                    f"{path}: changed while the bundle was open; "
                    "build or copy the bundle again, and open it again"
                )

    def identity(self) -> dict[str, str]:
        """Name the options, and the GPU with its driver where one computes."""
        gpu = {} if self._settings.device == "cpu" else {"gpu": repr(find_gpu())}
        return {"settings": repr(self._settings), **gpu}

    def close(self) -> None:
        """Let go of the graphs; those that nobody else uses are closed, and leave the memory."""
        self._open = None
        give_back()


def timed(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Give the shortest of a few alternating runs of each, in seconds, after one to warm up."""
    one(), other()
    start, best = time.perf_counter(), [float("inf"), float("inf")]
    for _ in range(PAIRS):
        for index, function in enumerate((one, other)):
            before = time.perf_counter()
            function()
            best[index] = min(best[index], time.perf_counter() - before)
        if time.perf_counter() - start > SECONDS:
            break
    return best[0], best[1]


def version() -> str:
    """Give ONNX Runtime's version, or say that there is none."""
    try:
        import onnxruntime
    except ImportError:
        return "not installed"
    return str(onnxruntime.__version__)
