"""Whether TensorRT can be used on this machine, and if not, what is missing."""

from simo_runtime.errors import BackendError
from simo_runtime.gpu import find_gpu

OLDEST = (10, 9)  # the first with every name that is used here
INSTALL = "pip install 'simo-runtime[tensorrt]', on a machine with an NVIDIA GPU and its driver"


def why_not() -> str | None:
    """Say why TensorRT cannot be used here and what to install, or None if it can."""
    try:
        tensorrt_version()
        find_gpu()
    except BackendError as error:
        return str(error)
    return None


def tensorrt_version() -> str:
    """Import TensorRT and give its version; BackendError says what to install."""
    try:
        import tensorrt as trt  # late: it is not needed to say that it is missing
    except ModuleNotFoundError as error:
        raise BackendError(f"{error.name} is not installed: {INSTALL}") from error
    except (ImportError, OSError) as error:
        raise BackendError(f"TensorRT cannot be loaded: {error}\nIt needs: {INSTALL}") from error
    version = str(trt.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BackendError(f"TensorRT is {version}; {oldest} or newer is needed: {INSTALL}")
    return version
