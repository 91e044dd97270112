"""A stand-in for TensorRT and one for NVIDIA's driver, for tests without either.

The stand-in for TensorRT has no name that the real bindings have not (`tensorrt-api.json`); its
engines run the graph in ONNX Runtime. The driver's memory is this process's.
"""

import ctypes
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from simo_runtime.gpu import Gpu

GPU = Gpu(
    name="NVIDIA RTX 4000 SFF Ada Generation",
    compute_capability="8.9",
    multiprocessors=48,
    memory=20 * 2**30,
    driver="13.0",
)
LAYERS = {
    "Layers": [
        {
            "Name": "__myl_CastMeanMul_myl0_1",
            "LayerType": "kgen",
            "Outputs": [{"Name": "tap0", "Format/Datatype": "Float"}],
        },
        {
            "Name": "_gemm_mha_v2_myl0_2",
            "LayerType": "kgen",
            "Outputs": [{"Name": "depth", "Format/Datatype": "Row major linear FP32"}],
        },
    ]
}


class Driver:
    """Answers as libcuda does: a code, and values through pointers."""

    def __init__(self) -> None:
        self.gpus, self.code = 1, 0
        self.attributes = {16: 48, 75: 8, 76: 9}
        self.held: dict[int, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.gpus
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = GPU.name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = GPU.memory
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13000
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = self.attributes[attribute]
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        context._obj.value = 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        return 0

    def cuStreamCreate(self, stream: Any, flags: int) -> int:
        stream._obj.value = 7
        return 0

    def cuStreamSynchronize(self, stream: Any) -> int:
        return 0

    def cuStreamDestroy_v2(self, stream: Any) -> int:
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.held[address._obj.value] = block
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        del self.held[address.value]
        return 0

    def cuMemcpyHtoD_v2(self, target: Any, source: Any, size: Any) -> int:
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuMemcpyDtoH_v2(self, target: Any, source: Any, size: Any) -> int:
        ctypes.memmove(target.value, source.value, size.value)
        return 0


def at_once(stream: int, work: Callable[[], None]) -> None:
    """Do the work of a stream at once; it is the driver's only one."""
    assert stream == 7
    work()


@dataclass
class Answers:
    """What the stand-in is to answer, and what it was asked."""

    shapes: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {"tap0": (-1, 5, 8), "tap1": (-1, 5, 8)}
    )
    parse_errors: list[str] = field(default_factory=list)
    starts: bool = True
    builds: bool = True
    loads: bool = True
    profile_index: int = 0
    layers: Any = field(default_factory=lambda: LAYERS)
    spoil: Callable[[np.ndarray[Any, Any]], Any] = lambda array: array  # of every output
    takes_timings: bool = True
    while_building: Callable[[], None] = lambda: None
    asked: dict[str, Any] = field(default_factory=dict)
    queue: Callable[[int, Callable[[], None]], None] = at_once  # what is done on a stream


def answers() -> Answers:
    return sys.modules["tensorrt"].answers  # type: ignore[no-any-return]


class ILogger(ABC):
    """What TensorRT calls of ours, as its own interface: it has no answers of its own."""

    INTERNAL_ERROR, ERROR = 0, 1

    @abstractmethod
    def log(self, severity: int, msg: str) -> None:
        """Take a message."""


class IProgressMonitor(ABC):
    """What TensorRT calls of ours while it builds."""

    @abstractmethod
    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        """Learn that a phase starts."""

    @abstractmethod
    def step_complete(self, phase_name: str, step: int) -> bool:
        """Learn that a step is done; False ends the build."""

    @abstractmethod
    def phase_finish(self, phase_name: str) -> None:
        """Learn that a phase is done."""


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return "node_7"

    def node_operator(self) -> str:
        return "Gelu"


class INetworkDefinition:
    num_inputs = property(lambda self: len(answers().shapes))

    def get_input(self, index: int) -> Any:
        name, shape = list(answers().shapes.items())[index]
        return SimpleNamespace(name=name, shape=shape)


class OnnxParser:
    num_errors = property(lambda self: len(answers().parse_errors))

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None: ...

    def parse_from_file(self, model: str) -> bool:
        answers().asked["model"] = model
        return not answers().parse_errors

    def get_error(self, index: int) -> ParserError:
        return ParserError(answers().parse_errors[index])


