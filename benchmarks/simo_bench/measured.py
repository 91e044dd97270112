"""What a result file says that can be compared: ratios with their noise, by name.

Every benchmark of this project measures ratios, against a named competitor or a limit, since times
depend on the machine. A ratio is `better` when it is high, or when it is low.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from simo_bench.samples import interval
from simo_bench.setup import ARMS

Document = Mapping[str, Any]
MARGIN = 0.05  # of what has no samples to tell its noise: memory, sizes


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A ratio, its noise, and which way is better."""

    name: str
    value: float
    low: float
    high: float
    higher_is_better: bool
    unstable: bool = False

    @property
    def shown(self) -> str:
        """The ratio with its interval."""
        ends = f" ({self.low:.2f} to {self.high:.2f})" if self.low < self.high else ""
        return f"{self.value:.2f}{ends}{' UNSTABLE' if self.unstable else ''}"

    def worse_than(self, before: "Measured") -> bool:
        """Tell whether it is worse by more than the noise of both."""
        if self.higher_is_better:
            return self.high < before.low
        return self.low > before.high


def measured(document: Document) -> list[Measured]:
    """Give all ratios of a result; none for studies of accuracy."""
    known = READERS.get(str(document.get("schema")))
    return [] if known is None else list(known(document))


def _bench(document: Document) -> Iterator[Measured]:
    for one in document["found"]["ratios"]:
        yield _ratio(f"{ARMS[one['below']]}, against {ARMS[one['above']]}", one)
    for name, value in ((document["found"]["memory"] or {}).get("ratio") or {}).items():
        yield _plain(f"memory of one model per task over {ARMS[name]}", value)
    yield _plain("disk of one model per task over the bundle", document["found"]["disk"]["ratio"])


def _ratio(name: str, one: Document) -> Measured:
    return Measured(
        name=name,
        value=one["median"],
        low=one["low"],
        high=one["high"],
        higher_is_better=True,
        unstable=bool(one["unstable"]),
    )


def _plain(name: str, value: float) -> Measured:
    low, high = value * (1 - MARGIN), value * (1 + MARGIN)
    return Measured(name=name, value=value, low=low, high=high, higher_is_better=True)


def _curve(document: Document) -> Iterator[Measured]:
    for curve in document["curves"]:
        for one in curve["documents"]:
            for ratio in one["found"]["ratios"]:
                pair = f"{ARMS[ratio['below']]}, against {ARMS[ratio['above']]}"
                count = len(one["bundle"]["tasks"])
                yield _ratio(f"{curve['title']}, {curve['heads']}, {count} tasks: {pair}", ratio)


def _merging(document: Document) -> Iterator[Measured]:
    for one in document["compared"]:
        for name, ratio in one["ratios"].items():
            low, high = interval([ratio["paired"]])
            yield Measured(
                name=f"{one['method']}: time of {name}",
                value=median(ratio["paired"]),
                low=low,
                high=high,
                higher_is_better=name.startswith("mergekit"),
            )


def _spreads(document: Document) -> Iterator[Measured]:
    """Read every ratio that is told as count, median, p05 and p95, by its place."""
    for path, one in _walk(document, ()):
        if any("ratio" in part or "than" in part or "faster" in part for part in path):
            yield Measured(
                name=" ".join(path).replace("_", " "),
                value=one["median"],
                low=one["p05"],
                high=one["p95"],
                higher_is_better="memory" not in path,  # there it is ours over theirs
            )


def _walk(found: Document, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Document]]:
    for key, value in found.items():
        if isinstance(value, Mapping):
            if {"median", "p05", "p95"} <= set(value):
                yield (*path, key), value
            else:
                yield from _walk(value, (*path, key))


READERS: dict[str, Callable[[Document], Iterator[Measured]]] = {
    "simo.bench/2": _bench,
    "simo.curve/1": _curve,
    "simo.merging/1": _merging,
    "simo.exports/1": _spreads,
    "simo.bench.runtime/1": _spreads,
}


def changes(before: Sequence[Measured], after: Sequence[Measured]) -> list[tuple[str, str]]:
    """Compare two runs of one benchmark: a word and a line for every ratio of the first."""
    now = {one.name: one for one in after}
    found = []
    for one in before:
        other = now.get(one.name)
        if other is None:
            found.append(("gone", f"{one.name}: it was {one.shown}"))
            continue
        line = f"{one.name}: {one.shown} before, {other.shown} now"
        if other.unstable or one.unstable:
            word = "unsure"
        elif other.worse_than(one):
            word = "slower"
        elif one.worse_than(other):
            word = "faster"
        else:
            word = "same"
        found.append((word, line))
    return found
