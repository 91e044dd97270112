"""How long work tells where it is: a callable argument, never a print in a library."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")
QUIET_SECONDS = 10.0


class Progress(Protocol):
    """Takes lines to say, lines that matter only when work is slow, and loops to follow.

    A note is a few words beside the loop that is followed, each in the place of the one before.
    """

    def say(self, line: str) -> None: ...

    def detail(self, line: str) -> None: ...

    def note(self, words: str) -> None: ...

    def track(
        self, items: Iterable[Item], label: str, total: int | None = None
    ) -> Iterator[Item]: ...


class Silent:
    """Says nothing; for libraries and tests."""

    def say(self, line: str) -> None:
        """Drop the line."""

    def detail(self, line: str) -> None:
        """Drop the line."""

    def note(self, words: str) -> None:
        """Drop the words."""

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        yield from items


class Bars:
    """Lines and progress bars on stderr; bars disappear when they are done.

    Details are shown when nothing has been said for a while.
    """

    def __init__(self) -> None:
        self._said = time.monotonic()
        self._bar: tqdm[Any] | None = None

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self._said = time.monotonic()

    def detail(self, line: str) -> None:
        if time.monotonic() - self._said > QUIET_SECONDS:
            self.say(line)

    def note(self, words: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)  # shown when the bar is drawn next

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        from tqdm import tqdm

        off, outer = not sys.stderr.isatty(), self._bar
        with tqdm(
            items, desc=label, total=total, leave=False, file=sys.stderr, disable=off
        ) as self._bar:
            try:
                yield from self._bar
            finally:
                self._bar = outer
