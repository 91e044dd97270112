"""What ONNX Runtime's two providers for NVIDIA GPUs share: all but the options of the providers.

ONNX Runtime goes on without a provider that it cannot load, and runs parts of a graph on the CPU.
Here both are errors: the libraries are looked for before a session exists, and no session may put
a node on the CPU (`session.disable_cpu_ep_fallback`). Our graphs are static but for the batch, so
that no node belongs there.

Not run on a GPU yet.
"""

import contextlib
import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from simo_runtime.backends import Joint
from simo_runtime.backends.libraries import missing
from simo_runtime.backends.onnxruntime_captured import CapturedSession
from simo_runtime.backends.onnxruntime_graph import Settings
from simo_runtime.backends.onnxruntime_session import OnnxRuntimeSession
from simo_runtime.bundle import Bundle
from simo_runtime.engines import USUAL, BatchRange
from simo_runtime.errors import BackendError, listing
from simo_runtime.gpu import find_gpu
from simo_runtime.importing import import_fault

Entries = tuple[tuple[str, str], ...]
WHEEL = "onnxruntime-gpu"
# No node on the CPU: a graph that a provider cannot run as a whole is refused.
NO_CPU: Entries = (("session.disable_cpu_ep_fallback", "1"),)


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """What can be said of a session on a GPU; the defaults serve one predictor.

    The GPU is CUDA's first; CUDA_VISIBLE_DEVICES chooses another.
    """

    memory_mib: int | None = None  # what the session's arena may take; None: all that is free
    cuda_graph: bool = False  # record the kernels of a batch size once and replay them
    workspace_mib: int = 2048  # TensorRT alone: scratch memory while it builds and runs
    batches: BatchRange = USUAL  # TensorRT alone
    engines: Path | None = None  # TensorRT alone: the folder of all engines; None: the user's cache

    def __post_init__(self) -> None:
        for name in ("memory_mib", "workspace_mib"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BackendError(f"{name} is {value}; it must be at least 1")


class OnnxRuntimeGpu(ABC):
    """A backend that runs on one provider; it holds its options and nothing else."""

    name: str
    provider: str  # `CUDA`, `Tensorrt`

    def __init__(self, options: GpuOptions = GpuOptions()) -> None:  # frozen
        self.options = options

    def why_not(self) -> str | None:
        return why_not(self.provider)

    def facts(self) -> dict[str, str]:
        return facts(self.provider)

    def open(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        precision: str = "fp32",
        joint: Joint = "auto",
        arena: bool = True,
    ) -> OnnxRuntimeSession:
        require(self.provider)
        asked = (f"{self.provider}ExecutionProvider", self._options(bundle, precision))
        settings = Settings(
            providers=(asked,),
            threads=threads or 1,  # no node runs on the CPU
            arena=arena,
            config=NO_CPU,
            device="cuda",
        )
        kind = CapturedSession if self.options.cuda_graph else OnnxRuntimeSession
        return kind(bundle, settings, precision=precision, joint=joint)

    @abstractmethod
    def _options(self, bundle: Bundle, precision: str) -> Entries:
        """Give the provider's options for the graphs of a precision."""


def why_not(provider: str) -> str | None:
    """Say what a provider (`CUDA`, `Tensorrt`) lacks here, and what installs it; None if nothing.

    ONNX Runtime lists a provider as available once its file is there, whether it can be loaded or
    not. So its libraries are tried one by one, and then the driver is asked for a GPU.
    """
    fault = _wheels() or _built(provider)
    if fault is not None:
        return fault
    lacking = libraries(provider)
    if lacking:
        return f"{provider}ExecutionProvider lacks libraries\n{listing(lacking)}"
    try:
        find_gpu()
    except BackendError as error:
        return str(error)
    return None


def _wheels() -> str | None:
    cpu, gpu = _folder("onnxruntime"), _folder(WHEEL)
    if cpu is not None and cpu == gpu:  # in two folders the first on the path is imported
        return (
            "onnxruntime and onnxruntime-gpu are both installed, in one folder: "
            f"pip uninstall onnxruntime {WHEEL}, then pip install '{WHEEL}[cuda,cudnn]'"
        )
    wheel, owners = f"'{WHEEL}[cuda,cudnn]'", f"onnxruntime {WHEEL}"
    return import_fault("onnxruntime", wheel=wheel, owners=owners)


def _folder(wheel: str) -> Path | None:
    """Give the folder that a wheel is installed in; None if it is not."""
    try:
        return Path(str(distribution(wheel).locate_file(""))).resolve()
    except PackageNotFoundError:
        return None


def _built(provider: str) -> str | None:
    import onnxruntime

    if f"{provider}ExecutionProvider" in onnxruntime.get_available_providers():
        return None
    return (
        f"this onnxruntime {onnxruntime.__version__} has no {provider}ExecutionProvider: "
        f"pip uninstall onnxruntime, then pip install '{WHEEL}[cuda,cudnn]'"
    )


def libraries(provider: str) -> list[str]:
    """Tell which libraries a provider lacks, itself among them, each with what installs it."""
    try:
        preload()
        return missing(provider_file(provider))
    except OSError as error:
        return [f"{error}; install {WHEEL} again"]


def preload() -> None:
    """Load CUDA's and cuDNN's libraries from their wheels, where the loader does not look."""
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):  # it prints; `missing` says it by name
        onnxruntime.preload_dlls()


def provider_file(provider: str) -> Path:
    """Give the shared library of a provider."""
    import onnxruntime

    folder = Path(str(onnxruntime.__file__)).parent / "capi"
    return folder / f"libonnxruntime_providers_{provider.lower()}.so"


def facts(provider: str) -> dict[str, str]:
    """Give versions and the GPU, for people; it never fails."""
    found = {}
    for wheel in ("onnxruntime", WHEEL):
        with contextlib.suppress(PackageNotFoundError):
            found[wheel] = version(wheel)
    try:
        gpu = find_gpu()
        found["gpu"] = f"{gpu.name}, compute capability {gpu.compute_capability}"
        found["driver"] = f"CUDA {gpu.driver}"
    except BackendError as error:
        found["gpu"] = str(error)
    if _wheels() is None and _built(provider) is None:
        found["libraries"] = "; ".join(libraries(provider)) or "all there"
    return found


def require(provider: str) -> None:
    """Raise BackendError, with what is missing, unless a provider can run here."""
    fault = why_not(provider)
    if fault is not None:
        raise BackendError(fault)
