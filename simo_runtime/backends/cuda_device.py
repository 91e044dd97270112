"""The GPU through pycuda: the primary context, memory, streams, events; graphs by cuda.bindings.

Imports pycuda, and so is imported late. The context is CUDA's primary one, which TensorRT and
everybody else in the process use too. A thread that wants to use the GPU enters `current`; memory
is freed there as well, since pycuda frees nothing of a context that is not the thread's.

`tests/cuda-api.json` holds what of pycuda and cuda.bindings is used here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pycuda.driver as cuda
from cuda.bindings import driver
from numpy.typing import NDArray

from simo_runtime.errors import BackendError

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: it does not wait for the default stream


@cache
def primary_context() -> Any:
    """Retain the primary context of the first GPU, for as long as the process lives."""
    cuda.init()
    return cuda.Device(0).retain_primary_context()


@contextmanager
def current() -> Iterator[None]:
    """Make the GPU this thread's for a while; pycuda's errors become BackendError."""
    try:
        context = primary_context()
        context.push()
        try:
            yield
        finally:
            cuda.Context.pop()
    except cuda.MemoryError as error:
        raise BackendError(
            f"the memory of the GPU is full: {error}\n"
            "Give a smaller --batch, or stop other programs."
        ) from error
    except cuda.Error as error:
        raise BackendError(f"the GPU cannot be used: {error}") from error


def stream() -> Any:
    """Make a stream; its `handle` is what TensorRT takes."""
    return cuda.Stream(NON_BLOCKING)


def event() -> Any:
    """Make an event for streams to wait for; it takes no times."""
    return cuda.Event(cuda.event_flags.DISABLE_TIMING)


def pinned(shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """Make an array whose memory the GPU can read and write by itself."""
    return np.asarray(cuda.pagelocked_empty(shape, kind))


def memory(size: int) -> Any:
    """Take memory of the GPU; int() of it is its address."""
    return cuda.mem_alloc(max(size, 1))


def upload(address: int, array: NDArray[Any], on: Any) -> None:
    """Copy a pinned array to the GPU, in the order of a stream."""
    cuda.memcpy_htod_async(address, array, on)


def download(array: NDArray[Any], address: int, on: Any) -> None:
    """Copy from the GPU into a pinned array, in the order of a stream."""
    cuda.memcpy_dtoh_async(array, address, on)


class Recorded:
    """Work on a stream that was recorded as a CUDA graph; it runs as often as it is launched.

    Streams that the recorded one forks into and waits for are recorded with it. pycuda has no
    graphs; its stream's handle is the driver's, so that cuda.bindings records on it.
    """

    def __init__(self, on: Any, work: Callable[[], None]) -> None:
        self._stream = driver.CUstream(on.handle)
        # Of this thread alone: another predictor may take memory meanwhile.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        checked(driver.cuStreamBeginCapture(self._stream, mode))
        try:
            work()
        except BaseException:
            driver.cuStreamEndCapture(self._stream)  # the stream is of no use in a capture
            raise
        graph = checked(driver.cuStreamEndCapture(self._stream))
        try:
            self._run = checked(driver.cuGraphInstantiate(graph, 0))
        finally:
            checked(driver.cuGraphDestroy(graph))

    def launch(self) -> None:
        """Put the work on the stream once more."""
        checked(driver.cuGraphLaunch(self._run, self._stream))

    def close(self) -> None:
        """Let go of the graph."""
        checked(driver.cuGraphExecDestroy(self._run))


def checked(answer: tuple[Any, ...]) -> Any:
    """Give what a call of the driver gives beside its code; BackendError if the code is one."""
    code, *rest = answer
    if code != driver.CUresult.CUDA_SUCCESS:
        raise BackendError(f"the GPU cannot be used: {code.name}")
    return rest[0] if rest else None
