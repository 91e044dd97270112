"""Cityscapes as it is published, split as arXiv 2504.11268 does.

    leftImg8bit/{train,val}/<city>/<frame>_leftImg8bit.png                         the images
    gtFine/{train,val}/<city>/<frame>_gtFine_labelIds.png                          segmentation
    gtFinePanopticParts/{train,val}/<city>/<frame>_gtFinePanopticParts.tif         parts
    disparity/{train,val}/<city>/<frame>_disparity.png                             disparity

Segmentation is of 19 classes (`map: to19`, also without `map`) or of the 7 categories (`to7`).
Parts are 9 of people and vehicles, and 0, the background: everything else.  Disparity is the stored
number / 65535 as in MTAN's files, 0 = invalid, whatever size the image comes to.
"""

from collections.abc import Collection, Mapping
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
from simo_build.formats.mtan import SEED, cityscapes_splits
from simo_build.formats.stored import Coding, decode, read_stored
from simo_build.recipe import TaskPart
from simo_build.sources import DataPart
from simo_runtime.errors import DataError, unknown
from simo_runtime.image import read_image
from simo_runtime.metrics import IGNORE

# The published ids of the 19 classes that count, and of the 7 categories, in their order.
OF_19 = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
OF_7 = (
    (7, 8, 9, 10),  # flat
    (11, 12, 13, 14, 15, 16),  # construction
    (17, 18, 19, 20),  # object
    (21, 22),  # nature
    (23,),  # sky
    (24, 25),  # human
    (26, 27, 28, 29, 30, 31, 32, 33),  # vehicle
)
HUMANS, VEHICLES = (24, 25), (26, 27, 28)  # with parts 1 to 4, and 1 to 5
ENDINGS = {
    "leftImg8bit": "_leftImg8bit.png",
    "gtFine": "_gtFine_labelIds.png",
    "gtFinePanopticParts": "_gtFinePanopticParts.tif",
    "disparity": "_disparity.png",
}
FOLDERS = {
    "segmentation": "gtFine",
    "parts": "gtFinePanopticParts",
    "disparity": "disparity",
}


def _table(groups: tuple[tuple[int, ...], ...]) -> NDArray[np.uint8]:
    table = np.full(34, IGNORE, np.uint8)
    for place, ids in enumerate(groups):
        table[list(ids)] = place
    return table


TABLES = {"to19": _table(tuple((one,) for one in OF_19)), "to7": _table(OF_7)}


class CityscapesDataset(Dataset):
    """The published folders; a name is `<half>/<city>/<frame>`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def splits(self) -> Mapping[str, list[str]]:
        """The names of every split."""
        return cityscapes_splits(self._frames("train"), self._frames("val"))

    def _frames(self, half: str) -> list[str]:
        where, ending = folder_in(self.root, "leftImg8bit", half), ENDINGS["leftImg8bit"]
        paths = where.glob(f"*/*{ending}")
        return sorted(f"{half}/{p.parent.name}/{p.name.removesuffix(ending)}" for p in paths)

    def ids(self, split: str) -> list[str]:
        return split_of(self.splits, split, self.root)

    def _path(self, name: str, folder: str) -> Path:
        return self.root / folder / f"{name}{ENDINGS[folder]}"

    def absent(self, name: str, task: TaskPart | None) -> str | None:
        folder = "leftImg8bit" if task is None else FOLDERS[task.kind]
        return no_file(self._path(name, folder))

    def image(self, name: str) -> NDArray[np.uint8]:
        return read_image(self._path(name, "leftImg8bit"))

    def truth(self, name: str, task: TaskPart) -> Array:
        assert task.target is not None  # the recipe was checked for it
        folder = FOLDERS[task.kind]
        if task.target.folder != folder:
            raise DataError(f"target.folder is {task.target.folder}; {task.kind} is in {folder}")
        path = self._path(name, folder)
        raw = read_stored(path)
        if task.kind == "parts":
            return decode(parts_of(raw, path), path, task, Coding())
        if task.kind == "disparity":
            return decode(raw, path, task, Coding(scale=1 / 65535, types=("uint16",)))
        wanted = task.target.map or "to19"
        if wanted not in TABLES:
            raise unknown("table of Cityscapes (target.map)", wanted, TABLES)
        return decode(raw, path, task, Coding(table=TABLES[wanted], types=("uint8",)))

    def fingerprint(self, folders: Collection[str]) -> str:
        every = ("leftImg8bit", *folders)
        read = [f"{name}/{half}" for half in ("train", "val") for name in every]
        return sizes_hash(self.root, read, format="cityscapes", seed=SEED)


def parts_of(uids_HW: Array, path: Path) -> NDArray[np.uint8]:
    """Decode panoptic parts: a uid has up to seven digits, class (2), instance (3) and part (2).

    Shorter ones name a class alone (up to 2 digits) or with an instance (up to 5): background.
    """
    if uids_HW.dtype.kind not in "ui" or uids_HW.ndim != 2:
        raise DataError(f"{path}: {uids_HW.dtype} {uids_HW.shape}; uids are whole (height, width)")
    whole = uids_HW >= 100_000
    sids, pids = np.where(whole, uids_HW // 100_000, 0), np.where(whole, uids_HW % 100, 0)
    found = np.zeros(uids_HW.shape, np.uint8)
    for ids, parts, before in ((HUMANS, 4, 0), (VEHICLES, 5, 4)):
        here = np.isin(sids, ids) & (pids >= 1) & (pids <= parts)
        found[here] = pids[here] + before
    return found


def open_cityscapes(root: Path, data: DataPart) -> CityscapesDataset:
    """Open Cityscapes."""
    return CityscapesDataset(root)
