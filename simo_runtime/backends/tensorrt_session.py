"""A bundle in native TensorRT: one context for the encoder, one a head, features on the GPU.

Imports TensorRT and pycuda, and so is imported late.

Contexts belong to a batch size: a graph that was recorded is right only while its context keeps
its shapes and addresses. Buffers are as large as the largest batch and belong to the session.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_runtime.backends import Joint, Pixels, cuda_device
from simo_runtime.backends.tensorrt import Plan
from simo_runtime.backends.tensorrt_engine import Context, listener, load
from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError, listing
from simo_runtime.gpu import Gpu
from simo_runtime.graphs import ENCODER, IMAGE, JOINT

Arrays = dict[str, NDArray[Any]]
KEPT = 4  # batch sizes whose contexts and graphs are kept; the one used longest ago goes
REPLAYS = 5  # of each way to run, to choose the fastest


class Buffers:
    """Memory for every tensor: on the GPU, and pinned on the host for the image and the tasks."""

    def __init__(self) -> None:
        self.device: dict[str, Any] = {}
        self.host: Arrays = {}

    def take(self, name: str, shape: tuple[int, ...], kind: np.dtype[Any], *, host: bool) -> None:
        """Take memory for a tensor at the largest batch, once."""
        if name not in self.device:
            self.device[name] = cuda_device.memory(int(np.prod(shape)) * kind.itemsize)
        if host and name not in self.host:
            self.host[name] = cuda_device.pinned(shape, kind)

    def address(self, name: str) -> int:
        """Give where a tensor lies on the GPU."""
        return int(self.device[name])


class Batch:
    """The contexts for one batch size, and the graphs recorded on them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.contexts: dict[str, Context] = {}
        self.graphs: dict[tuple[str, ...], cuda_device.Recorded] = {}
        self.ways: dict[tuple[str, ...], str] = {}

    def close(self) -> None:
        """Let go of graphs first: they refer to the contexts."""
        for graph in self.graphs.values():
            graph.close()
        self.graphs.clear()
        self.contexts.clear()


