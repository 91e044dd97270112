"""How far long work is: a line that changes on a terminal, one a while in a log."""

import time
from collections.abc import Callable

from simo_runtime.pipeline import Outcome


class Progress:
    """Counts outcomes and tells them; work of a few pictures is not summed up.

    `tell` is given text, and whether the line ends there.
    """

    def __init__(
        self, total: int | None, tell: Callable[[str, bool], None], *, terminal: bool, few: int
    ) -> None:
        self.done = self.failed = 0
        self._total, self._tell, self._few = total, tell, few
        self._terminal = terminal
        self._pause = 0.2 if terminal else 10.0  # seconds between two lines
        self._start = self._last = time.monotonic()

    def one(self, outcome: Outcome) -> None:
        """Count one frame."""
        self.done += 1
        self.failed += outcome.error is not None
        now = time.monotonic()
        if now - self._last >= self._pause:
            self._last = now
            self._tell(f"{self._clear()}{self._state()}", not self._terminal)

    def say(self, line: str) -> None:
        """Tell a line of its own."""
        self._tell(f"{self._clear()}{line}", True)

    def end(self, *, interrupted: bool) -> None:
        """Sum up, if it was more than a few pictures."""
        if interrupted:
            self.say(f"Stopped; what was written is whole: {self._state()}")
        elif self._total is None or self._total >= self._few:
            self.say(self._state())

    def _clear(self) -> str:
        return "\r\x1b[K" if self._terminal else ""

    def _state(self) -> str:
        rate = self.done / max(time.monotonic() - self._start, 1e-9)
        of = "" if self._total is None else f" of {self._total}"
        bad = f", {self.failed} failed" if self.failed else ""
        return f"{self.done}{of} pictures{bad}, {rate:.1f} a second"
