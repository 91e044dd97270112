"""The self-test: a picture that every machine can make, and what a bundle said of it when built.

`golden.json` in a bundle holds, for every task, the output of the float32 graphs at every 16th
row and column. A machine, a driver or a precision that gives something else is found at opening and
not in production. The picture is made of whole numbers, so that it is the same everywhere.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_runtime.backends import Session
from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError, BundleError, listing
from simo_runtime.files import whole
from simo_runtime.image import Pixels

GOLDEN = "golden.json"
SCHEMA = "simo.golden/1"
STEP = 16
DIGITS = 6
LARGEST = 4 << 20  # bytes of the file
# What a file that is damaged raises; the last two by too large a number, and too deep a nesting.
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)
# How far values may be: the relative Frobenius norm of the difference, and, of classes, the share
# of pixels that may have another one. Rounding differs between machines, and more so in fewer bits.
TOLERANCES = {
    "fp32": (1e-3, 0.02),
    "fp16": (0.03, 0.06),
    "bf16": (0.1, 0.12),
    "int8": (0.25, 0.25),
    "fp8": (0.25, 0.25),
}

Array = NDArray[Any]


def golden_image(size: tuple[int, int]) -> Pixels:
    """Make the picture (H, W, 3) of a size: ramps, stripes and a disc, in whole numbers."""
    high, wide = size
    y, x = np.mgrid[0:high, 0:wide].astype(np.int64)
    red = x * 255 // max(1, wide - 1)
    green = y * 255 // max(1, high - 1)
    blue = (x // 7 + y // 5) % 2 * 160 + 40
    disc = (2 * x - wide) ** 2 + (2 * y - high) ** 2 < min(high, wide) ** 2 // 3
    picture = np.stack([np.where(disc, 255 - c, c) for c in (red, green, blue)], axis=-1)
    return picture.astype(np.uint8)


def sampled(session: Session, bundle: Bundle) -> dict[str, Array]:
    """Run all tasks on the picture, and keep every 16th row and column of their outputs."""
    manifest = bundle.manifest
    pixels = golden_image(manifest.image_size)[None]
    outputs = session.run(pixels, [task.name for task in manifest.tasks])
    return {name: values[0, ..., ::STEP, ::STEP] for name, values in outputs.items()}


def write_golden(session: Session, bundle: Bundle) -> Path:
    """Write `golden.json` into the folder of a bundle that is being built.

    Raises BundleError if an output is not finite: the weights are damaged.
    """
    tasks = {}
    for name, values in sampled(session, bundle).items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BundleError(f"{bundle.root}: {name} has values that are no numbers")
        numbers = values.ravel().tolist()
        if values.dtype.kind == "f":
            numbers = [float(f"{number:.{DIGITS}g}") for number in numbers]
        tasks[name] = {"shape": list(values.shape), "values": numbers}
    path = bundle.root / GOLDEN
    with whole(path) as partial:
        text = json.dumps({"schema": SCHEMA, "step": STEP, "tasks": tasks}, sort_keys=True)
        partial.write_text(text + "\n", encoding="utf-8")
    return path


def read_golden(bundle: Bundle) -> dict[str, Array] | None:
    """Read what a bundle has said when it was built; None if it is of a build that kept nothing.

    Raises BundleError for a file that cannot be understood.
    """
    path = bundle.root / GOLDEN
    if GOLDEN not in bundle.manifest.files:
        return None
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20} MiB")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA or data["step"] != STEP:
            raise ValueError(f"schema {data['schema']!r}; this version reads {SCHEMA!r}")
        return {
            str(name): np.array(entry["values"], np.float64).reshape(entry["shape"])
            for name, entry in data["tasks"].items()
        }
    except UNREADABLE as error:
        raise BundleError(f"{path}: {error}") from error


def differences(
    found: Mapping[str, Array], golden: Mapping[str, Array], bundle: Bundle, precision: str
) -> list[str]:
    """List the tasks whose values are too far from the golden ones."""
    relative, share = TOLERANCES[precision]
    faults = []
    for task in bundle.manifest.tasks:
        expected, values = golden.get(task.name), found[task.name]
        if expected is None or expected.shape != values.shape:
            shape = None if expected is None else expected.shape
            faults.append(f"{task.name}: {GOLDEN} has the shape {shape}, not {values.shape}")
        elif task.labels:
            # Classes of random weights are decided by rounding in fewer bits.
            random = bundle.manifest.random_weights and precision != "fp32"
            other = float((values != expected).mean())
            if other > share and not random:
                faults.append(f"{task.name}: {other:.1%} other classes; at most {share:.1%}")
        else:
            gap = np.linalg.norm(values - expected) / max(float(np.linalg.norm(expected)), 1e-12)
            if not gap <= relative:  # written so that NaN fails
                faults.append(f"{task.name}: differs by {gap:.2%}; at most {relative:.2%}")
    return faults


def check_golden(session: Session, bundle: Bundle, *, backend: str, precision: str) -> bool:
    """Compare a session with the golden outputs; False if the bundle has none.

    Raises BackendError if the session gives something else.
    """
    golden = read_golden(bundle)
    if golden is None:
        return False
    faults = differences(sampled(session, bundle), golden, bundle, precision)
    if faults:
        raise BackendError(
            f"{bundle.root}: the self-test failed on {backend} in {precision}\n{listing(faults)}\n"
            "This machine computes something else than the one that built the bundle: try another "
            "backend or precision, or update the driver; self_test=False leaves the test out."
        )
    return True


def fingerprint(bundle: Bundle) -> str:
    """Give the hash of a bundle's manifest, which holds the hashes of all its files."""
    return hashlib.sha256(bundle.manifest.to_json().encode()).hexdigest()
