"""The GPU of this machine, asked of its driver: what an engine is tied to.

The driver's library is called directly, so that a cached engine is found without PyTorch, without
the CUDA toolkit and without TensorRT. The GPU is CUDA's device 0, the one TensorRT takes;
CUDA_VISIBLE_DEVICES chooses another.
"""

import ctypes
import sys
from dataclasses import dataclass

from simo_runtime.errors import BackendError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# CUdevice_attribute, as numbered in cuda.h.
MULTIPROCESSORS, MAJOR, MINOR = 16, 75, 76


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What decides whether an engine built on one GPU is right for another."""

    name: str
    compute_capability: str  # "9.0"
    multiprocessors: int  # a slice of a GPU has the whole one's name and fewer of these
    memory: int  # bytes
    driver: str  # the CUDA version that the driver gives, "13.0"


def find_gpu() -> Gpu:
    """Ask the driver for the GPU; BackendError says what is missing."""
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError as error:
        needs = "this needs an NVIDIA GPU and its driver"
        raise BackendError(f"there is no NVIDIA driver here: {error}; {needs}") from error
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _ask(cuda, "cuInit", 0)
    _ask(cuda, "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise BackendError("the NVIDIA driver sees no GPU")
    _ask(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    _ask(cuda, "cuDeviceGetName", name, len(name), device)
    _ask(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    _ask(cuda, "cuDriverGetVersion", ctypes.byref(version))
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{_number(cuda, MAJOR, device)}.{_number(cuda, MINOR, device)}",
        multiprocessors=_number(cuda, MULTIPROCESSORS, device),
        memory=memory.value,
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",  # 12040 is 12.4
    )


def _number(cuda: ctypes.CDLL, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _ask(cuda, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    return value.value


def _ask(cuda: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = cuda[function](*arguments)
    if code:
        raise BackendError(f"the NVIDIA driver cannot be used: {function} gives CUDA error {code}")
