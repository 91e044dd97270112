"""An ONNX graph in, TensorRT's serialized engine (a plan) out.

Imports TensorRT, and so is imported late, by engine.py. `tests/tensorrt-api.json` holds what of
TensorRT is used here; a test follows the annotations `trt.X`, so every object has one.

Precision lives in the graph. A strongly typed network keeps the types that the graph has:
TensorRT 10 must be told, 11 knows no other kind and takes the flag for compatibility. The flag's
number differs (1 in 10, 0 in 11), so only its name may be used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt

from simo_runtime.backends.tensorrt_engine import Listener, listener
from simo_runtime.engines import BatchRange, EngineOptions
from simo_runtime.errors import BackendError, listing

Steps = Callable[[str, int, int], None]  # a phase's name, steps done, steps in all


@dataclass(frozen=True)
class Built:
    """What a build gives."""

    plan: bytes
    timings: bytes  # of kernels, for the next build
    layers: str  # the engine inspector's JSON


class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # tensorrt ships no stubs
    """Tells how far a build is, and ends it when the user does.

    TensorRT calls from C++, through which no exception may go.
    """

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.stopped = False
        self._steps = steps
        self._phases: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self._phases[phase_name] = num_steps
        self._tell(phase_name, 0)

    def step_complete(self, phase_name: str, step: int) -> bool:
        self._tell(phase_name, step + 1)
        return not self.stopped

    def phase_finish(self, phase_name: str) -> None:
        self._tell(phase_name, self._phases.get(phase_name, 0))
        self._phases.pop(phase_name, None)

    def _tell(self, phase: str, step: int) -> None:
        try:
            self._steps(phase, step, self._phases.get(phase, 0))
        except KeyboardInterrupt:
            self.stopped = True


def make_plan(graph: Path, options: EngineOptions, *, timings: bytes, steps: Steps) -> Built:
    """Build the engine of a graph whose inputs all have the batch as their first axis.

    `timings` are those of an earlier build, or nothing; those of another GPU or another TensorRT
    are not used. Raises BackendError with what TensorRT says, KeyboardInterrupt if the user ends
    the build.
    """
    logger = listener()
    logger.errors.clear()
    builder = _builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise BackendError(f"{graph}: TensorRT cannot read the graph\n{_faults(parser)}")
    config = builder.create_builder_config()
    _configure(config, options)
    measured = _timing_cache(config, timings)
    monitor = Monitor(steps)
    config.progress_monitor = monitor
    profile = builder.create_optimization_profile()
    _set_batches(profile, network, graph, options.batches)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"{graph}: TensorRT refuses the batches\n{listing(logger.errors)}")
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if plan is None:
        raise BackendError(f"{graph}: TensorRT built no engine\n{listing(logger.errors)}")
    found = bytes(plan)
    return Built(found, bytes(measured.serialize()), inspect(found, options))


def _configure(config: "trt.IBuilderConfig", options: EngineOptions) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector then tells types
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: 10 bits of float32's 23
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware == "ampere_plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif options.hardware == "same_compute_capability":
        level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
        config.hardware_compatibility_level = level


def _timing_cache(config: "trt.IBuilderConfig", timings: bytes) -> "trt.ITimingCache":
    """Give the builder the timings there are; where they do not fit, it starts without."""
    measured: trt.ITimingCache = config.create_timing_cache(timings)
    if timings and (measured is None or not config.set_timing_cache(measured, False)):
        measured = config.create_timing_cache(b"")
        config.set_timing_cache(measured, False)
    elif not timings:
        config.set_timing_cache(measured, False)
    return measured


def inspect(plan: bytes, options: EngineOptions) -> str:
    """Give what the engine inspector says of a plan that was built here, as JSON."""
    runtime = trt.Runtime(listener())
    # A version-compatible plan brings code for the processor, and is not loaded without this.
    runtime.engine_host_code_allowed = options.version_compatible
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"TensorRT cannot load what it built\n{listing(listener().errors)}")
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


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
