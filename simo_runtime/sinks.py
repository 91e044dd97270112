"""Write predictions to files, each under a temporary name that is then renamed."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import ImageError, listing
from simo_runtime.predictor import Prediction
from simo_runtime.tasks import kind_named


def names_of(images: Sequence[Path]) -> list[str]:
    """Give every image the stem of its outputs; two images with one stem are refused."""
    stems = [image.stem for image in images]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ImageError(
            f"several images would write the same files:\n{listing(twice)}\n"
            "Run them one after another, each with its own -o."
        )
    return stems


def write(prediction: Prediction, out: Path, stem: str, *, raw: str) -> list[Path]:
    """Write the raw values (`npy` or `png`) and a coloured overlay; give both files."""
    out.mkdir(parents=True, exist_ok=True)
    name = f"{stem}.{prediction.task.name}"
    if raw == "npy":
        values = write_npy(out / f"{name}.npy", prediction.values)
    else:
        values = write_image(out / f"{name}.png", as_png(prediction))
    picture = write_image(out / f"{name}.jpg", prediction.overlay()[..., ::-1])
    return [values, picture]


def as_png(prediction: Prediction) -> NDArray[np.generic]:
    """Encode values as pixels of 8 or 16 bits, as their kind does (`simo_runtime.pixels`)."""
    return np.asarray(kind_named(prediction.task.kind).encode(prediction.values))


def write_npy(path: Path, values: NDArray[np.generic]) -> Path:
    """Write an array as .npy."""
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_image(path: Path, pixels: NDArray[np.generic]) -> Path:
    """Write pixels (grey or BGR) in the format that the file's suffix names."""
    partial = _partial(path)
    encoded, data = cv2.imencode(path.suffix, np.ascontiguousarray(pixels))
    if not encoded:
        raise ImageError(f"{path}: OpenCV cannot encode {pixels.dtype} {pixels.shape}")
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
