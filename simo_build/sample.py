"""One labelled image: read, and brought to the network's size with its truths."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_build.formats import Dataset
from simo_build.recipe import ImagePart, TaskPart
from simo_build.sources import UNTARGETED
from simo_runtime.errors import DataError
from simo_runtime.placement import Placement, fill_colour
from simo_runtime.tasks import kind_named

Array = NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """One image (H, W, 3) and its truths, as they are kept."""

    name: str
    image: NDArray[np.uint8]
    truths: Mapping[str, Array]


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, and why."""

    name: str
    reason: str


def read_sample(
    dataset: Dataset, name: str, parts: Mapping[str, TaskPart], like: ImagePart
) -> Sample:
    """Read an image and its truths at the network's size.

    ImageError if the image cannot be read, DataError if a truth cannot be one.
    """
    image = dataset.image(name)
    place = Placement(image.shape[:2], like.size, like.fit)
    known = dataset.known(name) if parts else None
    truths = {}
    for task, part in parts.items():
        truth = itself(image) if part.kind in UNTARGETED else dataset.truth(name, part)
        if truth.shape[:2] != image.shape[:2]:
            raise DataError(f"{name}: {task} is {truth.shape[:2]}, its image is {image.shape[:2]}")
        if known is not None:
            truth = where_known(truth, known, part.kind, name)
        truths[task] = fit_truth(truth, place, part.kind)
    return Sample(name, place.apply(image, fill=fill_colour(like.mean)), truths)


def known_pixels(truth: Array, kind: str) -> NDArray[np.bool_]:
    """Say which numbers of a truth are one."""
    empty = kind_named(kind).empty
    return np.asarray(~np.isnan(truth) if np.isnan(empty) else truth != empty)


def stored_form(kind: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], type[np.generic]]:
    """Give the shape and type in which the truths (n, H, W) of a kind are kept."""
    channels = kind_named(kind).channels
    if channels == 3:
        return (*shape, 3), np.float16
    return shape, np.uint8 if channels is None else np.float32


def where_known(truth: Array, known: NDArray[np.bool_], kind: str, name: str) -> Array:
    """Take the truth from pixels that are not known; classes say it themselves."""
    if known.shape != truth.shape[:2]:
        raise DataError(f"{name}: its mask is {known.shape}, its image is {truth.shape[:2]}")
    entry = kind_named(kind)
    if entry.channels is None:
        return truth
    mask = known[..., None] if truth.ndim == 3 else known
    return np.where(mask, truth, truth.dtype.type(entry.empty))


def itself(image_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Give an image as the truth of autoencoding: colours of -1 to 1."""
    return np.asarray(image_HW3 / 127.5 - 1.0, np.float32)


def fit_truth(truth: Array, place: Placement, kind: str) -> Array:
    """Bring a truth to the network's size by nearest neighbour, the image itself as images are.

    Bars have no truth.
    """
    top, left, high, wide = place.inner
    shape, dtype = stored_form(kind, place.target)
    canvas = np.full(shape, kind_named(kind).empty, dtype)
    method = place.interpolation if kind in UNTARGETED else cv2.INTER_NEAREST_EXACT
    resized = cv2.resize(truth, (wide, high), interpolation=method)
    canvas[top : top + high, left : left + wide] = resized
    return canvas
