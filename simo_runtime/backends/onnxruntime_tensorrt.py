"""ONNX Runtime on an NVIDIA GPU, with its TensorRT provider.  Not run on a GPU yet.

ONNX Runtime's wheel is linked against one major version of TensorRT (1.31 against 10), whatever
version `pip install tensorrt` gives: `why_not` reads which one it is.

Its networks are weakly typed, unlike those of `simo-engines`: they need a switch for each type
beside float32 that the graph has, and it is given for those types alone. What TensorRT makes of the
graph's float32 islands is then its own choice; the self-test at opening tells whether the answers
are right.

The provider stands alone. With CUDA's beside it, a graph that TensorRT does not take would run
there in silence; so it is refused.
"""

import hashlib
import json
from typing import Any

from simo_runtime.backends.onnxruntime_gpu import Entries, GpuOptions, OnnxRuntimeGpu
from simo_runtime.bundle import Bundle
from simo_runtime.engines import default_root, machine_folder, private_folder
from simo_runtime.errors import BackendError
from simo_runtime.gpu import find_gpu
from simo_runtime.onnxfile import read_onnx

Shapes = dict[str, tuple[int, ...]]  # of a graph's inputs, without the batch
# What a graph of a precision needs; float32 needs nothing.
SWITCHES: dict[str, dict[str, str]] = {
    "fp32": {},
    "fp16": {"trt_fp16_enable": "1", "trt_layer_norm_fp32_fallback": "1"},
    "bf16": {"trt_bf16_enable": "1"},
    "int8": {"trt_int8_enable": "1"},
}


class OnnxRuntimeTensorrt(OnnxRuntimeGpu):
    """The backend; it holds its options and nothing else.

    The first time on a machine that a bundle is opened its engines are built, which takes minutes.
    """

    name, provider = "onnxruntime-tensorrt", "Tensorrt"

    def _options(self, bundle: Bundle, precision: str) -> Entries:
        if precision not in SWITCHES:
            raise BackendError(
                f"ONNX Runtime's TensorRT provider takes no {precision} graphs; it takes "
                f"{', '.join(SWITCHES)}"
            )
        root = self.options.engines or default_root()
        folder = private_folder(root, find_gpu(), folder_name(bundle, self.options, precision))
        shapes = input_shapes(bundle, precision)
        return provider_options(self.options, shapes, str(folder), precision)

    def kept(self, bundle: Bundle, precision: str) -> int:
        """Count the engines that were built for a bundle; nothing is opened or made."""
        folder = machine_folder(self.options.engines or default_root(), find_gpu())
        return len([*(folder / folder_name(bundle, self.options, precision)).glob("*.engine")])


def provider_options(options: GpuOptions, shapes: Shapes, folder: str, precision: str) -> Entries:
    """Give the options of the TensorRT provider.

    Engines and timings are kept in `folder`. The profile is given, so that an engine is built
    once, when a session opens, and not again for each new batch in the middle of a run. Switches
    for types are those of the graph's precision, and no others.
    """
    sizes = options.batches
    found = {
        "device_id": "0",
        "trt_max_workspace_size": str(options.workspace_mib << 20),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        "trt_cuda_graph_enable": str(int(options.cuda_graph)),
        "trt_profile_min_shapes": profile(shapes, sizes.smallest),
        "trt_profile_opt_shapes": profile(shapes, sizes.tuned),
        "trt_profile_max_shapes": profile(shapes, sizes.largest),
    }
    return tuple(sorted({**found, **SWITCHES[precision]}.items()))


def profile(shapes: Shapes, batch: int) -> str:
    """Write shapes as the provider reads them: `image:1x280x378x3,tap3:1x541x768`."""
    return ",".join(
        f"{name}:{'x'.join(map(str, (batch, *shape)))}" for name, shape in sorted(shapes.items())
    )


def input_shapes(bundle: Bundle, precision: str) -> Shapes:
    """Give the inputs of all graphs of a precision, without the batch: image and taps."""
    shapes: Shapes = {}
    for file in bundle.manifest.graph_files(precision).named().values():
        for value in read_onnx(bundle.root / file).inputs:
            shapes[value.name] = tuple(int(size) for size in value.shape[1:])
    return shapes


def folder_name(bundle: Bundle, options: GpuOptions, precision: str) -> str:
    """Name the folder, among a machine's engines, of those that ONNX Runtime builds."""
    return f"onnxruntime-{precision}-{cache_key(bundle, options)}"


def cache_key(bundle: Bundle, options: GpuOptions) -> str:
    """Hash what engines depend on.

    ONNX Runtime's own names for engines depend on the graph and not on its weights: two bundles of
    one recipe would be given each other's. So each bundle and each set of options has its folder.
    """
    import onnxruntime

    content: dict[str, Any] = {
        "files": {name: entry.sha256 for name, entry in bundle.manifest.files.items()},
        "onnxruntime": onnxruntime.__version__,
        "batches": vars(options.batches),
        "workspace_mib": options.workspace_mib,
        "cuda_graph": options.cuda_graph,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


BACKEND = OnnxRuntimeTensorrt()
