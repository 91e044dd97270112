"""From stored numbers to truths: what a file holds, brought to the scale of its kind of task.

Shapes: H x W pixels.  DECODERS holds one function a kind.  What is no truth becomes the `empty`
of the kind (`simo_runtime.tasks`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simo_build.recipe import TaskPart
from simo_runtime.errors import DataError
from simo_runtime.metrics import IGNORE, unit
from simo_runtime.scales import log_depth
from simo_runtime.tasks import kind_named

Array = NDArray[Any]
Signs = tuple[float, float, float]
SHORT = 0.1  # a stored normal below this length is none, and its direction is rounding
FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How a format stores a truth.

    scale     depth, disparity: what a stored number is multiplied with
    invalid   the stored number of a pixel without truth
    span      edges, keypoints: the stored numbers that become -1 and 1; the rest is cut to them.
              None: whole numbers reach from 0 to their type's highest, others are as they are
    signs     normals: what the stored components are multiplied with
    table     classes: from a stored number, 0 and up, to a class; past its end there is none
    types     the types of number that a file may have; none given: any that the kind can be
    """

    scale: float = 1.0
    invalid: float | None = None
    span: tuple[float, float] | None = None
    signs: Signs = (1.0, 1.0, 1.0)
    table: NDArray[np.uint8] | None = None
    types: tuple[str, ...] = ()


def read_stored(path: Path) -> Array:
    """Read a .npy file, or a PNG or TIFF file of any depth; colours are RGB."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if path.suffix == ".npy":
        try:
            return np.asarray(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: not a whole .npy file of numbers: {error}") from error
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if raw is None:
        raise DataError(f"{path}: not an image file that can be read")
    return raw[..., ::-1] if raw.ndim == 3 and raw.shape[2] == 3 else np.asarray(raw)


def one_channel(raw: Array, path: Path, task: TaskPart) -> Array:
    """Refuse what is not (H, W) or (H, W, 1) numbers; give (H, W)."""
    if raw.ndim == 3 and raw.shape[2] == 1:
        raw = raw[..., 0]
    if raw.ndim != 2 or raw.dtype.kind not in "uif":
        colours = raw.ndim == 3 and kind_named(task.kind).channels is None
        hint = ", the class of every pixel, not its colour" if colours else ""
        raise DataError(
            f"{path}: {raw.dtype} {raw.shape}; {task.kind} needs numbers (height, width){hint}"
        )
    return raw


def check_classes(found: NDArray[np.uint8], path: Path, task: TaskPart) -> NDArray[np.uint8]:
    """Refuse classes past the recipe's labels."""
    wrong = [int(value) for value in np.unique(found) if len(task.labels) <= value != IGNORE]
    if wrong:
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DataError(
            f"{path}: class {wrong[-1]}{others}, but the recipe has {len(task.labels)} labels, "
            f"0 to {len(task.labels) - 1} ({IGNORE} is for pixels without a class)"
        )
    return found


def classes(raw: Array, path: Path, task: TaskPart, coding: Coding) -> NDArray[np.uint8]:
    """Give class indices; negative numbers, 255, `invalid` and what is no number have none."""
    raw = one_channel(raw, path, task)
    known = np.isfinite(raw) & (raw >= 0)
    if coding.invalid is not None:
        known &= raw != coding.invalid
    if raw.dtype.kind == "f" and not np.array_equal(raw[known], np.rint(raw[known])):
        raise DataError(f"{path}: {raw.dtype} with fractions; classes are whole numbers")
    if coding.table is None and (raw[known] > IGNORE).any():
        raise DataError(f"{path}: class {raw[known].max():g}; stored classes are 0 to {IGNORE}")
    table = np.arange(IGNORE + 1, dtype=np.uint8) if coding.table is None else coding.table
    known &= raw < len(table)
    found = np.full(raw.shape, IGNORE, np.uint8)
    found[known] = table[raw[known].astype(np.int64)]
    return check_classes(found, path, task)


