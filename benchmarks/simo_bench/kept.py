"""Rows of an earlier report that stay: a study that takes a day is measured in parts.

A row stays if it is of the same base, data, experts and split, and was asked for as the list of
rows asks now. It says at which commit it was measured.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simo_bench.check import read
from simo_runtime.errors import RecipeError, listing

Document = dict[str, Any]
ASKED = ("merge", "start", "joint", "epochs", "realign")  # what the list says of a row
SAME = ("schema", "recipe", "inputs", "metrics", "split")


@dataclass(frozen=True)
class Earlier:
    """An earlier report, as it was read."""

    path: Path
    found: Document

    @classmethod
    def read(cls, path: Path) -> "Earlier":
        """Read a report; DataError if it is none."""
        return cls(path, read(path))

    def check(
        self, about: Mapping[str, Any], asked: Mapping[str, Document], new: Iterable[str]
    ) -> None:
        """Raise RecipeError for a report of other inputs, and for rows with other settings.

        `about` is what the new report says of itself, `asked` what the list says of every row.
        """
        for key in SAME:
            if about[key] != self.found.get(key):
                raise RecipeError(
                    f"{self.path}: {key} is not the same; its rows cannot stand beside new ones"
                )
        changed = [
            row["row"]
            for row in self._others(set(new))
            if asked.get(row["row"]) != {key: row[key] for key in ASKED}
        ]
        if changed:
            raise RecipeError(
                f"{self.path}: rows that the list has no more, or asks for otherwise\n"
                f"{listing(changed)}\nRun them anew with --only, or take them out of the file."
            )

    def joined(self, found: Document, names: list[str]) -> Document:
        """Give a new report with these other rows, in the order of the list."""
        new = {row["row"] for row in found["rows"]}
        kept = [{"commit": self.found["commit"], **row} for row in self._others(new)]
        both = [one for one in self.found["comparisons"] if not new & {one["row"], one["against"]}]
        return {
            **found,
            "rows": sorted([*found["rows"], *kept], key=lambda row: names.index(row["row"])),
            "comparisons": sorted(
                [*found["comparisons"], *both],
                key=lambda one: (names.index(one["row"]), names.index(one["against"])),
            ),
        }

    def _others(self, new: set[str]) -> list[Document]:
        return [row for row in self.found["rows"] if row["row"] not in new]
