"""An ONNX graph in, TensorRT's serialized engine (a plan) out.

Imports TensorRT, and so is imported late, by engine.py. `tests/tensorrt-api.json` holds what of
TensorRT is used here; a test follows the annotations `trt.X`, so every object has one.

Precision lives in the graph. A strongly typed network keeps the types that the graph has:
TensorRT 10 must be told, 11 knows no other kind and takes the flag for compatibility. The flag's
number differs (1 in 10, 0 in 11), so only its name may be used.
"""

from functools import cache
from pathlib import Path

import tensorrt as trt

from simo_runtime.engines import BatchRange
from simo_runtime.errors import BackendError, listing


class Listener(trt.ILogger):  # type: ignore[misc]  # tensorrt ships no stubs
    """Keeps TensorRT's errors, which the calls themselves do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: object, message: str) -> None:
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self.errors.append(message)


@cache
def listener() -> Listener:
    """Give the one logger of this process: TensorRT keeps the first that it is given."""
    return Listener()


def make_plan(graph: Path, *, batches: BatchRange, workspace_mib: int, tf32: bool) -> bytes:
    """Build the engine of a graph whose inputs all have the batch as their first axis."""
    logger = listener()
    logger.errors.clear()
    builder = _builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise BackendError(f"{graph}: TensorRT cannot read the graph\n{_faults(parser)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    if tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: 10 bits of float32's 23
    profile = builder.create_optimization_profile()
    _set_batches(profile, network, graph, batches)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"{graph}: TensorRT refuses the batches\n{listing(logger.errors)}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{graph}: TensorRT built no engine\n{listing(logger.errors)}")
    return bytes(plan)


def _builder(logger: Listener) -> "trt.Builder":
    try:
        return trt.Builder(logger)
    except TypeError as error:  # what the bindings make of a null pointer
        found = listing(logger.errors or [str(error)])
        raise BackendError(f"TensorRT cannot start on this machine\n{found}") from error


def _faults(parser: "trt.OnnxParser") -> str:
    """List the parser's errors, each with the node that it is about."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"{error.node_operator()} {error.node_name()}".strip()
        lines.append(f"{node}: {error.desc()}" if node else error.desc())
    return listing(lines)


def _set_batches(
    profile: "trt.IOptimizationProfile",
    network: "trt.INetworkDefinition",
    graph: Path,
    batches: BatchRange,
) -> None:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        first, *rest = tuple(tensor.shape)
        if first != -1 or -1 in rest:
            raise BackendError(
                f"{graph}: the input {tensor.name!r} has the shape {(first, *rest)}; "
                "its first axis, and no other, must be free (-1)"
            )
        profile.set_shape(
            tensor.name,
            (batches.smallest, *rest),
            (batches.tuned, *rest),
            (batches.largest, *rest),
        )