def positive(raw: Array, path: Path, task: TaskPart, coding: Coding) -> NDArray[np.float32]:
    """Give values over 0; what is 0, negative, no number or `invalid` becomes 0."""
    raw = one_channel(raw, path, task)
    values = raw.astype(np.float32) * np.float32(coding.scale)
    known = np.isfinite(values) & (values > 0)
    if coding.invalid is not None:
        known &= raw != coding.invalid
    return np.where(known, values, np.float32(0))


def logarithmic(raw: Array, path: Path, task: TaskPart, coding: Coding) -> NDArray[np.float32]:
    """Give the same, which are metres, on the scale of log_depth; 0 becomes NaN."""
    metres = positive(raw, path, task, coding)
    return np.where(metres > 0, log_depth(metres), np.float32(np.nan))


def directions(raw: Array, path: Path, task: TaskPart, coding: Coding) -> NDArray[np.float32]:
    """Give unit vectors (H, W, 3); (0, 0, 0) and what is no number become (0, 0, 0).

    Of whole numbers a grey in the middle, 127 or 128, is none either: nobody writes 0 exactly.
    """
    if raw.shape[2:] != (3,) or raw.dtype.kind not in "uf":
        raise DataError(f"{path}: {raw.dtype} {raw.shape}; normals need (height, width, 3)")
    known = np.isfinite(raw).all(axis=-1) & (raw != 0).any(axis=-1)
    values = raw.astype(np.float32)
    if raw.dtype.kind == "u":
        values = values / np.float32(np.iinfo(raw.dtype).max / 2) - np.float32(1)
        known &= np.linalg.norm(values, axis=-1) > SHORT
    values = np.where(known[..., None], values, np.float32(0))
    return np.asarray(unit(values) * np.array(coding.signs), np.float32)


def strength(raw: Array, path: Path, task: TaskPart, coding: Coding) -> NDArray[np.float32]:
    """Give values of -1 to 1; what is no number or `invalid` becomes NaN."""
    raw = one_channel(raw, path, task)
    span = coding.span
    if span is None and raw.dtype.kind in "ui":
        span = (0.0, float(np.iinfo(raw.dtype).max))
    values = raw.astype(np.float64)
    if span is not None:
        low, high = span
        values = 2 * (np.clip(values, low, high) - low) / (high - low) - 1
    known = np.isfinite(values)
    if coding.invalid is not None:
        known &= raw != coding.invalid
    return np.where(known, values, np.nan).astype(np.float32)


DECODERS: dict[str, Callable[[Array, Path, TaskPart, Coding], Array]] = {
    "segmentation": classes,
    "parts": classes,
    "depth": positive,
    "log_depth": logarithmic,
    "disparity": positive,
    "normals": directions,
    "edges": strength,
    "keypoints": strength,
}


def decode(raw: Array, path: Path, task: TaskPart, coding: Coding) -> Array:
    """Bring stored numbers to the scale of a task's kind; of a type that cannot be: DataError."""
    if coding.types and raw.dtype.name not in coding.types:
        raise DataError(
            f"{path}: {raw.dtype} {raw.shape}; {task.kind} is stored as {' or '.join(coding.types)}"
        )
    if raw.ndim == 3 and kind_named(task.kind).channels is None and has_palette(path):
        raw = palette_indices(path)
    return DECODERS[task.kind](raw, path, task, coding)


def has_palette(path: Path) -> bool:
    """Whether a PNG file stores indices into a table of colours, as masks of PASCAL VOC do."""
    if path.suffix != ".png" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(26)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[25:] == b"\x03"


def palette_indices(path: Path) -> NDArray[np.uint8]:
    """Read the indices, of which OpenCV gives the colours; DataError if the file is damaged."""
    try:
        with Image.open(path) as image:
            return np.asarray(image, np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not a whole PNG file: {error}") from error
