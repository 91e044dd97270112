"""Memory of the GPU and one stream, by the driver's own library: enough to run an engine once.

Everything belongs to CUDA's primary context of the first GPU, which TensorRT uses too.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import BackendError
from simo_runtime.gpu import LIBRARY


class Device:
    """The first GPU, ready to take memory."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL(LIBRARY)
        self._number = ctypes.c_int()
        self._ask("cuInit", 0)
        self._ask("cuDeviceGet", ctypes.byref(self._number), 0)
        context = ctypes.c_void_p()
        self._ask("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._number)
        self._ask("cuCtxSetCurrent", context)
        stream = ctypes.c_void_p()
        self._ask("cuStreamCreate", ctypes.byref(stream), 1)  # CU_STREAM_NON_BLOCKING
        self._stream = stream

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return self._stream.value or 0

    @contextmanager
    def memory(self, size: int) -> Iterator[int]:
        """Give the address of `size` bytes on the GPU, for as long as the block lasts."""
        address = ctypes.c_uint64()
        self._ask("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        try:
            yield address.value
        finally:
            self._ask("cuMemFree_v2", address)

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array to the GPU."""
        source = ctypes.c_void_p(array.ctypes.data)
        self._ask("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, _size(array))

    def read(self, address: int, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
        """Copy an array from the GPU."""
        array = np.empty(shape, kind)
        target = ctypes.c_void_p(array.ctypes.data)
        self._ask("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), _size(array))
        return array

    def wait(self) -> None:
        """Wait until everything on the stream is done."""
        self._ask("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give stream and context back."""
        self._ask("cuStreamDestroy_v2", self._stream)
        self._ask("cuDevicePrimaryCtxRelease_v2", self._number)

    def _ask(self, function: str, *arguments: object) -> None:
        code = self._cuda[function](*arguments)
        if code:
            raise BackendError(f"the GPU cannot be used: {function} gives CUDA error {code}")


def _size(array: NDArray[Any]) -> ctypes.c_size_t:
    return ctypes.c_size_t(array.nbytes)
