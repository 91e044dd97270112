"""ONNX Runtime on an NVIDIA GPU, with its CUDA provider.  Not run on a GPU yet."""

from simo_runtime.backends.onnxruntime_gpu import Entries, GpuOptions, OnnxRuntimeGpu
from simo_runtime.bundle import Bundle


class OnnxRuntimeCuda(OnnxRuntimeGpu):
    """The backend; it holds its options and nothing else."""

    name, provider = "onnxruntime-cuda", "CUDA"

    def _options(self, bundle: Bundle, precision: str) -> Entries:
        return provider_options(self.options)


def provider_options(options: GpuOptions) -> Entries:
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
