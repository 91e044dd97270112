"""Labelled images: `load_split` reads a split, whatever its format (`simo_build.formats`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simo_build.ahead import ahead
from simo_build.augment import Augmentation, augmented
from simo_build.formats import FORMATS, Dataset, Format
from simo_build.hashing import digest
from simo_build.loading import LoadedRecipe
from simo_build.names import Name
from simo_build.progress import Progress
from simo_build.recipe import TaskPart
from simo_build.room import room_for
from simo_build.sample import Sample, Unreadable, known_pixels, read_sample, stored_form
from simo_build.sources import UNTARGETED
from simo_build.splits import check_apart, check_files, names_of, overlaps
from simo_runtime.errors import DataError, ImageError, RecipeError, listing, unknown
from simo_runtime.tasks import kind_named

Array = NDArray[Any]
CHUNK = 64  # images that are changed at a time


@dataclass(frozen=True)
class Samples:
    """A split at the network's size H x W, in memory or, if it is large, in files (`room`).

    `images` is uint8 (n, H, W, 3) RGB. Truths are uint8 (n, H, W) classes, float32 (n, H, W)
    values, and float16 (n, H, W, 3) normals and colours (half the memory, and 0.03 degrees or a
    thirtieth of a grey level at most). A pixel without truth has the `empty` of its kind. `names`
    are the images of all rows, from which views and mirror images do not differ; what nothing
    learns from may have none.
    """

    images: NDArray[np.uint8]
    truths: Mapping[str, Array]
    names: tuple[Name, ...] = ()

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
        2 * samples.names,
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
    return Samples(images, truths, samples.names + others.names)


def viewed(
    samples: Samples,
    views: int,
    kinds: Mapping[str, str],
    how: Augmentation,
    generator: torch.Generator,
) -> Samples:
    """Add views of every image, changed at random, its truths with it: view after view of all.

    The first view is the image itself, so that `views: 1` changes nothing.
    """
    count = len(samples)

    def grown(maps: Array) -> Array:
        whole = room_for((views * count, *maps.shape[1:]), maps.dtype)
        whole[:count] = maps
        return whole

    grown_truths = {task: grown(truth) for task, truth in samples.truths.items()}
    found = Samples(grown(samples.images), grown_truths, views * samples.names)
    for start in range(count, views * count, CHUNK):
        rows = np.arange(start, min(start + CHUNK, views * count))
        images = torch.from_numpy(samples.images[rows % count])
        truths = {t: torch.from_numpy(m[rows % count]) for t, m in samples.truths.items()}
        images, truths = augmented(images, truths, kinds, how, generator)
        found.images[rows] = images.numpy()
        for task, truth in truths.items():
            found.truths[task][rows] = truth.numpy()
    return found


def changed(
    samples: Samples, kinds: Mapping[str, str], how: Augmentation, generator: torch.Generator
) -> Samples:
    """Give every image changed at random, its truths with it, in its own place."""
    count, both = len(samples), viewed(samples, 2, kinds, how, generator)
    truths = {task: truth[count:] for task, truth in both.truths.items()}
    return Samples(both.images[count:], truths, samples.names)


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
    dataset = FORMATS[data.format].open(root, data)
    check_apart(dataset, data)
    return dataset


def say_overlaps(loaded: LoadedRecipe, progress: Progress) -> None:
    """Say which splits share images, where it is allowed."""
    if loaded.recipe.data is not None:
        for line in overlaps(open_dataset(loaded), loaded.recipe.data):
            progress.say(line)


def fingerprint(loaded: LoadedRecipe, tasks: Sequence[str]) -> str:
    """Hash what the images of a recipe and the truths of some tasks depend on."""
    targets = [loaded.recipe.tasks[task].target for task in tasks]
    found = open_dataset(loaded).fingerprint({one.folder for one in targets if one is not None})
    further: dict[str, Any] = {}
    if loaded.recipe.data is not None and loaded.recipe.data.skip_unreadable:
        further["skip_unreadable"] = True
    if loaded.recipe.train.augment_select:
        keys = {"augment_select", "seed", "flip", "scales", "jitter"}
        further["select"] = loaded.recipe.train.model_dump(mode="json", include=keys)
    return digest({"data": found, **further}) if further else found


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
    """Read a split by its role (`train`, `realign`, `select`, `test`), truths of `tasks` only.

    With `train.augment_select` the images of `select` are changed, the same way at every reading.
    """
    recipe, dataset = loaded.recipe, open_dataset(loaded)
    assert recipe.data is not None  # open_dataset has seen to it
    name, skips = getattr(recipe.data, split), recipe.data.skip_unreadable
    parts = {task: recipe.tasks[task] for task in tasks}
    names = names_of(dataset, name)
    check_split(loaded, dataset, name, names, tasks)
    filling = Filling(name, len(names), recipe.image.size, parts)

    def read(image: str) -> Sample | Unreadable:
        try:
            return read_sample(dataset, image, parts, recipe.image)
        except ImageError as error:
            if not skips:
                raise ImageError(
                    f"{error}; `skip_unreadable: true` in `data` leaves it out"
                ) from error
            return Unreadable(image, str(error))

    for sample in ahead(read, progress.track(names, f"reading {split}")):
        filling.take(sample)
    where = f"{dataset.root}: the split {name!r}"
    for line in filling.told(where):
        progress.say(line)
    found, train = filling.samples(where), recipe.train
    if split == "select" and train.augment_select:
        kinds = {task: part.kind for task, part in parts.items()}
        return changed(found, kinds, train, torch.Generator().manual_seed(train.seed + 3))
    return found


def check_split(
    loaded: LoadedRecipe,
    dataset: Dataset,
    split: str,
    names: Sequence[str],
    tasks: Sequence[str],
) -> None:
    """Refuse a split that lacks a file of an image, or of a truth of some tasks."""
    recipe = loaded.recipe
    parts: dict[str, TaskPart | None] = {
        task: recipe.tasks[task] for task in tasks if recipe.tasks[task].kind not in UNTARGETED
    }
    skips = recipe.data is not None and recipe.data.skip_unreadable
    check_files(dataset, split, names, parts if skips else {"image": None, **parts})


class Filling:
    """A split while it is read: room for all of it, filled from the top."""

    def __init__(
        self, split: str, count: int, size: tuple[int, int], parts: Mapping[str, TaskPart]
    ) -> None:
        self.split, shape = split, (count, *size)
        self.images = room_for((*shape, 3), np.uint8)
        self.kinds = {task: part.kind for task, part in parts.items()}
        self.truths = {
            task: room_for(*stored_form(kind, shape)) for task, kind in self.kinds.items()
        }
        self.names: list[Name] = []
        self.skipped: list[Unreadable] = []
        self.blank: dict[str, list[str]] = {task: [] for task in parts}

    @property
    def filled(self) -> int:
        """How many rows are filled."""
        return len(self.names)

    def take(self, sample: Sample | Unreadable) -> None:
        """Put an image and its truths into the next row, or remember that it is left out."""
        if isinstance(sample, Unreadable):
            self.skipped.append(sample)
            return
        row = self.filled
        self.images[row] = sample.image
        for task, truth in sample.truths.items():
            self.truths[task][row] = truth
            if not known_pixels(truth, self.kinds[task]).any():
                self.blank[task].append(sample.name)
        self.names.append(Name(self.split, sample.name))

    def told(self, where: str) -> Iterator[str]:
        """Say what was left out, and which images have no truth in any pixel."""
        if self.skipped:
            every = len(self.images)
            lines = listing(f"{one.name}: {one.reason}" for one in self.skipped)
            yield f"{where}: {len(self.skipped)} of {every} images left out, unreadable\n{lines}"
        for task, names in self.blank.items():
            if names:
                some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                told = f"{len(names)} of {self.filled} images have no truth of {task}"
                yield f"{where}: {told}: {some}"

    def samples(self, where: str) -> Samples:
        """Give what was read; DataError if it is nothing, or has no truth of a task."""
        if not self.filled:
            raise DataError(f"{where}: no image of it can be read")
        for task, names in self.blank.items():
            if len(names) == self.filled:
                raise DataError(
                    f"{where}: no pixel of its {self.filled} images has a truth of {task}; "
                    "look at its files, and at `target` of the task"
                )
        truths = {task: truth[: self.filled] for task, truth in self.truths.items()}
        return Samples(self.images[: self.filled], truths, tuple(self.names))
