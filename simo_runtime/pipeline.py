"""Many pictures: decode, prepare, infer, finish and write, all at the same time, in order.

One thread walks the source and asks for work in batches; a pool of threads decodes and prepares,
and later finishes and writes; one or more lanes infer. What is under way is bounded, however long
the source: at most `depth` batches, whose futures stand in one queue, in the order of the frames.
"""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from simo_runtime.backends import Outputs
from simo_runtime.cpus import available_cpus
from simo_runtime.errors import SimoError
from simo_runtime.predictor import Predictor, Prepared, Scene
from simo_runtime.sinks import Sink
from simo_runtime.sources import Frame

TICK = 0.1  # seconds after which a thread that waits looks whether it is still wanted


@dataclass(frozen=True)
class Outcome:
    """What became of one frame: a scene and the files written for it, or an error."""

    frame: Frame
    scene: Scene | None = None
    files: tuple[Path, ...] = ()
    error: SimoError | None = None


Batch = list["Future[Outcome]"]


class Pipeline:
    """Runs frames through a predictor, in batches.

    for outcome in Pipeline(predict).run(find(["photos/"])):
        ...

    `batch` pictures are one pass of the network; 1 gives the shortest delay. `lanes` passes may run
    at the same time, and `workers` threads decode, draw and write. With `reduced` large photos are
    decoded at the scale that the network needs, for sinks that do not draw the photo.
    """

    def __init__(
        self,
        predict: Predictor,
        *,
        tasks: Sequence[str] | None = None,
        sinks: Sequence[Sink] = (),
        batch: int = 1,
        lanes: int = 1,
        workers: int | None = None,
        reduced: bool = False,
    ) -> None:
        self._predict, self._specs = predict, predict.specs(tasks)
        self._sinks = [sink for sink in sinks if not sink.ordered]
        self._ordered = [sink for sink in sinks if sink.ordered]
        self.batch, self.lanes = max(1, batch), max(1, lanes)
        self.workers = workers or max(2, available_cpus())
        self._reduced = reduced

    def run(self, frames: Iterable[Frame]) -> Generator[Outcome, None, None]:
        """Give an outcome for every frame, in order.

        A frame that cannot be used, or whose files cannot be written, has an error in its outcome,
        and so has a source that ends with one. Anything else that goes wrong, a full disk or a
        device that fails, is raised, and no more work is begun. When the iterator is closed or left
        by an error, work that is under way is waited for and its files are whole.
        """
        depth = 1 + self.lanes + -(-self.workers // self.batch)
        run = _Run(self, depth)
        walker = threading.Thread(target=run.walk, args=(frames,), daemon=True)
        walker.start()
        try:
            yield from run.outcomes()
        finally:
            run.stop()

    def prepare(self, frame: Frame) -> Prepared:
        """Decode a frame and bring it to the network's size."""
        if frame.error is not None:
            raise frame.error
        return self._predict.prepare(frame.image, colours=frame.colours, reduced=self._reduced)

    def infer(
        self, frames: Sequence[Frame], prepared: Sequence["Future[Prepared]"], pool: "_Pool"
    ) -> Batch:
        """Run the frames that could be prepared as one batch, and let the pool finish them."""
        ready: list[tuple[int, Prepared]] = []
        batch: list[Future[Outcome] | None] = [None] * len(frames)
        for index, future in enumerate(prepared):
            try:
                ready.append((index, future.result()))
            except SimoError as error:
                batch[index] = _done(Outcome(frames[index], error=error))
        if ready:
            outputs = self._predict.infer([one for _, one in ready], self._specs)
            for place, (index, one) in enumerate(ready):
                batch[index] = pool.submit(self.finish, frames[index], one, outputs, place)
        return [future for future in batch if future is not None]

    def finish(self, frame: Frame, prepared: Prepared, outputs: Outputs, place: int) -> Outcome:
        """Bring outputs to the size of the picture, and write what needs no order."""
        scene = self._predict.finish(prepared, outputs, self._specs, place)
        files: list[Path] = []
        try:
            for sink in self._sinks:
                files += sink.write(frame, scene)
        except SimoError as error:
            return Outcome(frame, None, tuple(files), error)
        return Outcome(frame, scene, tuple(files))

    def deliver(self, outcome: Outcome) -> Outcome:
        """Give an outcome to the sinks that need order, and let go of the scene."""
        files, error = list(outcome.files), outcome.error
        try:
            for sink in self._ordered if outcome.scene is not None else ():
                files += sink.write(outcome.frame, outcome.scene or {})
        except SimoError as problem:
            error = problem
        for sink in (*self._sinks, *self._ordered) if error is not None else ():
            sink.missed(outcome.frame, error or SimoError())
        scene = outcome.scene if error is None else None
        return Outcome(outcome.frame, scene, tuple(files), error)


_Pool = ThreadPoolExecutor


class _Run:
    """One walk through a source: the threads, the queue, and how they stop."""

    def __init__(self, pipeline: Pipeline, depth: int) -> None:
        self._pipeline = pipeline
        self._queue: queue.Queue[Future[Batch] | None] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(pipeline.workers, thread_name_prefix="simo-work")
        self._lanes = ThreadPoolExecutor(pipeline.lanes, thread_name_prefix="simo-infer")

    def walk(self, frames: Iterable[Frame]) -> None:
        """Walk the source until its end or until nobody wants more; errors go into the queue."""
        last = Frame("source", "the source", Path())
        waiting: list[Frame] = []
        prepared: list[Future[Prepared]] = []
        end: Future[Batch] | None = None
        try:
            for last in frames:
                waiting.append(last)
                prepared.append(self._pool.submit(self._pipeline.prepare, last))
                if len(waiting) == self._pipeline.batch:
                    if not self._ask(waiting, prepared):
                        return
                    waiting, prepared = [], []
        except SimoError as error:
            gone = Frame(last.name, "the source", Path())
            end = Future()
            end.set_result([_done(Outcome(gone, error=error))])
        except BaseException as error:  # it is raised where the outcomes are read
            end = Future()
            end.set_exception(error)
        if waiting and not self._ask(waiting, prepared):
            return
        for one in (end, None) if end is not None else (None,):
            self._put(one)

    def _ask(self, frames: list[Frame], prepared: list["Future[Prepared]"]) -> bool:
        try:
            batch = self._lanes.submit(self._pipeline.infer, frames, prepared, self._pool)
        except RuntimeError:  # the lanes are shut down: nobody wants more
            return False
        return self._put(batch)

    def _put(self, batch: "Future[Batch] | None") -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(batch, timeout=TICK)
                return True
            except queue.Full:
                continue
        return False

    def outcomes(self) -> Iterator[Outcome]:
        """Give the outcomes in order, as they become ready."""
        while (batch := self._queue.get()) is not None:
            for future in batch.result():
                yield self._pipeline.deliver(future.result())

    def stop(self) -> None:
        """Begin nothing more, and wait for what is under way."""
        self._stopped.set()
        self._lanes.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)


def _done(outcome: Outcome) -> "Future[Outcome]":
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future
