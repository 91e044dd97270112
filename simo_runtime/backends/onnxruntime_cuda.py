"""ONNX Runtime on an NVIDIA GPU, with its CUDA provider.  Not run on a GPU yet."""

from simo_runtime.backends import Joint
from simo_runtime.backends.onnxruntime_captured import CapturedSession
from simo_runtime.backends.onnxruntime_gpu import NO_CPU, GpuOptions, facts, require, why_not
from simo_runtime.backends.onnxruntime_graph import Settings
from simo_runtime.backends.onnxruntime_session import OnnxRuntimeSession
from simo_runtime.bundle import Bundle

PROVIDER = "CUDAExecutionProvider"


class OnnxRuntimeCuda:
    """The backend; it holds its options and nothing else."""

    name = "onnxruntime-cuda"

    def __init__(self, options: GpuOptions = GpuOptions()) -> None:  # noqa: B008  # it is frozen
        self.options = options

    def why_not(self) -> str | None:
        return why_not("CUDA")

    def facts(self) -> dict[str, str]:
        return facts("CUDA")

    def open(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        precision: str = "fp32",
        joint: Joint = "auto",
        arena: bool = True,
    ) -> OnnxRuntimeSession:
        require("CUDA")
        settings = Settings(
            providers=((PROVIDER, provider_options(self.options)),),
            threads=threads or 1,  # no node runs on the CPU
            arena=arena,
            config=NO_CPU,
            device="cuda",
        )
        kind = CapturedSession if self.options.cuda_graph else OnnxRuntimeSession
        return kind(bundle, settings, precision=precision, joint=joint)


def provider_options(options: GpuOptions) -> tuple[tuple[str, str], ...]:
    """Give the options of the CUDA provider.

    Without TF32, which is on by default and rounds float32 to 10 bits. The arena grows by what is
    asked for, not by doubling, so that several predictors fit on one GPU. cuDNN's heuristic in
    place of its search, which would time every algorithm at every new batch size.
    """
    found = {
        "device_id": "0",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": str(int(options.cuda_graph)),
    }
    if options.memory_mib is not None:
        found["gpu_mem_limit"] = str(options.memory_mib << 20)
    return tuple(sorted(found.items()))


BACKEND = OnnxRuntimeCuda()
