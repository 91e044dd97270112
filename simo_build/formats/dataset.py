"""What a format of labelled images offers, and how formats tell their files apart."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_build.hashing import digest
from simo_build.recipe import TaskPart
from simo_build.sources import DataPart
from simo_runtime.errors import DataError, unknown

Array = NDArray[Any]


class Dataset(ABC):
    """A data set of some format.  Images and truths are read when they are asked for."""

    root: Path

    @abstractmethod
    def ids(self, split: str) -> Sequence[str]:
        """Name the images of a split; UnknownNameError or DataError if there is no such split."""

    @abstractmethod
    def image(self, name: str) -> NDArray[np.uint8]:
        """Read an image, RGB (H, W, 3)."""

    @abstractmethod
    def truth(self, name: str, task: TaskPart) -> Array:
        """Read a truth: (H, W) or (H, W, 3), on the scale of its kind, at its image's size."""

    @abstractmethod
    def fingerprint(self, folders: Collection[str]) -> str:
        """Hash what the images and the truths in some folders depend on, without reading them."""

    def absent(self, name: str, task: TaskPart | None) -> str | None:
        """Say which file of a truth is not there, or of the image (no task); None: it is there."""
        return None

    def known(self, name: str) -> NDArray[np.bool_] | None:
        """Say which pixels (H, W) of an image have a truth at all; None: the truths say it."""
        return None


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format: how it is opened, the kinds of task it stores, the keys of `target` it reads."""

    open: Callable[[Path, DataPart], Dataset]
    kinds: frozenset[str]
    keys: frozenset[str] = frozenset()


def split_of(splits: Mapping[str, Sequence[str]], split: str, root: Path) -> list[str]:
    """Look a split up; one that does not exist or holds nothing is refused."""
    if split not in splits:
        raise unknown(f"split of {root}", split, splits)
    if not splits[split]:
        raise DataError(f"{root}: the split {split!r} is empty")
    return list(splits[split])


def no_file(path: Path) -> str | None:
    """Say that a file is not there; None: it is."""
    return None if path.is_file() else f"{path}: there is no such file"


def sizes_hash(root: Path, folders: Iterable[str], **more: Any) -> str:
    """Hash the names and sizes of all files in some folders; reading them all would be slow."""
    sizes = {}
    for folder in sorted(set(folders)):
        for where, _, names in os.walk(root / folder):
            for name in names:
                path = Path(where, name)
                sizes[path.relative_to(root).as_posix()] = path.stat().st_size
    return digest({**more, "sizes": sizes})


def folder_in(root: Path, *names: str) -> Path:
    """Find a folder that a format needs; DataError if it is not there."""
    path = root.joinpath(*names)
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder, and the format needs it")
    return path
