"""Taskonomy, with the buildings, sizes and scales of arXiv 2504.11268.

    <domain>/<building>/point_<X>_view_<Y>_domain_<domain>.png

A task names its domain as `target.folder`, by kind:
    depth, log_depth    depth_zbuffer, 512ths of a metre, 65535 = invalid
    normals             normal, uint8 RGB e, n = e / 127.5 - 1; stored x right, y down, z to the
                        camera, read x right, y down, z forward (other `signs` can be given)
    edges, keypoints    edge_texture from 0 = -1 to 11041 = 1, keypoints2d to 3129 = 1; other
                        domains need their `range`
    segmentation        segment_semantic, 0 = ignore, 1 (background) to 17 become 0 to 16
    autoencoding        rgb, the image itself
Where the domain mask_valid is there, what it calls invalid has no truth, nor have the pixels beside
it; classes are not masked.
"""

from collections.abc import Collection
from functools import cached_property
from pathlib import Path

import cv2
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
from simo_build.formats.mtan import SEED, halves
from simo_build.formats.stored import Coding, decode, read_stored
from simo_build.recipe import TaskPart
from simo_build.sources import DataPart
from simo_runtime.errors import DataError
from simo_runtime.image import read_image
from simo_runtime.metrics import IGNORE

# The paper's, which are not the official tiny split's.
BUILDINGS = {
    "train": (
        "allensville",
        "coffeen",
        "collierville",
        "leonardo",
        "merom",
        "pinesdale",
        "ranchester",
        "stockman",
    ),
    "val": ("beechwood", "corozal", "klickitat", "shelbyville"),
    "test": ("ihlen", "mcdade", "onaga", "tolstoy"),
}
SPLITS = (*BUILDINGS, "realign", "select")
IMAGES = {"train": 2000, "val": 1000, "test": 1000}  # of a building, the first by name
DOMAINS = {"segment_semantic": "segmentsemantic", "mask_valid": "depth_zbuffer"}
SPANS = {"edge_texture": (0.0, 11041.0), "keypoints2d": (0.0, 3129.0)}
TO_FORWARD = (1.0, 1.0, -1.0)
CLASSES = np.array([IGNORE, *range(17)], np.uint8)


class TaskonomyDataset(Dataset):
    """The published folders; a name is `<building>/point_<X>_view_<Y>`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, list[str]] = {}

    def ids(self, split: str) -> list[str]:
        found: dict[str, list[str]] = {}
        if split in BUILDINGS:
            found = {split: self._names(split)}
        elif split in ("realign", "select"):
            found = halves(self._names("val"))
        return split_of({**dict.fromkeys(SPLITS, ()), **found}, split, self.root)

    def _names(self, split: str) -> list[str]:
        if split in self._listed:
            return self._listed[split]
        ending, names = "_domain_rgb.png", []
        for building in BUILDINGS[split]:
            paths = folder_in(self.root, "rgb", building).glob(f"*{ending}")
            first = sorted(path.name for path in paths)[: IMAGES[split]]
            names += [f"{building}/{name.removesuffix(ending)}" for name in first]
        self._listed[split] = names
        return names

    def _path(self, name: str, folder: str) -> Path:
        return self.root / folder / f"{name}_domain_{DOMAINS.get(folder, folder)}.png"

    @cached_property
    def _masked(self) -> bool:
        return (self.root / "mask_valid").is_dir()

    def absent(self, name: str, task: TaskPart | None) -> str | None:
        if task is None or task.target is None:
            return no_file(self._path(name, "rgb"))
        coding_of(task)  # refuses a domain that cannot be read, which may well not be there
        mask = no_file(self._path(name, "mask_valid")) if self._masked else None
        return no_file(self._path(name, task.target.folder)) or mask

    def image(self, name: str) -> NDArray[np.uint8]:
        return read_image(self._path(name, "rgb"))

    def truth(self, name: str, task: TaskPart) -> Array:
        assert task.target is not None  # the recipe was checked for it
        path, coding = self._path(name, task.target.folder), coding_of(task)
        return decode(read_stored(path), path, task, coding)

    def known(self, name: str) -> NDArray[np.bool_] | None:
        if not self._masked:
            return None
        path = self._path(name, "mask_valid")
        raw = read_stored(path)
        if raw.ndim != 2:
            raise DataError(f"{path}: {raw.shape}; a mask is (height, width)")
        grown = cv2.dilate((raw == 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        return np.asarray(grown == 0)

    def fingerprint(self, folders: Collection[str]) -> str:
        buildings = [name for every in BUILDINGS.values() for name in every]
        domains = ("rgb", "mask_valid", *folders)
        read = [f"{domain}/{building}" for domain in domains for building in buildings]
        return sizes_hash(self.root, read, format="taskonomy", seed=SEED)


def coding_of(task: TaskPart) -> Coding:
    """Say how a domain stores a task."""
    target = task.target
    assert target is not None  # the recipe was checked for it
    if task.kind in ("depth", "log_depth"):
        return Coding(scale=1 / 512, invalid=65535, types=("uint16",))
    if task.kind == "normals":
        return Coding(signs=target.signs or TO_FORWARD, types=("uint8",))
    if task.kind == "segmentation":
        return Coding(table=CLASSES, types=("uint8",))
    span = target.range or SPANS.get(target.folder)
    if span is None:
        raise DataError(
            f"target.folder is {target.folder}: give target.range, the stored numbers that "
            f"become -1 and 1; it is known of {' and '.join(SPANS)}"
        )
    return Coding(span=span, types=("uint16",) if target.folder in SPANS else ())


def open_taskonomy(root: Path, data: DataPart) -> TaskonomyDataset:
    """Open Taskonomy."""
    return TaskonomyDataset(root)
