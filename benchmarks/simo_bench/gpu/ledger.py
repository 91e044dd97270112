"""A step's results, written as they come, so that a step that was stopped goes on where it was."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simo_build.origin import write_json

SCHEMA = "simo.gpu.step/1"


@dataclass
class Ledger:
    """The items of a step in one file, each under a key.

    An item that failed is kept with its reason and tried again the next time.
    """

    path: Path
    seconds: float  # after which no more items are begun
    items: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    late: bool = False  # whether something was left for the next time

    def __post_init__(self) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            self.items = dict(found["items"]) if found["schema"] == SCHEMA else {}
        except (OSError, ValueError, KeyError, TypeError):
            self.items = {}

    def item(self, key: str, make: Callable[[], Any]) -> Any:
        """Give the item of a key: the one that is there, or one that is made now.

        None if there is no time left, or if it failed.
        """
        kept = self.items.get(key)
        if kept is not None and "failed" not in kept:
            return kept
        if time.monotonic() - self.began > self.seconds:
            self.late = True
            return None
        try:
            self.items[key] = make()
        except (RuntimeError, ValueError, TypeError, OSError, ImportError, AssertionError) as error:
            # RuntimeError is what PyTorch raises, out of memory too: the next item may well run
            self.items[key] = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
        self.write()
        return None if "failed" in self.items[key] else self.items[key]

    def write(self) -> None:
        """Write all items, whole or not at all."""
        write_json({"schema": SCHEMA, "items": self.items}, self.path)

    @property
    def failed(self) -> dict[str, str]:
        """Give the reasons of the items that failed."""
        return {key: one["failed"] for key, one in self.items.items() if "failed" in one}
