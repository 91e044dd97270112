"""The arms: ways to get all tasks' answers for the same pixels, in the same backend.

    joint        one graph of encoder and heads
    split        the encoder, and its heads one by one on its features
    sequential   one model per task, one after another, each with all threads
    concurrent   one model per task, all at once; with all threads each, or with their share of
                 them, whichever is faster here
    torch_eager, torch_compile    the joint pass in PyTorch

Pixels are uint8 (B, H, W, 3) RGB at the network's size; what comes out is what bundles give.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_bench.equality import Outputs
from simo_bench.setup import TORCH, Setup
from simo_runtime import backends
from simo_runtime.backends import Session
from simo_runtime.bundle import Bundle
from simo_runtime.graphs import JOINT

Pixels = NDArray[np.uint8]
TRIES = 3  # of either way of `concurrent`


@dataclass(frozen=True)
class Arm:
    """An arm that is open."""

    name: str
    run: Callable[[Pixels], Outputs]
    close: Callable[[], None]
    about: Mapping[str, Any] = field(default_factory=dict)  # what was decided when it was opened
    some: Callable[[Pixels, Sequence[str]], Outputs] | None = None  # of some tasks, if it can


def open_arm(name: str, setup: Setup, pixels: Pixels) -> Arm:
    """Open an arm; BackendError or BundleError says why it cannot be."""
    if name in TORCH:
        from simo_bench.torcharms import open_torch  # PyTorch is an extra

        return open_torch(name, setup, pixels)
    if name in ("joint", "split"):
        return _shared(name, setup)
    if name == "sequential":
        return _sequential(setup)
    return _concurrent(setup, pixels)


def _shared(name: str, setup: Setup) -> Arm:
    session = backends.choose(setup.backend).open(
        Bundle.open(setup.bundle),
        threads=setup.threads,
        precision=setup.precision,
        joint=name == "joint",
    )
    some = session.run if name == "split" else None  # one graph has no parts
    return Arm(name, lambda pixels: session.run(pixels, setup.tasks), session.close, some=some)


def open_singles(setup: Setup, threads: int) -> dict[str, Session]:
    """Open the models of single tasks: in one graph each, if they have one."""
    backend, found = backends.choose(setup.backend), {}
    for task, path in setup.singles.items():
        bundle = Bundle.open(Path(path))
        joint = JOINT in bundle.manifest.graph_files(setup.precision).named()
        found[task] = backend.open(bundle, threads=threads, precision=setup.precision, joint=joint)
    return found


def _sequential(setup: Setup) -> Arm:
    sessions = open_singles(setup, setup.threads)

    def some(pixels: Pixels, tasks: Sequence[str]) -> Outputs:
        return {task: sessions[task].run(pixels, [task])[task] for task in tasks}

    return Arm(
        "sequential",
        lambda pixels: some(pixels, setup.tasks),
        lambda: _close(sessions),
        some=some,
    )


class _Concurrent:
    """Sessions with a number of threads each, and one caller for every task."""

    def __init__(self, setup: Setup, threads: int) -> None:
        self.threads = threads
        self._sessions = open_singles(setup, threads)
        self._pool = ThreadPoolExecutor(len(self._sessions))

    def run(self, pixels: Pixels) -> Outputs:
        running = {
            task: self._pool.submit(one.run, pixels, [task]) for task, one in self._sessions.items()
        }
        return {task: future.result()[task] for task, future in running.items()}

    def close(self) -> None:
        self._pool.shutdown()
        _close(self._sessions)


def _concurrent(setup: Setup, pixels: Pixels) -> Arm:
    """Open the honest competitor: the faster one of two ways to share the threads."""
    share = max(1, setup.threads // len(setup.tasks))
    tried: dict[int, float] = {share: 0.0} if setup.memory else {}
    for threads in dict.fromkeys([share, setup.threads]) if not setup.memory else ():
        way = _Concurrent(setup, threads)
        tried[threads] = min(_seconds(way.run, pixels) for _ in range(1 + TRIES))
        way.close()
    best = min(tried, key=lambda threads: tried[threads])
    chosen = _Concurrent(setup, best)
    return Arm("concurrent", chosen.run, chosen.close, {"threads_each": best})


def _seconds(run: Callable[[Pixels], object], pixels: Pixels) -> float:
    began = time.perf_counter()
    run(pixels)
    return time.perf_counter() - began


def _close(sessions: Mapping[str, Session]) -> None:
    for session in sessions.values():
        session.close()


def reference(name: str, setup: Setup, pixels: Pixels) -> Outputs:
    """Give what an arm should give: its own models in fp32, part by part, on the CPU."""
    backend = backends.load_backend("onnxruntime-cpu")
    shared = name not in ("sequential", "concurrent")
    models = {"": setup.bundle} if shared else dict(setup.singles)
    found: dict[str, NDArray[Any]] = {}
    for task, path in models.items():
        session = backend.open(Bundle.open(Path(path)), threads=setup.threads, joint=False)
        found |= session.run(pixels, setup.tasks if shared else [task])
        session.close()
    return found
