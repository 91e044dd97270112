"""The soak: mixed sizes and tasks for a while, and what memory and open files do meanwhile."""

import gc
import os
import random
import tempfile
import time
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


def soak(bundle: Bundle, minutes: float) -> dict[str, Any]:
    """Run mixed sizes and tasks for a while, and watch resident memory and open files."""
    draw = random.Random(0)
    names = [task.name for task in bundle.manifest.tasks]
    end, rows, runs = time.monotonic() + 60 * minutes, list[tuple[float, float, int]](), 0
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), 6)
        sink = Forms(Path(folder) / "out", ("png", "jpg", "overlay"))
        while time.monotonic() < end:
            with Predictor.open(bundle) as predict:
                for _ in range(200):
                    path = draw.choice(photos)
                    tasks = draw.sample(names, draw.randint(1, len(names)))
                    if draw.random() < 0.5:
                        side = draw.randint(16, 900)
                        pixels = read_image(path)[:side, : draw.randint(16, 900)]
                        scene = predict(pixels, colours="RGB", tasks=tasks)
                    else:
                        scene = predict(path, tasks=tasks, reduced=draw.random() < 0.5)
                    sink.write(Frame("frame", "frame", path), scene)
                    runs += 1
                    if time.monotonic() >= end:
                        break
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


def _held() -> tuple[float, int]:
    """Give resident memory in MiB and the number of open files."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))
