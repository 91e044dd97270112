"""When a step has to end: a time that it is given in the environment."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

from simo_bench.gpu.ledger import Ledger

VARIABLE = "SIMO_GPU_DEADLINE"  # seconds since the epoch


class TooLate(Exception):
    """There is no time left for another item; no item fails by it."""


class Deadline:
    """What begins an item only if there is as much time left as the last one took."""

    def __init__(self) -> None:
        self.at = float(os.environ.get(VARIABLE) or inf)
        self.took = 0.0  # seconds

    def __call__(self, make: Callable[[], Any]) -> Callable[[], Any]:
        """Give what makes an item, or raises TooLate."""

        def made() -> Any:
            began = time.time()
            if self.at - began < self.took:
                raise TooLate
            try:
                return make()
            finally:
                self.took = time.time() - began

        return made


@contextmanager
def deadline(ledger: Ledger) -> Iterator[Deadline]:
    """Leave the rest of a step to the next time once it is too late for it."""
    try:
        yield Deadline()
    except TooLate:
        ledger.late = True
