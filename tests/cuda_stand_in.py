"""A stand-in for pycuda and cuda.bindings: streams that do nothing before somebody waits for them.

Work is put on a stream and done when the stream is waited for, or when another stream must wait
for an event on it; so what nobody waits for stays undone, and shows. While a stream is captured,
work is kept in a graph. Memory is this process's. It has no name that the real packages have not
(`cuda-api.json`).
"""

import ctypes
import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

Work = Callable[[], None]


class Error(Exception):
    pass


class MemoryError(Error):  # it is pycuda's name
    pass


class Machine:
    """What the stand-in has been asked, and what it is to answer."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.pushed = threading.local()
        self.free = 1 << 30  # bytes
        self.taken = 0
        self.replays = 0
        self.spoil_replays = False
        self.live_graphs = 0

    def depth(self) -> int:
        return int(getattr(self.pushed, "depth", 0))

    def needs_context(self) -> None:
        if self.depth() < 1:
            raise Error("there is no current context in this thread")

    def queue(self, handle: int, work: Work) -> None:
        self.streams[handle].put(work)


machine = Machine()


class Graph:
    def __init__(self, origin: "Stream") -> None:
        self.origin, self.work = origin, list[Work]()
        self.members, self.joined = {origin}, {origin}


class Stream:
    def __init__(self, flags: int = 0) -> None:
        assert flags == 1  # CU_STREAM_NON_BLOCKING
        machine.needs_context()
        self.handle = 1000 + len(machine.streams)
        machine.streams[self.handle] = self
        self._work: deque[Work] = deque()
        self._graph: Graph | None = None

    def put(self, work: Work) -> None:
        machine.needs_context()
        if self._graph is not None:
            self._graph.work.append(work)
            self._graph.joined.discard(self)
            self._graph.joined.add(self._graph.origin)
        else:
            self._work.append(work)

    def step(self) -> None:
        self._work.popleft()()

    def synchronize(self) -> None:
        assert self._graph is None, "a stream that is captured cannot be waited for"
        while self._work:
            self.step()

    def wait_for_event(self, event: "Event") -> None:
        graph = event.graph
        if graph is not None and self._graph is None:  # a fork takes the stream into the capture
            self._graph = graph
            graph.members.add(self)
        if self._graph is not None:
            assert graph is self._graph, "an event from outside the capture"
            if self is graph.origin and event.stream is not None:
                graph.joined.add(event.stream)
            return
        wanted = event.recorded

        def wait() -> None:
            while event.done < wanted:
                assert event.stream is not None
                event.stream.step()

        self.put(wait)


class Event:
    def __init__(self, flags: int = 0) -> None:
        assert flags == 2  # CU_EVENT_DISABLE_TIMING
        self.recorded = self.done = 0
        self.stream: Stream | None = None
        self.graph: Graph | None = None

    def record(self, stream: Stream) -> "Event":
        self.stream, self.graph = stream, stream._graph
        if self.graph is None:
            self.recorded += 1
            number = self.recorded

            def mark() -> None:
                self.done = number

            stream.put(mark)
        return self


class DeviceAllocation:
    def __init__(self, size: int) -> None:
        machine.needs_context()
        if machine.taken + size > machine.free:
            raise MemoryError("cuMemAlloc failed: out of memory")
        machine.taken += size
        self._size, self._block = size, ctypes.create_string_buffer(size)

    def __int__(self) -> int:
        return ctypes.addressof(self._block)

    def __del__(self) -> None:
        if hasattr(self, "_block"):
            machine.taken -= self._size


class Context:
    def push(self) -> None:
        machine.pushed.depth = machine.depth() + 1

    @staticmethod
    def pop() -> None:
        machine.needs_context()
        machine.pushed.depth = machine.depth() - 1


class Device:
    def __init__(self, number: int) -> None:
        assert number == 0

    def retain_primary_context(self) -> Context:
        return Context()


def init() -> None: ...


def mem_alloc(bytes: int) -> DeviceAllocation:
    return DeviceAllocation(bytes)


def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
    machine.needs_context()
    return np.empty(shape, dtype)


def memcpy_htod_async(dest: int, src: Any, stream: Stream) -> None:
    assert src.flags.c_contiguous
    stream.put(lambda: ctypes.memmove(dest, src.ctypes.data, src.nbytes) and None)


def memcpy_dtoh_async(dest: Any, src: int, stream: Stream) -> None:
    assert dest.flags.c_contiguous
    stream.put(lambda: ctypes.memmove(dest.ctypes.data, src, dest.nbytes) and None)


# cuda.bindings.driver


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904


class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


def CUstream(handle: int) -> Stream:
    return machine.streams[handle]


def cuStreamBeginCapture(hStream: Stream, mode: int) -> tuple[Any, ...]:
    assert mode == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    assert not hStream._work, "the stream is at work"
    hStream._graph = Graph(hStream)
    return (CUresult.CUDA_SUCCESS,)


def cuStreamEndCapture(hStream: Stream) -> tuple[Any, ...]:
    graph = hStream._graph
    assert graph is not None
    for member in graph.members:
        member._graph = None
    if graph.joined != graph.members:
        return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNJOINED, None
    return CUresult.CUDA_SUCCESS, graph


def cuGraphInstantiate(hGraph: Graph, flags: int) -> tuple[Any, ...]:
    assert flags == 0
    machine.live_graphs += 1
    return CUresult.CUDA_SUCCESS, list(hGraph.work)


def cuGraphLaunch(hGraphExec: list[Work], hStream: Stream) -> tuple[Any, ...]:
    machine.replays += 1

    def all_of_it() -> None:
        # spoilt, the last copy is missing
        for work in hGraphExec[: -1 if machine.spoil_replays else None]:
            work()

    hStream.put(all_of_it)
    return (CUresult.CUDA_SUCCESS,)


def cuGraphDestroy(hGraph: Graph) -> tuple[Any, ...]:
    return (CUresult.CUDA_SUCCESS,)


def cuGraphExecDestroy(hGraphExec: list[Work]) -> tuple[Any, ...]:
    machine.live_graphs -= 1
    return (CUresult.CUDA_SUCCESS,)


PYCUDA = (
    Error, MemoryError, Stream, Event, Context, Device, init, mem_alloc, pagelocked_empty,
    memcpy_htod_async, memcpy_dtoh_async,
)  # fmt: skip
BINDINGS = (
    CUresult, CUstreamCaptureMode, CUstream, cuStreamBeginCapture, cuStreamEndCapture,
    cuGraphInstantiate, cuGraphLaunch, cuGraphDestroy, cuGraphExecDestroy,
)  # fmt: skip


def modules() -> dict[str, Any]:
    """Make the modules under the names that they are imported by."""
    global machine
    machine = Machine()
    pycuda, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    bindings: Any = ModuleType("cuda.bindings")
    for thing in PYCUDA:
        setattr(driver, thing.__name__, thing)
    driver.event_flags = SimpleNamespace(DISABLE_TIMING=2)  # type: ignore[attr-defined]
    pycuda.driver = driver  # type: ignore[attr-defined]
    bindings.driver = ModuleType("cuda.bindings.driver")
    for thing in BINDINGS:
        setattr(bindings.driver, thing.__name__, thing)
    return {
        "pycuda": pycuda,
        "pycuda.driver": driver,
        "cuda.bindings": bindings,
        "cuda.bindings.driver": bindings.driver,
    }
