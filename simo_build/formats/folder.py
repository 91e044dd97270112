"""The `folder` format, RGB and truth aligned pixel by pixel, file names shared by all folders.

meta.json      {"splits": {"train": [3, 4, ...], ...}, and tables such as "to13": [11, 4, ...]}
rgb/NNNN.jpg   or .png, uint8 RGB
<folder>/NNNN.png, by the kind of the task
    segmentation, parts   uint8 class index, 255 = ignore
    depth, log_depth      uint16 millimetres, 0 = invalid
    disparity             uint16, 65535 = 1, 0 = invalid
    normals               uint8 RGB e, n = e / 127.5 - 1, (0, 0, 0) = invalid;
                          x right, y down, z forward
    edges, keypoints      uint8 or uint16, from 0 = -1 to the highest value = 1
    autoencoding          no file, the image itself
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_build.formats.dataset import Array, Dataset, no_file
from simo_build.formats.stored import check_classes
from simo_build.hashing import digest
from simo_build.recipe import TaskPart
from simo_build.sources import DataPart
from simo_runtime.errors import DataError, unknown
from simo_runtime.image import read_image
from simo_runtime.metrics import IGNORE, unit
from simo_runtime.scales import log_depth


class FolderDataset(Dataset):
    """The `folder` format of the module's docstring."""

    def __init__(self, root: Path) -> None:
        self.root = root
        path = root / "meta.json"
        if not path.is_file():
            raise DataError(f"{root}: not a folder data set, there is no meta.json in it")
        try:
            self.meta: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: cannot be read as JSON: {error}") from error
        if not isinstance(self.meta, dict) or not isinstance(self.meta.get("splits"), dict):
            raise DataError(f'{path}: it must hold {{"splits": {{name: [file numbers]}}}}')

    def ids(self, split: str) -> list[str]:
        splits = self.meta["splits"]
        if split not in splits:
            raise unknown(f"split of {self.root}", split, splits)
        listed = splits[split]
        if not isinstance(listed, list) or not all(type(name) in (int, str) for name in listed):
            raise DataError(
                f"{self.root / 'meta.json'}: the split {split!r} must be a list of file numbers"
            )
        if not listed:
            raise DataError(f"{self.root}: the split {split!r} is empty")
        return [name if isinstance(name, str) else f"{name:04d}" for name in listed]

    def _image(self, name: str) -> Path:
        paths = [self.root / "rgb" / f"{name}{suffix}" for suffix in (".jpg", ".png")]
        return next((path for path in paths if path.is_file()), paths[0])

    def _truth(self, name: str, task: TaskPart) -> Path:
        assert task.target is not None  # the recipe was checked for it
        return self.root / task.target.folder / f"{name}.png"

    def absent(self, name: str, task: TaskPart | None) -> str | None:
        return no_file(self._image(name) if task is None else self._truth(name, task))

    def image(self, name: str) -> NDArray[np.uint8]:
        return read_image(self._image(name))

    def truth(self, name: str, task: TaskPart) -> Array:
        path = self._truth(name, task)
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
        if raw is None:
            raise DataError(f"{path}: missing, or not a PNG file that can be read")
        return DECODERS[task.kind](self, path, raw, task)

    def fingerprint(self, folders: Collection[str] = ()) -> str:
        """Hash meta.json and the names and sizes of files; reading them all would be slow.

        Of images and the truths in use: another task's truths beside them change no expert.
        """
        used = sorted({"rgb", *folders})
        paths = [p for name in used for p in sorted((self.root / name).rglob("*")) if p.is_file()]
        sizes = {path.relative_to(self.root).as_posix(): path.stat().st_size for path in paths}
        return digest({"meta": self.meta, "sizes": sizes})

    def table(self, name: str) -> NDArray[np.uint8]:
        """Give the table (256,) from stored classes to the recipe's; 255 stays 255."""
        where = self.root / "meta.json"
        tables = {key: value for key, value in self.meta.items() if isinstance(value, list)}
        if name not in tables:
            raise unknown(f"table of {where}", name, tables)
        values = tables[name]
        if len(values) > 256 or not all(type(v) is int and 0 <= v <= IGNORE for v in values):
            raise DataError(f"{where}: {name} must be at most 256 classes, each 0 to {IGNORE}")
        table = np.full(256, IGNORE, np.uint8)
        table[: len(values)] = values
        table[IGNORE] = IGNORE
        return table


def _labels(data: FolderDataset, path: Path, raw: Array, task: TaskPart) -> Array:
    if raw.dtype != np.uint8 or raw.ndim != 2:
        raise DataError(f"{path}: {raw.dtype} {raw.shape}; labels are uint8 (height, width)")
    assert task.target is not None
    labels = data.table(task.target.map)[raw] if task.target.map else raw
    return check_classes(labels, path, task)


def _depth(data: FolderDataset, path: Path, raw: Array, task: TaskPart) -> Array:
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise DataError(f"{path}: {raw.dtype} {raw.shape}; depth is uint16 (height, width), mm")
    return np.asarray(raw.astype(np.float32) / 1000.0)


def _normals(data: FolderDataset, path: Path, raw: Array, task: TaskPart) -> Array:
    if raw.dtype != np.uint8 or raw.shape[2:] != (3,):
        raise DataError(f"{path}: {raw.dtype} {raw.shape}; normals are uint8 (height, width, 3)")
    encoded = raw[..., ::-1]  # OpenCV reads BGR
    normals = unit(encoded.astype(np.float32) / 127.5 - 1.0).astype(np.float32)
    normals[(encoded == 0).all(axis=-1)] = 0.0
    return normals


def _log_depth(data: FolderDataset, path: Path, raw: Array, task: TaskPart) -> Array:
    metres = _depth(data, path, raw, task)
    return np.where(metres > 0, log_depth(metres), np.float32(np.nan))


def _disparity(data: FolderDataset, path: Path, raw: Array, task: TaskPart) -> Array:
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise DataError(f"{path}: {raw.dtype} {raw.shape}; disparity is uint16 (height, width)")
    return np.asarray(raw.astype(np.float32) / 65535.0)


def _strength(data: FolderDataset, path: Path, raw: Array, task: TaskPart) -> Array:
    if raw.dtype not in (np.uint8, np.uint16) or raw.ndim != 2:
        raise DataError(
            f"{path}: {raw.dtype} {raw.shape}; {task.kind} are uint8 or uint16 (height, width)"
        )
    return np.asarray(raw.astype(np.float32) * (2.0 / np.iinfo(raw.dtype).max) - 1.0)


DECODERS: dict[str, Callable[[FolderDataset, Path, Array, TaskPart], Array]] = {
    "segmentation": _labels,
    "parts": _labels,
    "depth": _depth,
    "log_depth": _log_depth,
    "disparity": _disparity,
    "normals": _normals,
    "edges": _strength,
    "keypoints": _strength,
}


def open_folder(root: Path, data: DataPart) -> FolderDataset:
    """Open a folder data set."""
    return FolderDataset(root)
