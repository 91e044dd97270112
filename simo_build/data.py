"""Labelled images: `load_split` reads a split, whatever its format (`simo_build.formats`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_build.formats import FORMATS, Dataset, Format
from simo_build.loading import LoadedRecipe
from simo_build.progress import Progress
from simo_build.recipe import TaskPart
from simo_build.room import room_for
from simo_build.sources import UNTARGETED
from simo_runtime.errors import DataError, RecipeError, unknown
from simo_runtime.placement import Placement
from simo_runtime.tasks import kind_named

Array = NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """A split at the network's size H x W, in memory or, if it is large, in files (`room`).

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
    return Samples(
        _with_mirrored(samples.images),
        {
            task: _with_mirrored(truth, turns=kinds[task] == "normals")
            for task, truth in samples.truths.items()
        },
    )


def _with_mirrored(maps: Array, *, turns: bool = False) -> Array:
    both = room_for((2 * len(maps), *maps.shape[1:]), maps.dtype)
    both[: len(maps)] = maps
    signs = np.array([-1, 1, 1] if turns else [1], maps.dtype)
    for row, one in enumerate(maps, start=len(maps)):  # one by one: they may be many
        both[row] = one[:, ::-1] * signs if turns else one[:, ::-1]
    return both


def joined_to(samples: Samples, others: Samples, kinds: Mapping[str, str]) -> Samples:
    """Put further images behind some; they have no truth, whatever those have."""
    count = len(samples)

    def grown(maps: Array, empty: float) -> Array:
        whole = room_for((count + len(others), *maps.shape[1:]), maps.dtype)
        whole[:count], whole[count:] = maps, empty
        return whole

    images = grown(samples.images, 0)
    images[count:] = others.images
    truths = {
        task: grown(truth, kind_named(kinds[task]).empty) for task, truth in samples.truths.items()
    }
    return Samples(images, truths)


def open_dataset(loaded: LoadedRecipe) -> Dataset:
    """Open the data set of a recipe, if its format stores what the tasks need."""
    data = loaded.recipe.data
    if data is None:
        raise DataError(f"{loaded.shown}: the recipe names no `data`")
    if data.format not in FORMATS:
        raise unknown("data format", data.format, FORMATS)
    for task, part in loaded.recipe.tasks.items():
        check_task(f"{loaded.shown}: tasks.{task}", part, data.format, FORMATS[data.format])
    root = loaded.locate(data.root)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder (`data.root` of {loaded.shown})")
    return FORMATS[data.format].open(root, data)


def fingerprint(loaded: LoadedRecipe, tasks: Sequence[str]) -> str:
    """Hash what the images of a recipe and the truths of some tasks depend on."""
    targets = [loaded.recipe.tasks[task].target for task in tasks]
    return open_dataset(loaded).fingerprint({one.folder for one in targets if one is not None})


def check_task(where: str, part: TaskPart, name: str, form: Format) -> None:
    """Refuse a kind that a format does not store, and keys of `target` that it does not read."""
    if part.kind not in form.kinds | UNTARGETED:
        raise RecipeError(
            f"{where}: data of the format {name} has no {part.kind} "
            f"(there are: {', '.join(sorted(form.kinds | UNTARGETED))})"
        )
    given = part.target.given() if part.target is not None else frozenset()
    if foreign := sorted(given - form.keys):
        allowed = ", ".join(sorted({"folder"} | form.keys))
        raise RecipeError(
            f"{where}.target.{foreign[0]}: has no meaning in the format {name} "
            f"(there are: {allowed})"
        )


def load_split(
    loaded: LoadedRecipe, split: str, *, tasks: Sequence[str], progress: Progress
) -> Samples:
    """Read a split by its role (`train`, `realign`, `select`, `test`), truths of `tasks` only."""
    recipe, dataset = loaded.recipe, open_dataset(loaded)
    assert recipe.data is not None  # open_dataset has seen to it
    names = dataset.ids(getattr(recipe.data, split))
    parts = {task: recipe.tasks[task] for task in tasks}
    shape = (len(names), *recipe.image.size)
    images = room_for((*shape, 3), np.uint8)
    truths = {task: room_for(*stored_form(part.kind, shape)) for task, part in parts.items()}
    for row, name in enumerate(progress.track(names, f"reading {split}")):
        image = dataset.image(name)
        place = Placement(image.shape[:2], recipe.image.size, recipe.image.fit)
        images[row] = place.apply(image, fill=fill_colour(recipe.image.mean))
        known = dataset.known(name) if parts else None
        for task, part in parts.items():
            truth = itself(image) if part.kind in UNTARGETED else dataset.truth(name, part)
            if truth.shape[:2] != image.shape[:2]:
                raise DataError(
                    f"{name}: {task} is {truth.shape[:2]}, its image is {image.shape[:2]}"
                )
            if known is not None:
                truth = where_known(truth, known, part.kind, name)
            truths[task][row] = fit_truth(truth, place, part.kind)
    return Samples(images, truths)


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
    shape, dtype = stored_form(kind, place.target)
    canvas = np.full(shape, kind_named(kind).empty, dtype)
    method = place.interpolation if kind in UNTARGETED else cv2.INTER_NEAREST_EXACT
    resized = cv2.resize(truth, (wide, high), interpolation=method)
    canvas[top : top + high, left : left + wide] = resized
    return canvas
