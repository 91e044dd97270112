"""One graph in ONNX Runtime, shared by everyone in this process who opens the same one.

Used by every backend that runs on ONNX Runtime. A graph is opened once for the same file and the
same settings, and closed when the last user lets go of it.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import BackendError

TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
# How allocators of ONNX Runtime and CUDA say that memory is full.
FULL = ("failed to allocate memory", "out of memory", "bad allocation", "bad_alloc", "cudaerrormem")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a session besides its graph."""

    providers: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]  # name, options; first is asked
    threads: int
    arena: bool = True
    config: tuple[tuple[str, str], ...] = ()  # session.* entries
    device: str = "cpu"  # where features stay between encoder and heads


class OpenGraph:
    """A graph that is open; `run` may be called from several threads at once."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.device = path, settings.device
        with failures(path, "ONNX Runtime cannot load the graph"):
            self.session = _session(path, settings)
        self.inputs = [value.name for value in self.session.get_inputs()]
        self._outputs = {value.name: value for value in self.session.get_outputs()}

    def bind(self, inputs: Mapping[str, Any]) -> Any:
        """Start a run: bind arrays of the CPU (uint8) or ONNX Runtime's own values, by name."""
        binding = self.session.io_binding()
        for name in self.inputs:
            value = inputs[name]
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        return binding

    def values(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run and leave every output on the device, as ONNX Runtime's own value."""
        binding = self.bind(inputs)
        for name in self._outputs:
            binding.bind_output(name, self.device)
        self._run(binding)
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))

    def arrays(self, inputs: Mapping[str, Any], batch: int) -> dict[str, NDArray[Any]]:
        """Run and write every output into an array of its own, without a copy on the CPU."""
        import onnxruntime

        binding, arrays = self.bind(inputs), {}
        for name, output in self._outputs.items():
            arrays[name] = np.empty((batch, *output.shape[1:]), TYPES[output.type])
            value = onnxruntime.OrtValue.ortvalue_from_numpy(arrays[name])
            binding.bind_ortvalue_output(name, value)
        self._run(binding)
        return arrays

    def _run(self, binding: Any) -> None:
        with failures(self.path, "ONNX Runtime cannot run the graph"):
            self.session.run_with_iobinding(binding)


_OPEN: WeakValueDictionary[tuple[Path, str, Settings], OpenGraph] = WeakValueDictionary()
_LOCKS: dict[tuple[Path, str, Settings], threading.Lock] = {}
_GUARD = threading.Lock()


def open_graph(
    path: Path, content: str, settings: Settings, kind: type[OpenGraph] = OpenGraph
) -> OpenGraph:
    """Open a graph, or give the one that is open already; BackendError if it cannot be.

    `content` is a hash of graph and weights, so that a bundle that was exchanged is another one.
    The settings of different kinds differ.
    """
    key = (path.resolve(), content, settings)
    with _GUARD:
        lock = _LOCKS.setdefault(key, threading.Lock())
    with lock:
        graph = _OPEN.get(key)
        if graph is None:
            graph = _OPEN[key] = kind(path, settings)
    return graph


def _session(path: Path, settings: Settings) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = options.enable_mem_pattern = settings.arena
    # A session's threads spin for some 30 ms after a run, in case another follows, and take that
    # time from the graph that runs next: from a head, another model, the decoding of a photo.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for name, value in settings.config:
        options.add_session_config_entry(name, value)
    providers = [(name, dict(entries)) for name, entries in settings.providers]
    session = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=providers, enable_fallback=0
    )
    asked, active = settings.providers[0][0], session.get_providers()
    if asked not in active:
        raise BackendError(
            f"{path}: {asked} was asked for, and ONNX Runtime runs on {', '.join(active)} instead; "
            "simo-infer --doctor says what is missing"
        )
    return session


@contextmanager
def failures(path: Path, what: str) -> Iterator[None]:
    """Turn ONNX Runtime's exceptions into BackendError; memory that is full says what to do."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        yield
    except (
        MemoryError,
        RuntimeError,
        ValueError,
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    ) as error:
        text = str(error) or type(error).__name__
        if isinstance(error, MemoryError) or any(word in text.lower() for word in FULL):
            text = f"the memory is full: {text}\nGive a smaller --batch, or stop other programs."
        raise BackendError(f"{path}: {what}: {text}") from error
