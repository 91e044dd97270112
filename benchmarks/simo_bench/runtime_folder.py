"""A folder of photos through the pipeline against a plain loop."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from simo_bench.samples import rounded
from simo_runtime.bundle import Bundle
from simo_runtime.cpus import available_cpus
from simo_runtime.pipeline import Pipeline
from simo_runtime.predictor import Predictor
from simo_runtime.sinks import Forms
from simo_runtime.sources import Files, Frame

BUSY = 0.9  # the bar
FORM = ("png",)  # values as pixels: what a folder of predictions is kept as
KINDS = 20  # different photos; the others are copies
ALTERNATIONS = 3


def write_photos(folder: Path, count: int) -> list[Path]:
    """Draw photos of 1 to 2 megapixels: soft shapes and grain, JPEG of quality 90."""
    draw, made = np.random.default_rng(0), []
    for index in range(min(count, KINDS)):
        high = int(draw.integers(500, 700)) * 2
        wide = min(high * 4 // 3, 2_000_000 // high) & ~1
        soft = cv2.resize(draw.integers(0, 256, (18, 24, 3), np.uint8), (wide, high))
        grain = draw.integers(0, 16, (high, wide, 3), np.uint8)
        path = folder / f"{index:04d}.jpg"
        cv2.imwrite(str(path), cv2.add(soft, grain), [cv2.IMWRITE_JPEG_QUALITY, 90])
        made.append(path)
    for index in range(len(made), count):
        made.append(folder / f"{index:04d}.jpg")
        made[-1].write_bytes(made[index % KINDS].read_bytes())
    return made


def folder(bundle: Bundle, photos: int) -> dict[str, Any]:
    """Run a folder through the pipeline and through a loop, a part after the other in turn.

    The limit is the CPUs over the CPU seconds that a photo takes; the share of it that is reached
    is how busy the CPUs are kept. Reading and writing are included.
    """
    cpus = available_cpus()
    with (
        tempfile.TemporaryDirectory() as name,
        Predictor.open(bundle, threads=1) as narrow,
        Predictor.open(bundle) as wide,
    ):
        paths = write_photos(Path(name), photos)
        parts = [paths[index::ALTERNATIONS] for index in range(ALTERNATIONS)]
        out = Path(name) / "out"
        samples: dict[str, list[tuple[float, float, int]]] = {"pipeline": [], "loop": []}
        for part in (parts[0][:4], *parts):
            samples["pipeline"].append(_clock(partial(_pipeline, narrow, part, out, cpus)))
            samples["loop"].append(_clock(partial(_loop, wide, part, out)))
    found: dict[str, Any] = {"cpus": cpus, "photos": photos, "form": FORM[0]}
    for arm, runs in samples.items():
        kept = runs[1:]  # the first one warms up
        wall, cpu = sum(run[0] for run in kept), sum(run[1] for run in kept)
        count = sum(run[2] for run in kept)
        found[arm] = {
            "photos_per_s": rounded([run[2] / run[0] for run in kept]),
            "cpu_s_per_photo": round(cpu / count, 5),
            "share_of_limit": round(cpu / (wall * cpus), 4),
        }
    busy = found["pipeline"]["share_of_limit"]
    faster = [loop[0] / pipe[0] for pipe, loop in zip(*_kept(samples), strict=True)]
    found["times_faster_than_the_loop"] = rounded(faster)
    found["bar"] = f"at least {BUSY} of the limit, and faster than the loop"
    found["met"] = busy >= BUSY and float(np.median(faster)) > 1
    return found


def _kept(samples: dict[str, list[tuple[float, float, int]]]) -> list[Any]:
    return [samples["pipeline"][1:], samples["loop"][1:]]


def _clock(run: Callable[[], int]) -> tuple[float, float, int]:
    """Give seconds, CPU seconds of all threads, and what was done."""
    wall, cpu = time.perf_counter(), time.process_time()
    done = run()
    return time.perf_counter() - wall, time.process_time() - cpu, done


def _pipeline(predict: Predictor, paths: list[Path], out: Path, cpus: int) -> int:
    """Do what `simo-infer` does with a folder: a lane for every CPU, one thread in each."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        pipeline = Pipeline(predict, sinks=[Forms(out, FORM)], lanes=cpus, reduced=True)
        return sum(outcome.error is None for outcome in pipeline.run(Files(paths)))
    finally:
        cv2.setNumThreads(threads)


def _loop(predict: Predictor, paths: list[Path], out: Path) -> int:
    """Do the same in a loop, with all the threads that ONNX Runtime and OpenCV want."""
    sink = Forms(out, FORM)
    for path in paths:
        sink.write(Frame(path.stem, str(path), path), predict(path, reduced=True))
    return len(paths)
