"""A folder of images with maps: a data set of one's own.

    <images>/<name>.jpg            or .jpeg, .png, .webp, .bmp; folders inside are names too
    <target.folder>/<name><target.suffix>   a map as PNG, TIFF or .npy, by the kind of the task

`data.images` names the folder of the images, `data.splits` the splits: by shares, shuffled with
`data.seed`, or by text files with one name a line. How a kind is stored is in `stored.Coding`;
`target` says what is not as here:

    segmentation, parts   the class; 255 and `invalid` have none; `classes` lists what is stored for
                          each label, all else has none
    depth, log_depth      metres are stored * `scale`: 0.001 in whole numbers, 1 in floats
    disparity             `scale`: 1 / 65535 in whole numbers, 1 in floats
    normals               uint8 or uint16 from 0 = -1 to the highest = 1, or floats; `signs`
    edges, keypoints      whole numbers from 0 = -1 to the highest = 1, or floats; `range`
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simo_build.formats.dataset import (
    Array,
    Dataset,
    folder_in,
    no_file,
    sizes_hash,
    split_of,
)
from simo_build.formats.splits import parted
from simo_build.formats.stored import Coding, decode, read_stored
from simo_build.recipe import TaskPart
from simo_build.sources import DataPart, Target
from simo_runtime.errors import DataError, listing
from simo_runtime.image import read_image
from simo_runtime.metrics import IGNORE

PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAPS = (".png", ".npy", ".tif", ".tiff")
SCALES = {"depth": 0.001, "log_depth": 0.001, "disparity": 1 / 65535}  # of whole numbers


class ImagesDataset(Dataset):
    """Images and maps with the same names; a name is a path without its suffix."""

    def __init__(self, root: Path, data: DataPart) -> None:
        self.root, self.data = root, data

    @cached_property
    def photos(self) -> Mapping[str, Path]:
        """The images by name, in the order of their names."""
        where = folder_in(self.root, self.data.images)
        paths = sorted(p for p in where.rglob("*") if p.suffix.lower() in PHOTOS and p.is_file())
        found: dict[str, Path] = {}
        for path in paths:
            name = path.relative_to(where).with_suffix("").as_posix()
            if name in found:
                raise DataError(f"{path}: {found[name].name} has the same name; keep one of them")
            found[name] = path
        if not found:
            raise DataError(f"{where}: there is no image in it ({', '.join(PHOTOS)})")
        return found

    @cached_property
    def splits(self) -> Mapping[str, Sequence[str]]:
        """The names of every split."""
        splits = self.data.splits
        shares = [share for share in splits.values() if isinstance(share, float)]
        if shares:
            parts = parted(list(self.photos), shares, self.data.seed)
            return dict(zip(splits, parts, strict=True))
        return {split: self._listed(str(name)) for split, name in splits.items()}

    def _listed(self, file: str) -> list[str]:
        path = self.root / file
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as a list of names: {error}") from error
        names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        names = [self._known_name(name) for name in names]
        if absent := [name for name in names if name not in self.photos]:
            where = self.root / self.data.images
            raise DataError(f"{path}: not in {where}:\n{listing(absent)}")
        if twice := sorted(name for name, times in Counter(names).items() if times > 1):
            raise DataError(f"{path}: names that stand twice:\n{listing(twice)}")
        return names

    def _known_name(self, name: str) -> str:
        stem = name if name in self.photos else str(Path(name).with_suffix("").as_posix())
        return stem if stem in self.photos else name

    def ids(self, split: str) -> list[str]:
        return split_of(self.splits, split, self.root)

    def image(self, name: str) -> NDArray[np.uint8]:
        return read_image(self.photos[name])

    def truth(self, name: str, task: TaskPart) -> Array:
        assert task.target is not None  # the recipe was checked for it
        if fault := self.absent(name, task):
            raise DataError(fault)
        (path,) = self._maps(name, task.target)
        raw = read_stored(path)
        if task.kind in SCALES and raw.dtype == np.uint8 and task.target.scale is None:
            raise DataError(
                f"{path}: uint8 {raw.shape}; {task.kind} in 8 bits has no usual scale: store "
                "16 bits or floats, or give target.scale"
            )
        return decode(raw, path, task, coding_of(task, raw))

    def absent(self, name: str, task: TaskPart | None) -> str | None:
        target = None if task is None else task.target
        if target is None:
            return no_file(self.photos[name])
        if (count := len(self._maps(name, target))) == 1:
            return None
        return (
            f"{self.root / target.folder / name}: {count} files that end with "
            f"{', '.join(_endings(target))}; there must be one (target.suffix says how its name "
            "ends)"
        )

    def _maps(self, name: str, target: Target) -> list[Path]:
        paths = [self.root / target.folder / f"{name}{ending}" for ending in _endings(target)]
        return [path for path in paths if path.is_file()]

    def fingerprint(self, folders: Collection[str]) -> str:
        about = self.data.model_dump(mode="json", include={"images", "splits", "seed"})
        lists = [
            (self.root / name).read_text(encoding="utf-8", errors="replace")
            for name in self.data.splits.values()
            if isinstance(name, str) and (self.root / name).is_file()
        ]
        read = (self.data.images, *folders)
        return sizes_hash(self.root, read, format="images", about=about, lists=lists)


def _endings(target: Target) -> tuple[str, ...]:
    """Give how the name of a map may end."""
    return MAPS if target.suffix is None else (target.suffix,)


def coding_of(task: TaskPart, raw: Array) -> Coding:
    """Say how a map is stored, from the recipe and the type of its numbers."""
    target = task.target
    assert target is not None  # the recipe was checked for it
    scale = SCALES.get(task.kind, 1.0) if raw.dtype.kind in "ui" else 1.0
    return Coding(
        scale=scale if target.scale is None else target.scale,
        invalid=target.invalid,
        span=target.range,
        signs=target.signs or (1.0, 1.0, 1.0),
        table=None if target.classes is None else table_of(target.classes),
    )


def table_of(stored: Sequence[int]) -> NDArray[np.uint8]:
    """Give the table from stored numbers to their places in a list; all others have no class."""
    table = np.full(max(stored) + 1, IGNORE, np.uint8)
    table[list(stored)] = np.arange(len(stored))
    return table


def open_images(root: Path, data: DataPart) -> ImagesDataset:
    """Open a folder of images."""
    return ImagesDataset(root, data)