class IOptimizationProfile:
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        answers().asked[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content + b"+"


class IBuilderConfig:
    progress_monitor: IProgressMonitor
    profiling_verbosity: int
    hardware_compatibility_level: int = 0

    def set_memory_pool_limit(self, pool: int, pool_size: int) -> None:
        answers().asked["pool"] = (pool, pool_size)

    def set_flag(self, flag: str) -> None:
        answers().asked[flag] = True

    def clear_flag(self, flag: str) -> None:
        answers().asked[flag] = False

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        return answers().profile_index

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        answers().asked["timings"] = cache._content
        return answers().takes_timings or not cache._content


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        if not answers().starts:
            logger.log(ILogger.ERROR, "CUDA initialization failure")
            # As the real bindings of 10.16 and 11.4 do when they are given a null pointer.
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        answers().asked["flags"] = flags
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytes | None:
        asked = answers().asked
        asked["hardware"] = config.hardware_compatibility_level
        asked["builds"] = asked.get("builds", 0) + 1
        answers().while_building()
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", "", 2)
        goes_on = monitor.step_complete("Building Engine", 0)
        goes_on = goes_on and monitor.step_complete("Building Engine", 1)
        monitor.phase_finish("Building Engine")
        if not answers().builds:
            self._logger.log(2, "a warning")
            self._logger.log(ILogger.INTERNAL_ERROR, "out of memory")
        return f"plan of {asked['model']}".encode() if answers().builds and goes_on else None


class EngineInspector:
    def get_engine_information(self, format: int) -> str:
        return json.dumps(answers().layers)


class IExecutionContext:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self._shapes.values()))[0]
        (output,) = (one for one in self._session.get_outputs() if one.name == name)
        return (batch, *output.shape[1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._places[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        answers().queue(stream_handle, self._execute)
        return True

    def _execute(self) -> None:
        inputs = {
            one.name: self._array(one, self._shapes[one.name]) for one in self._session.get_inputs()
        }
        made = self._session.run(None, inputs)
        for one, array in zip(self._session.get_outputs(), made, strict=True):
            self._array(one, array.shape)[...] = answers().spoil(array)

    def _array(self, value: Any, shape: tuple[int, ...]) -> Any:
        kind = np.dtype(np.uint8 if value.type == "tensor(uint8)" else np.float32)
        size = int(np.prod(shape)) * kind.itemsize
        block = (ctypes.c_char * size).from_address(self._places[value.name])
        return np.frombuffer(block, kind).reshape(shape)


class ICudaEngine:
    def __init__(self, path: str) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._all = [*self._session.get_inputs(), *self._session.get_outputs()]

    @property
    def num_io_tensors(self) -> int:
        return len(self._all)

    def get_tensor_name(self, index: int) -> str:
        return str(self._all[index].name)

    def get_tensor_mode(self, name: str) -> int:
        return 1 if name in {one.name for one in self._session.get_inputs()} else 2

    def get_tensor_dtype(self, name: str) -> str:
        (found,) = (one.type for one in self._all if one.name == name)
        return {"tensor(uint8)": "uint8", "tensor(float)": "float"}[found]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self._session)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector()


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None: ...

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        answers().asked["host code"] = self.engine_host_code_allowed
        path = serialized_engine.decode().removeprefix("plan of ")
        return ICudaEngine(path) if answers().loads else None


CLASSES = (
    ILogger,
    IProgressMonitor,
    ParserError,
    INetworkDefinition,
    OnnxParser,
    IOptimizationProfile,
    ITimingCache,
    IBuilderConfig,
    Builder,
    EngineInspector,
    IExecutionContext,
    ICudaEngine,
    Runtime,
)


def stand_in() -> Any:
    """Make a module with the part of TensorRT that the package uses."""
    module: Any = ModuleType("tensorrt")
    for made in CLASSES:
        setattr(module, made.__name__, made)
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    module.MemoryPoolType = SimpleNamespace(WORKSPACE=0)
    module.BuilderFlag = SimpleNamespace(TF32="tf32", VERSION_COMPATIBLE="version compatible")
    module.ProfilingVerbosity = SimpleNamespace(DETAILED=1)
    module.LayerInformationFormat = SimpleNamespace(JSON=1)
    module.HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS=1, SAME_COMPUTE_CAPABILITY=2)
    module.TensorIOMode = SimpleNamespace(INPUT=1)
    module.DataType = SimpleNamespace(FLOAT="float", HALF="half", BF16="bf16", UINT8="uint8")
    module.__version__ = "10.16.1.11"
    module.answers = Answers()
    return module
