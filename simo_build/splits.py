"""Which images serve what: the splits of a data set by their roles, and what they may not share."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from simo_build.formats import Dataset
from simo_build.recipe import TaskPart
from simo_build.sources import LEARNING, ROLES, DataPart
from simo_runtime.errors import DataError, UnknownNameError, listing

# Pairs of roles that may share images, but better do not. That `unlabelled` has those of `train` or
# `realign` is no matter: it is learnt from without labels, and nothing is judged by either.
SHARED = (
    ("realign", "train"),
    ("select", "train"),
    ("select", "realign"),
    ("select", "unlabelled"),
)


def names_of(dataset: Dataset, split: str) -> list[str]:
    """Name the images of a split; DataError if one is listed twice."""
    names = list(dataset.ids(split))
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise DataError(
            f"{dataset.root}: the split {split!r} lists {_images(len(twice))} more than once\n"
            f"{listing(twice)}"
        )
    return names


def check_apart(dataset: Dataset, data: DataPart) -> None:
    """Refuse a split to learn or choose from that has images of the test split."""
    every = _there(dataset, data)
    test = set(every.get("test", ()))
    for role in LEARNING:
        if shared := [name for name in every.get(role, ()) if name in test]:
            raise DataError(
                f"{dataset.root}: {_images(len(shared))} of the split {getattr(data, role)!r} "
                f"(data.{role}) also in {data.test!r} (data.test); nothing may learn or choose "
                f"from what is measured in the end\n{listing(shared)}"
            )


def overlaps(dataset: Dataset, data: DataPart) -> Iterator[str]:
    """Say which of the splits that a build learns and chooses from share images.

    It is allowed: the paper re-aligns and chooses on the same images. But what is chosen, or a
    head's best epoch, is then judged by images that something has learnt from.
    """
    every = _there(dataset, data)
    for one, other in SHARED:
        names = set(every.get(other, ()))
        if shared := sum(name in names for name in every.get(one, ())):
            yield (
                f"data: {shared} of the {_images(len(every[one]))} of data.{one} "
                f"({getattr(data, one)!r}) also in data.{other} ({getattr(data, other)!r})"
            )


def check_files(
    dataset: Dataset, split: str, names: Sequence[str], parts: Mapping[str, TaskPart | None]
) -> None:
    """Refuse a split of which a file is not there, before any is read.

    `parts` are the tasks whose truths are needed, and None for the images themselves.
    """
    for what, part in parts.items():
        every = (dataset.absent(name, part) for name in names)
        if absent := [fault for fault in every if fault is not None]:
            needs = "no file" if part is None else f"no truth of {what}"
            raise DataError(
                f"{dataset.root}: {len(absent)} of the {_images(len(names))} of the split "
                f"{split!r} have {needs}\n{listing(absent)}"
            )


def _there(dataset: Dataset, data: DataPart) -> dict[str, Sequence[str]]:
    """Name the images by role; a split that is not there has none until somebody asks for it."""
    found: dict[str, Sequence[str]] = {}
    for role in ROLES:
        if getattr(data, role) is None:  # `unlabelled`, if there are none
            continue
        try:
            found[role] = dataset.ids(getattr(data, role))
        except (DataError, UnknownNameError):
            continue
    return found


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
