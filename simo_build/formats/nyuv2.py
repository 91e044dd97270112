"""NYU Depth V2 as it is published: the labelled images in one HDF5 file, read one by one.

    nyu_depth_v2_labeled.mat   images uint8 (n, 3, W, H), depths float (n, W, H) metres,
                               labels uint16 (n, W, H), 0 = none: MATLAB's order, turned round here
    splits.mat                 trainNdxs and testNdxs, from 1: the official 795 and 654 images
    classMapping40.mat         mapClass, from the 894 classes to 40; for `map: to40` and `to13`

The tasks are segmentation (`target: {folder: labels, map: to13}`) and depth or log_depth
(`target: {folder: depths}`, or rawDepths); the file has no normals.  `test` is parted as the paper
does: 400 images to validate, of which four fifths are to re-align on and one fifth is to choose on,
and 254 to test.  h5py reads the file; `pip install "simo-runtime[data]"`.
"""

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_build.formats.dataset import Array, Dataset, split_of
from simo_build.formats.matlab import read_matrix
from simo_build.formats.mtan import SEED, nyuv2_splits
from simo_build.formats.stored import FLOATS, Coding, decode
from simo_build.hashing import digest
from simo_build.recipe import TaskPart
from simo_build.sources import DataPart
from simo_runtime.errors import DataError, ImageError, SimoError, unknown
from simo_runtime.metrics import IGNORE

LABELLED, SPLITS, CLASSES = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
# What h5py raises where the bytes of a file are damaged.
DAMAGE = (KeyError, OSError, RuntimeError, ValueError)
# From the 40 classes to the 13 of SceneNet, both from 1, as class13Mapping.mat has it.
TO_13 = (
    *(12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5),
    *(7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7),
)


class LabelledMat(Dataset):
    """The labelled file and its two companions; a name is an image's number, from 1."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def file(self) -> Any:
        """The HDF5 file, open; h5py has no types."""
        try:
            import h5py
        except ImportError as error:
            raise DataError(
                f"{self.root / LABELLED}: h5py is needed to read it: "
                'pip install "simo-runtime[data]"'
            ) from error
        try:
            return h5py.File(self.root / LABELLED, "r")
        except OSError as error:
            raise DataError(f"{self.root / LABELLED}: not a whole HDF5 file: {error}") from error

    @cached_property
    def splits(self) -> Mapping[str, list[str]]:
        """The names of every split."""
        train, test = (self._numbers(name) for name in ("trainNdxs", "testNdxs"))
        return nyuv2_splits(train, test)

    def _numbers(self, name: str) -> list[str]:
        found = read_matrix(self.root / SPLITS, name).ravel()
        there = len(self._array("images", 4))
        if not ((found >= 1) & (found <= there)).all():
            raise DataError(f"{self.root / SPLITS}: {name}: images are numbered 1 to {there}")
        return [f"{number:04.0f}" for number in found]

    def ids(self, split: str) -> list[str]:
        return split_of(self.splits, split, self.root)

    def _array(self, name: str, axes: int) -> Any:
        try:
            there = list(self.file)
            array = self.file[name] if name in there else None
        except DAMAGE as error:
            raise DataError(f"{self.root / LABELLED}: {name} is damaged: {error}") from error
        if array is None:
            raise unknown(f"array of {self.root / LABELLED}", name, there)
        if getattr(array, "ndim", None) != axes:
            raise DataError(f"{self.root / LABELLED}: {name} must have {axes} axes")
        return array

    def _read(self, array: str, axes: int, name: str, failure: type[SimoError]) -> Array:
        """Read what an array holds of one image; `failure` if its part of the file is damaged."""
        stored = self._array(array, axes)
        if int(name) > len(stored):
            raise DataError(
                f"{self.root / LABELLED}: {array} has {len(stored)} entries and none of image "
                f"{name}; every array must have one of each image"
            )
        try:
            return np.asarray(stored[int(name) - 1])
        except DAMAGE as error:
            raise failure(
                f"{self.root / LABELLED}: {array} of image {name} cannot be read: {error}"
            ) from error

    def image(self, name: str) -> NDArray[np.uint8]:
        pixels_3WH = self._read("images", 4, name, ImageError)
        if pixels_3WH.dtype != np.uint8 or pixels_3WH.shape[0] != 3 or not pixels_3WH.size:
            raise DataError(
                f"{self.root / LABELLED}: images {pixels_3WH.dtype} {pixels_3WH.shape}; "
                "an image is uint8 (3, width, height), neither of them 0"
            )
        return np.ascontiguousarray(pixels_3WH.transpose(2, 1, 0))

    def truth(self, name: str, task: TaskPart) -> Array:
        assert task.target is not None  # the recipe was checked for it
        raw_HW = np.ascontiguousarray(self._read(task.target.folder, 3, name, DataError).T)
        where = self.root / LABELLED / task.target.folder / name
        table = self._table(task.target.map) if task.kind == "segmentation" else None
        types = FLOATS if table is None else ()
        return decode(raw_HW, where, task, Coding(table=table, types=types))

    def _table(self, name: str | None) -> NDArray[np.uint8]:
        """Give the table from the 894 stored classes, 0 = none, to 40 or 13."""
        if name is None:
            raise DataError(
                f"{self.root / LABELLED}: its 894 classes need target.map, to40 or to13"
            )
        if name not in ("to40", "to13"):
            raise unknown("table of NYUv2 (target.map)", name, ("to40", "to13"))
        to_40 = read_matrix(self.root / CLASSES, "mapClass").ravel()
        if not ((to_40 >= 1) & (to_40 <= 40)).all():
            raise DataError(f"{self.root / CLASSES}: mapClass must be classes, 1 to 40")
        mapped = to_40 if name == "to40" else np.array(TO_13)[to_40.astype(int) - 1]
        return np.array([IGNORE, *(mapped - 1)], np.uint8)

    def fingerprint(self, folders: Collection[str]) -> str:
        """Hash the sizes of the three files and the contents of the two small ones."""
        small = [path.read_bytes().hex() for path in self._there(SPLITS, CLASSES)]
        sizes = {path.name: path.stat().st_size for path in self._there(LABELLED, SPLITS, CLASSES)}
        return digest({"format": "nyuv2_mat", "seed": SEED, "sizes": sizes, "small": small})

    def _there(self, *names: str) -> list[Path]:
        return [self.root / name for name in names if (self.root / name).is_file()]


def open_nyuv2(root: Path, data: DataPart) -> LabelledMat:
    """Open NYUv2."""
    return LabelledMat(root)
