"""The soak: mixed sizes and tasks for a while, and what memory and open files do meanwhile."""

import gc
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simo_bench.runtime_folder import write_photos
from simo_bench.samples import rounded
from simo_runtime.bundle import Bundle
from simo_runtime.image import read_image
from simo_runtime.predictor import Predictor
from simo_runtime.sinks import Forms
from simo_runtime.sources import Frame

MEGABYTES = 20.0  # the bar
CALLS = 200  # between two looks at memory and files


def soak(bundle: Bundle, minutes: float) -> dict[str, Any]:
    """Run mixed sizes and tasks for a while, and watch resident memory and open files.

    They are read after every 200 calls, when the predictor is closed and no prediction is left.
    """
    draw = random.Random(0)
    rows, runs = list[tuple[float, float, int]](), 0
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), 6)
        sink = Forms(Path(folder) / "out", ("png", "jpg", "overlay"))
        while time.monotonic() < begin + 60 * minutes:
            runs += _mixed(bundle, photos, sink, draw, begin + 60 * minutes)
            gc.collect()
            rows.append((time.monotonic() - begin, *_held()))
    warm = rows[len(rows) // 3 :]  # a third warms up
    memory = [row[1] for row in warm]
    files = [row[2] for row in warm]
    growth = float(np.median(memory[-max(1, len(memory) // 4) :]) - memory[0])
    return {
        "minutes": minutes,
        "runs": runs,
        "mib": rounded(memory),
        "growth_mib": round(growth, 2),
        "span_mib": round(max(memory) - min(memory), 2),
        "open_files": [min(files), max(files)],
        "rows": [[round(one, 1) for one in row] for row in rows[:: max(1, len(rows) // 60)]],
        "bar": f"flat within {MEGABYTES} MB after warm-up, and no more open files",
        "met": max(memory) - min(memory) <= MEGABYTES and files[-1] <= files[0],
    }


def _mixed(
    bundle: Bundle, photos: Sequence[Path], sink: Forms, draw: random.Random, end: float
) -> int:
    """Open a predictor for calls of all sorts, until a time at the latest; give how many."""
    runs = 0
    with Predictor.open(bundle) as predict:
        while runs < CALLS and time.monotonic() < end:
            _one(predict, draw.choice(photos), sink, draw)
            runs += 1
    return runs


def _one(predict: Predictor, photo: Path, sink: Forms, draw: random.Random) -> None:
    """Predict some tasks of a photo, of a part of it or of it in a reduced size, and write them."""
    names = [task.name for task in predict.bundle.manifest.tasks]
    tasks = draw.sample(names, draw.randint(1, len(names)))
    if draw.random() < 0.5:
        high, wide = draw.randint(16, 900), draw.randint(16, 900)
        scene = predict(read_image(photo)[:high, :wide], colours="RGB", tasks=tasks)
    else:
        scene = predict(photo, tasks=tasks, reduced=draw.random() < 0.5)
    sink.write(Frame("frame", "frame", photo), scene)


def _held() -> tuple[float, int]:
    """Give resident memory in MiB and the number of open files."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))
