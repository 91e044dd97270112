"""How long work tells where it is: a callable argument, never a print in a library."""

import sys
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Takes lines to say and loops to follow."""

    def say(self, line: str) -> None: ...

    def track(
        self, items: Iterable[Item], label: str, total: int | None = None
    ) -> Iterator[Item]: ...


class Silent:
    """Says nothing; for libraries and tests."""

    def say(self, line: str) -> None:
        """Drop the line."""

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        yield from items


class Bars:
    """Lines and progress bars on stderr; bars disappear when they are done."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        from tqdm import tqdm

        off = not sys.stderr.isatty()
        yield from tqdm(items, desc=label, total=total, leave=False, file=sys.stderr, disable=off)
