"""Where the time of one photo goes: decode, preprocess, copy in, encoder, heads, copy out, ...

Stages are timed one by one, in passes of their own, since looking into a pass makes it longer. The
whole, from the file to arrays of the photo's size, is timed without looking into it, for one graph
and for one model per task; those share one decoded photo, as a careful program would have it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_bench.arms import Arm
from simo_bench.equality import Outputs
from simo_bench.setup import Setup
from simo_runtime import backends
from simo_runtime.bundle import Bundle
from simo_runtime.graphs import ENCODER, IMAGE
from simo_runtime.image import read_image
from simo_runtime.placement import Placement, fill_colour
from simo_runtime.predictor import restore

WHOLE = ("joint", "sequential")  # the arms that are timed from the file on
Times = dict[str, list[float]]


class Photo:
    """A photo, its way to the network's pixels and the way back."""

    def __init__(self, setup: Setup) -> None:
        self.path, self.manifest = Path(setup.photo), Bundle.open(setup.bundle).manifest
        self._tasks = [self.manifest.task(task) for task in setup.tasks]

    def decode(self) -> NDArray[np.uint8]:
        """Read the file: RGB (H, W, 3)."""
        return read_image(self.path)

    def place(self, photo_HW3: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Placement]:
        """Bring it to the network's size, uint8 (1, H, W, 3)."""
        manifest = self.manifest
        place = Placement(photo_HW3.shape[:2], manifest.image_size, manifest.fit)
        return place.apply(photo_HW3, fill=fill_colour(manifest.mean))[None], place

    def restore(self, outputs: Outputs, place: Placement) -> list[NDArray[Any]]:
        """Bring every output to the photo's size."""
        return [restore(outputs[task.name][0], task, place) for task in self._tasks]

    def whole(self, arm: Arm) -> list[NDArray[Any]]:
        """Go from the file to the arrays."""
        pixels, place = self.place(self.decode())
        return self.restore(arm.run(pixels), place)


class Stopwatch:
    """Keeps the milliseconds of named pieces of work."""

    def __init__(self) -> None:
        self.times: Times = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter_ns()
        yield
        self.times.setdefault(name, []).append((time.perf_counter_ns() - began) / 1e6)


def time_stages(setup: Setup, rounds: int) -> Times:
    """Time every stage of encoder and heads, `rounds` times after one to warm up.

    Only backends of ONNX Runtime let one look between encoder and heads; others give nothing.
    """
    session = backends.choose(setup.backend).open(
        Bundle.open(setup.bundle), threads=setup.threads, precision=setup.precision, joint=False
    )
    graph = getattr(session, "_graph", None)  # a graph of the runtime's own, by name
    if graph is None:
        session.close()
        return {}
    photo, watch = Photo(setup), Stopwatch()
    for number in range(rounds + 1):
        _pass(setup, photo, graph, watch if number else Stopwatch())
    session.close()
    return watch.times


def _pass(setup: Setup, photo: Photo, graph: Callable[[str], Any], watch: Stopwatch) -> None:
    import onnxruntime

    with watch("decode"):
        image = photo.decode()
    with watch("preprocess"):
        pixels, place = photo.place(image)
    encoder, outputs, values = graph(ENCODER), {}, {}
    with watch("copy in"):
        given = onnxruntime.OrtValue.ortvalue_from_numpy(
            np.ascontiguousarray(pixels), encoder.device
        )
    with watch("encoder"):
        features = encoder.values({IMAGE: given})
    for task in setup.tasks:
        with watch(f"head {task}"):
            values[task] = graph(task).values(features)[task]
    with watch("copy out"):
        outputs = {task: value.numpy() for task, value in values.items()}
    with watch("postprocess"):
        photo.restore(outputs, place)
