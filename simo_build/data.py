"""Labelled images: DATASETS holds one reader per format; `load_split` reads a split into memory.

The `folder` format, RGB and truth aligned pixel by pixel, file names shared by all folders:

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_build.hashing import digest
from simo_build.loading import LoadedRecipe
from simo_build.progress import Progress
from simo_build.recipe import UNTARGETED, TaskPart
from simo_runtime.errors import DataError, unknown
from simo_runtime.image import read_image
from simo_runtime.metrics import IGNORE, unit
from simo_runtime.placement import Placement
from simo_runtime.scales import log_depth
from simo_runtime.tasks import kind_named

Array = NDArray[Any]


class Dataset(Protocol):
    """A format of labelled images."""

    def ids(self, split: str) -> Sequence[str]: ...

    def image(self, name: str) -> NDArray[np.uint8]: ...

    def truth(self, name: str, task: TaskPart) -> Array: ...

    def fingerprint(self) -> str: ...


class FolderDataset:
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

    def image(self, name: str) -> NDArray[np.uint8]:
        paths = [self.root / "rgb" / f"{name}{suffix}" for suffix in (".jpg", ".png")]
        return read_image(next((path for path in paths if path.is_file()), paths[0]))

    def truth(self, name: str, task: TaskPart) -> Array:
        assert task.target is not None  # the recipe was checked for it
        path = self.root / task.target.folder / f"{name}.png"
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
        if raw is None:
            raise DataError(f"{path}: missing, or not a PNG file that can be read")
        return DECODERS[task.kind](self, path, raw, task)

    def fingerprint(self) -> str:
        """Hash meta.json and the names and sizes of all files; reading them all would be slow."""
        paths = sorted(path for path in self.root.rglob("*") if path.is_file())
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
    worst = int(labels[labels != IGNORE].max(initial=0))
    if worst >= len(task.labels):
        raise DataError(f"{path}: class {worst}, but the recipe has {len(task.labels)} labels")
    return labels


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
DATASETS: dict[str, Callable[[Path], Dataset]] = {"folder": FolderDataset}


@dataclass(frozen=True)
class Samples:
    """A split in memory, at the network's size H x W.

    `images` is uint8 (n, H, W, 3) RGB. Truths are uint8 (n, H, W) classes, float32 (n, H, W)
    values, and float16 (n, H, W, 3) normals and colours (half the memory, and 0.03 degrees or a
    thirtieth of a grey level at most). A pixel without truth has the `empty` of its kind.
    """

    images: NDArray[np.uint8]
    truths: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.images)


def mirrored(samples: Samples, kinds: Mapping[str, str]) -> Samples:
    """Add the mirror image of every image, its truths with it; a mirrored normal turns in x."""
    turned = {
        task: truth[:, :, ::-1] * np.array([-1, 1, 1], truth.dtype)
        if kinds[task] == "normals"
        else truth[:, :, ::-1]
        for task, truth in samples.truths.items()
    }
    return Samples(
        np.concatenate([samples.images, samples.images[:, :, ::-1]]),
        {task: np.concatenate([truth, turned[task]]) for task, truth in samples.truths.items()},
    )


def open_dataset(loaded: LoadedRecipe) -> Dataset:
    """Open the data set of a recipe."""
    data = loaded.recipe.data
    if data is None:
        raise DataError(f"{loaded.shown}: the recipe names no `data`")
    if data.format not in DATASETS:
        raise unknown("data format", data.format, DATASETS)
    root = loaded.locate(data.root)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder (`data.root` of {loaded.shown})")
    return DATASETS[data.format](root)


def load_split(
    loaded: LoadedRecipe, split: str, *, tasks: Sequence[str], progress: Progress
) -> Samples:
    """Read a split by its role (`train`, `realign`, `select`, `test`), truths of `tasks` only."""
    recipe, dataset = loaded.recipe, open_dataset(loaded)
    assert recipe.data is not None  # open_dataset has seen to it
    names = dataset.ids(getattr(recipe.data, split))
    parts = {task: recipe.tasks[task] for task in tasks}
    images, truths = [], {task: [] for task in tasks}  # type: ignore[var-annotated]  # lists grow below
    for name in progress.track(names, f"reading {split}"):
        image = dataset.image(name)
        place = Placement(image.shape[:2], recipe.image.size, recipe.image.fit)
        images.append(place.apply(image, fill=fill_colour(recipe.image.mean)))
        for task, part in parts.items():
            truth = itself(image) if part.kind in UNTARGETED else dataset.truth(name, part)
            if truth.shape[:2] != image.shape[:2]:
                raise DataError(
                    f"{name}: {task} is {truth.shape[:2]}, its image is {image.shape[:2]}"
                )
            truths[task].append(fit_truth(truth, place, part.kind))
    return Samples(np.stack(images), {task: np.stack(every) for task, every in truths.items()})


def fill_colour(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Give the colour of letterbox bars: the mean, which is zero in normalised space."""
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue


def itself(image_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Give an image as the truth of autoencoding: colours of -1 to 1."""
    return np.asarray(image_HW3 / 127.5 - 1.0, np.float32)


def fit_truth(truth: Array, place: Placement, kind: str) -> Array:
    """Bring a truth to the network's size by nearest neighbour, the image itself as images are.

    Bars have no truth.
    """
    top, left, high, wide = place.inner
    channels = kind_named(kind).channels
    dtype = np.uint8 if channels is None else np.float16 if channels == 3 else np.float32
    canvas = np.full((*place.target, *truth.shape[2:]), kind_named(kind).empty, dtype)
    method = place.interpolation if kind in UNTARGETED else cv2.INTER_NEAREST_EXACT
    resized = cv2.resize(truth, (wide, high), interpolation=method)
    canvas[top : top + high, left : left + wide] = resized
    return canvas
