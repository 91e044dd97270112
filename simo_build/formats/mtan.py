"""The .npy files of MTAN (arXiv 1803.10704), as arXiv 2504.11268 splits them.

    {train,val}/image/0.npy    float (H, W, 3), RGB, 0 to 1
    {train,val}/<folder>/0.npy, by the kind of the task
        segmentation, parts    class indices, negative = ignore
        depth, log_depth       metres, 0 = invalid     (nyuv2_npy)
        disparity              0 to 1, 0 = invalid     (cityscapes_npy)
        normals                unit vectors, (0, 0, 0) = invalid

Truths of one number a pixel may be (H, W) or (H, W, 1).  `splits` says which files serve what; the
paper halves `val` of NYUv2 and keeps a fifth of `train` of Cityscapes, by a generator with seed 42.
"""

from collections.abc import Callable, Collection, Mapping
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
from simo_build.formats.stored import FLOATS, Coding, decode, read_stored
from simo_build.recipe import TaskPart
from simo_build.sources import DataPart
from simo_runtime.errors import DataError, ImageError
from simo_runtime.tasks import kind_named

SEED = 42  # of the paper's splits
Splits = dict[str, list[str]]


class MtanDataset(Dataset):
    """Numbered .npy files in the folders `train` and `val`; a name is `<folder>/<number>`."""

    def __init__(self, root: Path, arrange: Callable[[list[str], list[str]], Splits]) -> None:
        self.root, self._arrange = root, arrange

    @cached_property
    def splits(self) -> Mapping[str, list[str]]:
        """The names of every split."""
        return self._arrange(self._numbered("train"), self._numbered("val"))

    def _numbered(self, half: str) -> list[str]:
        stems = [path.stem for path in folder_in(self.root, half, "image").glob("*.npy")]
        if odd := sorted(stem for stem in stems if not stem.isdecimal()):
            raise DataError(f"{self.root / half / 'image' / odd[0]}.npy: files here are numbered")
        return [f"{half}/{stem}" for stem in sorted(stems, key=int)]

    def ids(self, split: str) -> list[str]:
        return split_of(self.splits, split, self.root)

    def _path(self, name: str, folder: str) -> Path:
        half, number = name.split("/")
        return self.root / half / folder / f"{number}.npy"

    def absent(self, name: str, task: TaskPart | None) -> str | None:
        folder = task.target.folder if task is not None and task.target is not None else "image"
        return no_file(self._path(name, folder))

    def image(self, name: str) -> NDArray[np.uint8]:
        path = self._path(name, "image")
        try:
            raw = read_stored(path)
        except DataError as error:
            raise ImageError(str(error)) from error
        if raw.shape[2:] != (3,) or raw.dtype.kind != "f" or not raw.size:
            raise DataError(
                f"{path}: {raw.dtype} {raw.shape}; images are float (height, width, 3), at least "
                "one pixel high and wide"
            )
        if not 0 <= raw.min() <= raw.max() <= 1:
            raise DataError(f"{path}: {raw.min():g} to {raw.max():g}; images are 0 to 1")
        return np.asarray(np.rint(raw * 255.0), np.uint8)

    def truth(self, name: str, task: TaskPart) -> Array:
        assert task.target is not None  # the recipe was checked for it
        path = self._path(name, task.target.folder)
        types = () if kind_named(task.kind).channels is None else FLOATS
        coding = Coding(signs=task.target.signs or (1.0, 1.0, 1.0), types=types)
        return decode(read_stored(path), path, task, coding)

    def fingerprint(self, folders: Collection[str]) -> str:
        read = [f"{half}/{name}" for half in ("train", "val") for name in ("image", *folders)]
        return sizes_hash(self.root, read, format="mtan", seed=SEED)


def nyuv2_splits(train: list[str], val: list[str]) -> Splits:
    """Part the 654 images of `val` into 400 and 254 as the paper does; realign and select of 400.

    Other numbers of images are parted in the same proportion.
    """
    held, test = parted(val, (400 / 654, 254 / 654), SEED)
    return {"train": train, "val": held, **halves(held), "test": test}


def cityscapes_splits(train: list[str], val: list[str]) -> Splits:
    """Part `train` into 2380 and 595 as the paper does; the official `val` is the test split."""
    learns, held = parted(train, (0.8, 0.2), SEED)
    return {"train": learns, "val": held, **halves(held), "test": val}


def halves(held: list[str]) -> Splits:
    """Part the paper's validation images: four fifths to re-align on, one fifth to choose on."""
    realign, select = parted(held, (0.8, 0.2), SEED)
    return {"realign": realign, "select": select}


def open_nyuv2(root: Path, data: DataPart) -> MtanDataset:
    """Open NYUv2."""
    return MtanDataset(root, nyuv2_splits)


def open_cityscapes(root: Path, data: DataPart) -> MtanDataset:
    """Open Cityscapes."""
    return MtanDataset(root, cityscapes_splits)
