"""How long work tells where it is: a callable argument, never a print in a library."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
QUIET_SECONDS = 10.0


class Progress(Protocol):
    """Takes lines to say, lines that matter only when work is slow, and loops to follow."""

    def say(self, line: str) -> None: ...

    def detail(self, line: str) -> None: ...

    def track(
        self, items: Iterable[Item], label: str, total: int | None = None
    ) -> Iterator[Item]: ...


class Silent:
    """Says nothing; for libraries and tests."""

    def say(self, line: str) -> None:
        """Drop the line."""

    def detail(self, line: str) -> None:
        """Drop the line."""

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        yield from items


class Bars:
    """Lines and progress bars on stderr; bars disappear when they are done.

    Details are shown when nothing has been said for a while.
    """

    def __init__(self) -> None:
        self._said = time.monotonic()

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self._said = time.monotonic()

    def detail(self, line: str) -> None:
        if time.monotonic() - self._said > QUIET_SECONDS:
            self.say(line)

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        from tqdm import tqdm

        off = not sys.stderr.isatty()
        yield from tqdm(items, desc=label, total=total, leave=False, file=sys.stderr, disable=off)
