"""Which image a row of an array is of, so that a message can name it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

SHOWN = 4  # names of a split in a message


class Name(NamedTuple):
    """An image: the split it was read from, and what the data set calls it there."""

    split: str
    image: str


def named(names: Sequence[Name], rows: Iterable[int]) -> str:
    """Name the images of some rows by split, each once, the first ones if they are many.

    Rows whose images have no name are told by their numbers.
    """
    rows = list(rows)
    if not names:
        return f"the rows {few([str(row) for row in rows])} of images without names"
    splits: dict[str, dict[str, None]] = {}
    for row in rows:
        splits.setdefault(names[row].split, {})[names[row].image] = None
    return " and ".join(
        f"the image{'s' if len(images) > 1 else ''} {few(list(images))} of the split {split!r}"
        for split, images in splits.items()
    )


def few(words: Sequence[str]) -> str:
    """Join the first words, and say how many more there are."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