class TensorrtSession:
    """`run` may be called from several threads: they take turns, since buffers are shared."""

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Plan],
        *,
        gpu: Gpu,
        joint: Joint,
        cuda_graph: bool,
    ) -> None:
        self._bundle, self._joint, self._recording = bundle, joint, cuda_graph
        self._tasks = [task.name for task in bundle.manifest.tasks]
        self._lock = threading.Lock()
        plans = {name: hashlib.sha256(plan.data).hexdigest() for name, plan in engines.items()}
        self._identity = {"engines": repr(sorted(plans.items())), "gpu": repr(gpu)}
        self._batches: OrderedDict[int, Batch] = OrderedDict()
        self._smallest = max(plan.smallest for plan in engines.values())
        self._largest = min(plan.largest for plan in engines.values())
        if self._smallest > self._largest:
            raise BackendError(f"{bundle.root}: the engines have no batch size in common")
        with cuda_device.current():
            self._engines = {
                name: load(plan.data, name, host_code=plan.host_code)
                for name, plan in engines.items()
            }
            self._stream = cuda_device.stream()
            self._aux = {task: cuda_device.stream() for task in self._tasks}
            self._ready = cuda_device.event()
            self._done = {task: cuda_device.event() for task in self._tasks}
            self._buffers: Buffers | None = self._take()

    def _take(self) -> Buffers:
        """Take memory for all tensors, in the shapes that contexts tell at the largest batch."""
        buffers, shapes = Buffers(), self._image(self._largest)
        for name in (ENCODER, *self._tasks):
            engine = self._engines[name]
            context = engine.context(shapes)
            for tensor in engine.outputs:
                shapes[tensor] = context.shape(tensor)
            for tensor, kind in {**engine.inputs, **engine.outputs}.items():
                host = tensor == IMAGE or (name != ENCODER and tensor in engine.outputs)
                buffers.take(tensor, shapes[tensor], kind, host=host)
        self._shapes = {tensor: shape[1:] for tensor, shape in shapes.items()}
        return buffers

    def identity(self) -> dict[str, str]:
        """Name the engines, and the GPU with its driver."""
        return self._identity

    def _image(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {IMAGE: (batch, *self._bundle.manifest.image_size, 3)}

    def run(self, pixels_BHW3: Pixels, tasks: Sequence[str]) -> Arrays:
        """Give every task's output, as `Session` says it; large batches go in parts."""
        parts = [
            self._part(pixels_BHW3[start : start + self._largest], tuple(tasks))
            for start in range(0, len(pixels_BHW3), self._largest)
        ]
        return {task: np.concatenate([part[task] for part in parts]) for task in tasks}

    def _part(self, pixels: Pixels, tasks: tuple[str, ...]) -> Arrays:
        with self._lock, cuda_device.current():
            buffers = self._buffers
            if buffers is None:
                raise BackendError(f"{self._bundle.root}: the predictor is closed; open it again")
            size = max(len(pixels), self._smallest)
            buffers.host[IMAGE][: len(pixels)] = pixels
            buffers.host[IMAGE][len(pixels) : size] = 0
            batch = self._batch(size)
            if tasks not in batch.ways:
                self._begin(batch, tasks)
            self._go(batch, tasks, batch.ways[tasks])
            self._stream.synchronize()
            return {task: buffers.host[task][: len(pixels)].copy() for task in tasks}

    def _batch(self, size: int) -> Batch:
        """Give the contexts of a batch size; the one used longest ago makes room."""
        if size not in self._batches:
            if len(self._batches) >= KEPT:
                self._batches.popitem(last=False)[1].close()
            self._batches[size] = Batch(size)
        self._batches.move_to_end(size)
        return self._batches[size]

    def _context(self, batch: Batch, name: str) -> Context:
        """Give a graph's context, its shapes and addresses set once and for all."""
        if name not in batch.contexts:
            assert self._buffers is not None  # `_part` has looked
            engine = self._engines[name]
            shapes = {tensor: (batch.size, *self._shapes[tensor]) for tensor in engine.inputs}
            context = engine.context(shapes)
            tensors = (*engine.inputs, *engine.outputs)
            context.place({tensor: self._buffers.address(tensor) for tensor in tensors})
            batch.contexts[name] = context
        return batch.contexts[name]

    def _begin(self, batch: Batch, tasks: tuple[str, ...]) -> None:
        """Run once as it is, record, compare the replay with it, and keep the fastest way.

        TensorRT must have run at a shape before its work can be recorded there.
        """
        assert self._buffers is not None  # `_part` has looked
        seconds: dict[str, float] = {}
        for way in self._ways(tasks):
            self._enqueue(batch, tasks, way)
            self._stream.synchronize()
            eager = {task: self._buffers.host[task][: batch.size].copy() for task in tasks}
            if self._recording:
                self._record(batch, tasks, way, eager)
            seconds[way] = self._timed(batch, tasks, way)
        fastest = min(seconds, key=lambda way: seconds[way])
        for way in set(seconds) - {fastest}:
            if graph := batch.graphs.pop((way, *tasks), None):
                graph.close()
        batch.ways[tasks] = fastest

    def _ways(self, tasks: tuple[str, ...]) -> list[str]:
        """List the ways to run some tasks: heads one after another, side by side, one graph."""
        all_of_them = set(self._tasks) <= set(tasks)
        if self._joint is True and all_of_them:
            return [JOINT]
        side_by_side = ["side by side"] if len(tasks) > 1 else []
        joint = [JOINT] if all_of_them and JOINT in self._engines else []
        return ["in turn", *side_by_side, *joint]

    def _record(self, batch: Batch, tasks: tuple[str, ...], way: str, eager: Arrays) -> None:
        assert self._buffers is not None  # `_part` has looked
        graph = cuda_device.Recorded(self._stream, lambda: self._enqueue(batch, tasks, way))
        batch.graphs[way, *tasks] = graph
        for task in tasks:
            self._buffers.host[task][: batch.size] = 0
        graph.launch()
        self._stream.synchronize()
        for task in tasks:
            if not np.array_equal(self._buffers.host[task][: batch.size], eager[task]):
                raise BackendError(
                    f"{self._bundle.root}: {task} comes out differently when its CUDA graph is "
                    "replayed; update the driver, or open it with cuda_graph=False"
                )

    def _timed(self, batch: Batch, tasks: tuple[str, ...], way: str) -> float:
        times = []
        for _ in range(REPLAYS):
            start = time.perf_counter()
            self._go(batch, tasks, way)
            self._stream.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    def _go(self, batch: Batch, tasks: tuple[str, ...], way: str) -> None:
        graph = batch.graphs.get((way, *tasks))
        if graph is None:
            self._enqueue(batch, tasks, way)
        else:
            graph.launch()

    def _enqueue(self, batch: Batch, tasks: tuple[str, ...], way: str) -> None:
        """Put everything on streams: the image up, encoder and heads, the outputs down."""
        assert self._buffers is not None  # `_part` has looked
        image = self._buffers.host[IMAGE][: batch.size]
        cuda_device.upload(self._buffers.address(IMAGE), image, self._stream)
        self._execute(batch, JOINT if way == JOINT else ENCODER, self._stream)
        if way == "side by side":
            self._ready.record(self._stream)
        for task in tasks:
            on = self._aux[task] if way == "side by side" else self._stream
            if way == "side by side":
                on.wait_for_event(self._ready)
            if way != JOINT:
                self._execute(batch, task, on)
            output = self._buffers.host[task][: batch.size]
            cuda_device.download(output, self._buffers.address(task), on)
            if way == "side by side":
                self._done[task].record(on)
                self._stream.wait_for_event(self._done[task])

    def _execute(self, batch: Batch, name: str, on: Any) -> None:
        if not self._context(batch, name).enqueue(on.handle):
            raise BackendError(f"{name}: the engine does not run\n{listing(listener().errors)}")

    def close(self) -> None:
        """Let go of graphs, contexts, memory and engines, in that order."""
        with self._lock, cuda_device.current():
            for batch in self._batches.values():
                batch.close()
            self._batches.clear()
            self._buffers = None
            self._engines.clear()
