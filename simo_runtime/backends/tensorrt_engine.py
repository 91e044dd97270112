"""Engines of TensorRT and their contexts: the only file of the runtime that calls TensorRT.

`simo_engines` runs engines with it too. Imports TensorRT, and so is imported late. Its objects stay
in here, behind functions that are told their types, so that `tests/test_tensorrt_api.py` can follow
them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import tensorrt as trt

from simo_runtime.errors import BackendError, listing

Shape = tuple[int, ...]
Types = dict[str, np.dtype[Any]]


class Listener(trt.ILogger):  # type: ignore[misc]  # tensorrt ships no stubs
    """Keeps TensorRT's errors, which the calls themselves do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: object, message: str) -> None:
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self.errors = [*self.errors[-9:], message]


@cache
def listener() -> Listener:
    """Give the one logger of this process: TensorRT keeps the first that it is given."""
    return Listener()


def tensorrt_version() -> str:
    """Give TensorRT's version."""
    return str(trt.__version__)


@dataclass(frozen=True)
class Context:
    """What can be done with an execution context whose inputs have their shapes."""

    shape: Callable[[str], Shape]  # of an input or output
    place: Callable[[Mapping[str, int]], None]  # say where inputs and outputs lie
    enqueue: Callable[[int], bool]  # put the work on a stream; false if TensorRT refuses


@dataclass(frozen=True)
class LoadedEngine:
    """An engine: the types its inputs and outputs are stored in, and how to make a context."""

    inputs: Types
    outputs: Types
    context: Callable[[Mapping[str, Shape]], Context]


def load(plan: bytes, name: str, *, host_code: bool) -> LoadedEngine:
    """Load an engine that was built here; BackendError if TensorRT cannot.

    `host_code` must be true for a version-compatible plan, which holds code for the processor.
    """
    runtime = trt.Runtime(listener())
    runtime.engine_host_code_allowed = host_code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"TensorRT cannot load {name}\n{listing(listener().errors)}")
    inputs: Types = {}
    outputs: Types = {}
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs)[tensor] = stored_type(engine, tensor)
    return LoadedEngine(inputs, outputs, partial(new_context, runtime, engine, name, list(inputs)))


def new_context(
    runtime: "trt.Runtime",  # the engine needs it for as long as it lives
    engine: "trt.ICudaEngine",
    name: str,
    inputs: list[str],
    shapes: Mapping[str, Shape],
) -> Context:
    """Make a context; BackendError without memory for it, or for a shape it does not take."""
    context = engine.create_execution_context()
    if context is None:
        raise BackendError(
            f"the memory of the GPU is full: TensorRT makes no context of {name}\n"
            "Give a smaller --batch, or stop other programs."
        )
    for tensor in inputs:
        if not context.set_input_shape(tensor, shapes[tensor]):
            raise BackendError(f"{name}: the engine takes no {tensor} of {shapes[tensor]}")

    def place(addresses: Mapping[str, int]) -> None:
        for tensor, address in addresses.items():
            if not context.set_tensor_address(tensor, address):
                raise BackendError(f"{name}: the engine has no {tensor}")

    return Context(
        shape=lambda tensor: tuple(context.get_tensor_shape(tensor)),
        place=place,
        enqueue=lambda handle: bool(context.execute_async_v3(handle)),
    )


def stored_type(engine: "trt.ICudaEngine", name: str) -> np.dtype[Any]:
    """Give the type of an input or output; bfloat16, which only features have, as 16 bits."""
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
