"""A step's results, written as they come, so that a step that was stopped goes on where it was."""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simo_bench import nvml
from simo_build.origin import command_of, origin, write_json

SCHEMA = "simo.gpu.step/1"
PROGRAM = "python -m simo_bench.gpu.step"


@dataclass
class Ledger:
    """The items of a step in one file, each under a key, with the commit that it was made at.

    An item that failed or came out wrong is kept with its reason and tried again the next time.
    """

    path: Path
    seconds: float  # for its items; one begins only if as many are left as the last one took
    only: str = ""  # a regular expression that is searched in keys: the others are passed over
    items: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    took: float = 0.0  # seconds of the last item
    late: bool = False  # whether something was left for the next time

    def __post_init__(self) -> None:
        self.about = about(command_of(PROGRAM))
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            self.items = dict(found["items"]) if found["schema"] == SCHEMA else {}
        except (OSError, ValueError, KeyError, TypeError):
            self.items = {}

    def item(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Give the item of a key: the one that is there, or one that is made now.

        None if it is not asked for, if there is no time left, or if it failed.
        """
        if not self.asked(key):
            return None
        kept: dict[str, Any] | None = self.items.get(key)
        if kept is not None and fault(kept) is None:
            return kept
        began = time.monotonic()
        if began - self.began + self.took > self.seconds:
            self.late = True
            return None
        try:
            made = make()
        except (RuntimeError, ValueError, TypeError, OSError, ImportError, AssertionError) as error:
            # RuntimeError is what PyTorch raises, out of memory too: the next item may well run
            made = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
        self.took = time.monotonic() - began
        self.items[key] = {**made, "commit": self.about["commit"]}
        self.write()
        return None if "failed" in made else self.items[key]

    def asked(self, key: str) -> bool:
        """Say whether an item belongs to what is to be done now."""
        return re.search(self.only, key) is not None

    def write(self) -> None:
        """Write all items, whole or not at all."""
        write_json({"schema": SCHEMA, **self.about, "items": self.items}, self.path)

    @property
    def faults(self) -> dict[str, str]:
        """Give the reasons of the items that were asked for and failed or came out wrong."""
        found = {key: fault(one) for key, one in self.items.items() if self.asked(key)}
        return {key: reason for key, reason in found.items() if reason is not None}


def fault(item: Mapping[str, Any]) -> str | None:
    """Say what is wrong with an item; None if nothing is."""
    reason = item.get("failed") or item.get("reason")
    if reason is None and item.get("passed") is False:
        return "not passed"
    return None if reason is None else str(reason)


def about(command: str) -> dict[str, Any]:
    """Say what something is measured with, and on what; the machine with its GPU."""
    found, gpu = origin(command), nvml.find()
    found["machine"]["gpu"] = gpu and gpu.about()
    return found
