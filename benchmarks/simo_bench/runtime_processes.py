"""What a process of its own costs: resident memory, importing, and the command from the shell."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from simo_bench.samples import rounded
from simo_bench.singles import copies_of, experts_of
from simo_runtime.bundle import Bundle

MEMORY, IMPORT_S, START_S = 0.4, 0.25, 1.0  # the bars

# A process that opens some bundles, runs each a few times, and says what it holds, in KiB. Without
# a bundle it is the empty process: the same imports and nothing else.
CHILD = """
import gc, json, sys
import cv2, numpy, onnxruntime
from pathlib import Path
from simo_runtime import Predictor
open_ones = [Predictor.open(root, joint={joint}, self_test=False) for root in sys.argv[1:]]
for predict in open_ones:
    photo = numpy.zeros((*predict.bundle.manifest.image_size, 3), numpy.uint8)
    for _ in range(3):
        predict(photo, colours="RGB")
gc.collect()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({{key: int(status[key].split()[0]) for key in ("VmRSS", "VmHWM")}}))
"""


def resident(roots: Sequence[Path], *, joint: bool) -> dict[str, int]:
    """Run the child on bundles: its resident memory now and at most, in KiB."""
    command = [sys.executable, "-c", CHILD.format(joint=joint), *map(str, roots)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(told.stdout)
    return found


def memory(bundle: Bundle, starts: int) -> dict[str, Any]:
    """Compare the memory of one shared encoder with that of a model for every task.

    Every figure is a process of its own; what an empty process holds is taken off. Models of
    single tasks live in one process together, which is the least that they can take.
    """
    names = [task.name for task in bundle.manifest.tasks]
    found: dict[str, Any] = {"bar": f"at most {MEMORY} for a large network"}
    with tempfile.TemporaryDirectory() as folder:
        singles = experts_of(bundle, names) or copies_of(bundle, names, Path(folder), "fp32")
        theirs = [one.root for one in singles.bundles.values()]
        for way, joint in (("split", False), ("joint", True)):
            arms = {"empty": list[Path](), "ours": [bundle.root], "theirs": theirs}
            samples: dict[str, list[int]] = {name: [] for name in arms}
            for _ in range(starts):
                for name, roots in arms.items():
                    samples[name].append(resident(roots, joint=joint)["VmRSS"])
            empty = np.array(samples["empty"])
            ratios = (np.array(samples["ours"]) - empty) / (np.array(samples["theirs"]) - empty)
            ratio = rounded(ratios.tolist())
            large = float(np.median(samples["ours"]) - np.median(empty)) > 200 * 1024
            found[way] = {
                "mib": {n: rounded([v / 1024 for v in values]) for n, values in samples.items()},
                "ratio": ratio,
                "met": ratio["median"] <= MEMORY if large else None,
            }
    return found


def imports(starts: int) -> dict[str, Any]:
    """Time `import simo_runtime` in a fresh interpreter, and what it takes to have a predictor."""
    code = {
        "nothing": "pass",
        "import simo_runtime": "import simo_runtime",
        "with Predictor": "from simo_runtime import Predictor",
    }
    samples: dict[str, list[float]] = {name: [] for name in code}
    for _ in range(starts):
        for name, line in code.items():
            samples[name].append(_seconds([sys.executable, "-c", line]))
    extra = np.subtract(samples["import simo_runtime"], samples["nothing"])
    return {
        "seconds": {name: rounded(values) for name, values in samples.items()},
        "extra_s": rounded(extra.tolist()),
        "bar": f"under {IMPORT_S} s beside an interpreter that imports nothing",
        "met": float(np.median(extra)) < IMPORT_S,
    }


def start(bundle: Bundle, starts: int) -> dict[str, Any]:
    """Time `simo-infer` on one photo, from the shell to the files."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        draw = np.random.default_rng(0)
        pixels = cv2.resize(draw.integers(0, 256, (12, 16, 3), np.uint8), (640, 480))
        cv2.imwrite(str(photo), pixels)
        command = [Path(sys.executable).parent / "simo-infer", photo, "--bundle", bundle.root]
        full = [*map(str, command), "-o", str(Path(folder) / "out")]
        first = _seconds(full)  # with the self-test, once on a machine
        samples = [_seconds(full) for _ in range(starts)]
        written = len(list((Path(folder) / "out").iterdir()))
    return {
        "first_s": round(first, 3),
        "seconds": rounded(samples),
        "files": written,
        "bar": f"under {START_S} s",
        "met": float(np.median(samples)) < START_S,
    }


def _seconds(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin
