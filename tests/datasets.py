"""What the tests of data formats share: recipes on tiny files, and files of known content."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_build.data import Samples, load_split
from simo_build.loading import LoadedRecipe
from simo_build.progress import Silent
from simo_build.recipe import Recipe

Array = NDArray[Any]


def on(
    root: Path, data: dict[str, Any], tasks: dict[str, Any], size: tuple[int, int]
) -> LoadedRecipe:
    """Make a recipe of some tasks on data at `root`."""
    content = {
        "name": "tiny",
        "encoder": {"model": "vit_tiny_patch16_224"},
        "base": "random(0)",
        "image": {"size": size},
        "tasks": tasks,
        "data": {"root": str(root), **data},
    }
    return LoadedRecipe(
        recipe=Recipe.model_validate(content),
        text="",
        folder=root,
        shown="r.yaml",
        data=None,
        experts=root,
    )


def read(loaded: LoadedRecipe, role: str = "train") -> Samples:
    """Read a split with the truths of all tasks."""
    return load_split(loaded, role, tasks=list(loaded.recipe.tasks), progress=Silent())


def save(path: Path, array: Array) -> None:
    """Write a .npy file, or an image whose colours are RGB, and the folders on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
        return
    assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


def grey(value: int, size: tuple[int, int] = (2, 3)) -> NDArray[np.uint8]:
    """Make an image of one grey, by which it is known again."""
    return np.full((*size, 3), value, np.uint8)


def greys(samples: Samples) -> list[int]:
    """Tell the images of a split by their greys."""
    return [int(image[0, 0, 0]) for image in samples.images]
