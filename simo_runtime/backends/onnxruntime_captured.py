"""CUDA graphs in ONNX Runtime: the kernels of a batch size are recorded once and replayed.

A replay writes where the recording wrote, so every batch size has inputs and outputs of its own
that stay on the device. What is recorded is compared with a run that was not: a replay that fails
without saying so gives zeros. All of it runs one call at a time.

Not run on a GPU yet. The CPU provider takes the same calls and records nothing; tests use that.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_runtime.backends import Pixels
from simo_runtime.backends.onnxruntime_graph import OpenGraph, Settings, failures
from simo_runtime.backends.onnxruntime_session import Arrays, OnnxRuntimeSession
from simo_runtime.errors import BackendError

# ONNX element types, for values that no numpy type describes.
ELEMENTS = {"tensor(uint8)": 2, "tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}
GRAPH_ID = "gpu_graph_id"  # ONNX Runtime's name for which recording a run replays; -1: none
RECORDINGS = 8  # batch sizes of one graph; ONNX Runtime cannot forget one
COSINE = 0.9999  # between a replay and a run without recording
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Slot:
    """The values on the device that belong to one recording."""

    number: int
    binding: Any
    images: Mapping[str, Any]  # inputs that come as arrays
    outputs: Mapping[str, Any]


class CapturedGraph(OpenGraph):
    """A graph whose runs are replayed; not to be used by two threads at once."""

    def __init__(self, path: Path, settings: Settings) -> None:
        super().__init__(path, settings)
        self._slots: dict[tuple[object, ...], Slot] = {}

    def values(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Replay, and give the outputs where they lie: they change with the next run."""
        slot = self._slot(inputs)
        if slot is None:
            return super().values(inputs)
        self._replay(slot, inputs)
        return dict(slot.outputs)

    def arrays(self, inputs: Mapping[str, Any], batch: int) -> dict[str, NDArray[Any]]:
        """Replay, and copy every output into an array of its own."""
        slot = self._slot(inputs)
        if slot is None:
            return super().arrays(inputs, batch)
        self._replay(slot, inputs)
        return {name: np.array(value.numpy()) for name, value in slot.outputs.items()}

    def _slot(self, inputs: Mapping[str, Any]) -> Slot | None:
        """Give the recording for these inputs, made if need be; None if there are enough."""
        given = [inputs[name] for name in self.inputs]
        key = tuple(v.shape if isinstance(v, np.ndarray) else v.data_ptr() for v in given)
        if key not in self._slots:
            if len(self._slots) == RECORDINGS:
                return None
            slot = self._made(inputs, len(self._slots))
            self._compare(slot, inputs)
            self._slots[key] = slot
        return self._slots[key]

    def _made(self, inputs: Mapping[str, Any], number: int) -> Slot:
        import onnxruntime

        value = onnxruntime.OrtValue
        binding, images, outputs = self.session.io_binding(), {}, {}
        for name in self.inputs:
            given = inputs[name]
            if isinstance(given, np.ndarray):
                given = images[name] = value.ortvalue_from_numpy(given, self.device)
            binding.bind_ortvalue_input(name, given)
        (batch,) = {_batch(inputs[name]) for name in self.inputs}
        for output in self.session.get_outputs():
            shape, element = (batch, *output.shape[1:]), ELEMENTS[output.type]
            made = value.ortvalue_from_shape_and_type(shape, element, self.device)
            outputs[output.name] = made
            binding.bind_ortvalue_output(output.name, made)
        return Slot(number, binding, images, outputs)

    def _run(self, binding: Any) -> None:
        """Run without recording."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry(GRAPH_ID, "-1")
        with failures(self.path, "ONNX Runtime cannot run the graph"):
            self.session.run_with_iobinding(binding, options)

    def _replay(self, slot: Slot, inputs: Mapping[str, Any], *, recorded: bool = True) -> None:
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry(GRAPH_ID, str(slot.number if recorded else -1))
        with failures(self.path, "ONNX Runtime cannot run the graph"):
            for name, value in slot.images.items():
                value.update_inplace(inputs[name])
            self.session.run_with_iobinding(slot.binding, options)

    def _compare(self, slot: Slot, inputs: Mapping[str, Any]) -> None:
        """Run without recording, then record and replay, and hold the one to the other.

        Outputs that numpy has no type for are looked at in the heads that take them.
        """
        self._replay(slot, inputs, recorded=False)
        expected = _readable(slot)
        self._replay(slot, inputs)
        self._replay(slot, inputs)
        for name, found in _readable(slot).items():
            if not alike(expected[name], found):
                raise BackendError(
                    f"{self.path}: the replay of a CUDA graph gives another {name} than the run "
                    "that it was recorded from; use cuda_graph=False"
                )


class CapturedSession(OnnxRuntimeSession):
    """A session whose graphs are captured: one run at a time, of all such sessions."""

    graph_class = CapturedGraph

    def run(self, pixels_BHW3: Pixels, tasks: Sequence[str]) -> Arrays:
        """Give every task's output, as `Session` says it."""
        with _ONE_AT_A_TIME:
            return super().run(pixels_BHW3, tasks)


def alike(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether two outputs are the same but for the order of sums; NaN is like nothing."""
    if one.dtype == np.uint8:
        return bool(np.mean(one == other) >= COSINE)
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return bool(a @ b >= COSINE * length) if length else bool(np.array_equal(a, b))


def _batch(value: Any) -> int:
    shape = value.shape if isinstance(value, np.ndarray) else value.shape()
    return int(shape[0])


def _readable(slot: Slot) -> dict[str, NDArray[Any]]:
    return {
        name: np.array(value.numpy())
        for name, value in slot.outputs.items()
        if value.data_type() != "tensor(bfloat16)"
    }
