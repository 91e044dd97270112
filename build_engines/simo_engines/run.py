"""Run an engine once: arrays in, arrays out.  For the gate; a server keeps its buffers.

Imports TensorRT, and so is imported late.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_engines.device import Device
from simo_runtime.backends.tensorrt_engine import LoadedEngine, listener, load
from simo_runtime.errors import BackendError, listing

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]


def open_plan(plan: bytes, *, host_code: bool) -> Run:
    """Load a plan that was built here, and give a function that runs it.

    `host_code` must be true for a version-compatible plan, which holds code for the processor.
    """
    engine = load(plan, "the engine", host_code=host_code)

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        device = Device()
        try:
            return _run(engine, device, inputs)
        finally:
            device.close()

    return run


def _run(engine: LoadedEngine, device: Device, inputs: Mapping[str, Array]) -> dict[str, Array]:
    given = {name: as_stored(array, engine.inputs[name]) for name, array in inputs.items()}
    context = engine.context({name: array.shape for name, array in given.items()})
    with ExitStack() as held:
        places = {}
        for name, array in given.items():
            places[name] = held.enter_context(device.memory(array.nbytes))
            device.write(places[name], array)
        for name, kind in engine.outputs.items():
            size = int(np.prod(context.shape(name))) * kind.itemsize
            places[name] = held.enter_context(device.memory(size))
        context.place(places)
        if not context.enqueue(device.stream):
            raise BackendError(f"the engine does not run\n{listing(listener().errors)}")
        device.wait()
        return {
            name: as_float(device.read(places[name], context.shape(name), kind))
            for name, kind in engine.outputs.items()
        }


def as_stored(array: Array, kind: np.dtype[Any]) -> Array:
    """Bring an array to the type that an engine takes; bfloat16 rounds to the nearest, even."""
    if kind != np.uint16:
        return np.ascontiguousarray(array.astype(kind))
    bits = np.ascontiguousarray(array.astype(np.float32)).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def as_float(array: Array) -> Array:
    """Bring bfloat16 back to float32; all else stays."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array
