"""Run an engine once: arrays in, arrays out.  For the gate; a server keeps its buffers.

Imports TensorRT, and so is imported late.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import tensorrt as trt
from numpy.typing import NDArray

from simo_engines.device import Device
from simo_engines.plan import listener
from simo_runtime.errors import BackendError, listing

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]


def open_plan(plan: bytes, *, host_code: bool) -> Run:
    """Load a plan that was built here, and give a function that runs it.

    `host_code` must be true for a version-compatible plan, which holds code for the processor.
    """
    logger = listener()
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = host_code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"TensorRT cannot load the engine\n{listing(logger.errors)}")

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        device = Device()
        try:
            return _run(engine, device, inputs)
        finally:
            device.close()

    return run


def _run(
    engine: "trt.ICudaEngine", device: Device, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    context = engine.create_execution_context()
    with ExitStack() as held:
        outputs = {}
        for name, array in inputs.items():
            given = as_stored(array, numpy_type(engine, name))
            if not context.set_input_shape(name, given.shape):
                raise BackendError(f"the engine does not take {name} of shape {given.shape}")
            address = held.enter_context(device.memory(given.nbytes))
            device.write(address, given)
            context.set_tensor_address(name, address)
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if engine.get_tensor_mode(name) != trt.TensorIOMode.OUTPUT:
                continue
            shape, kind = tuple(context.get_tensor_shape(name)), numpy_type(engine, name)
            address = held.enter_context(device.memory(int(np.prod(shape)) * kind.itemsize))
            context.set_tensor_address(name, address)
            outputs[name] = (address, shape, kind)
        if not context.execute_async_v3(device.stream):
            raise BackendError(f"the engine does not run\n{listing(listener().errors)}")
        device.wait()
        return {name: as_float(device.read(*where)) for name, where in outputs.items()}


def numpy_type(engine: "trt.ICudaEngine", name: str) -> np.dtype[Any]:
    """Give the type that an input or output is stored in; bfloat16 as its 16 bits."""
    kind = engine.get_tensor_dtype(name)
    if kind == trt.DataType.FLOAT:
        return np.dtype(np.float32)
    if kind == trt.DataType.HALF:
        return np.dtype(np.float16)
    if kind == trt.DataType.BF16:
        return np.dtype(np.uint16)
    if kind == trt.DataType.UINT8:
        return np.dtype(np.uint8)
    raise BackendError(f"{name}: no graph of a bundle has an input or output of this type")


def as_stored(array: Array, kind: np.dtype[Any]) -> Array:
    """Bring an array to the type that an engine takes; bfloat16 rounds to the nearest, even."""
    if kind != np.uint16:
        return np.ascontiguousarray(array.astype(kind))
    bits = np.ascontiguousarray(array.astype(np.float32)).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def as_float(array: Array) -> Array:
    """Bring bfloat16 back to float32; all else stays."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array
