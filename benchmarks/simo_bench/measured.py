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
    """A ratio, its noise, and which way is better; `sentence` has `{}` where the ratio stands."""

    name: str
    sentence: str
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

    @property
    def told(self) -> str:
        """The sentence with the ratio in it, and its interval."""
        number, *rest = self.shown.split(" ", 1)
        return " ".join([self.sentence.format(number), *rest])

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
        yield _ratio("", one)
    for name, value in ((document["found"]["memory"] or {}).get("ratio") or {}).items():
        yield _plain(
            f"memory of one model per task over {ARMS[name]}",
            f'one model per task takes {{}} times the memory of "{ARMS[name]}"',
            value,
        )
    yield _plain(
        "disk of one model per task over the bundle",
        "one model per task takes {} times the bundle's room on disk",
        document["found"]["disk"]["ratio"],
    )


def _ratio(of: str, one: Document) -> Measured:
    below, above = ARMS[one["below"]], ARMS[one["above"]]
    return Measured(
        name=f"{of}{below}, against {above}",
        sentence=f'{of}"{below}" is {{}} times as fast as "{above}"',
        value=one["median"],
        low=one["low"],
        high=one["high"],
        higher_is_better=True,
        unstable=bool(one["unstable"]),
    )


def _plain(name: str, sentence: str, value: float) -> Measured:
    return Measured(
        name=name,
        sentence=sentence,
        value=value,
        low=value * (1 - MARGIN),
        high=value * (1 + MARGIN),
        higher_is_better=True,
    )


def _curve(document: Document) -> Iterator[Measured]:
    for curve in document["curves"]:
        for one in curve["documents"]:
            for ratio in one["found"]["ratios"]:
                count = len(one["bundle"]["tasks"])
                yield _ratio(f"{curve['title']}, {curve['heads']}, {count} tasks: ", ratio)


MERGED = {
    "stage / limit": "our merge stage takes {} times as long as reading the inputs and writing the "
    "output",
    "mergekit / command": "mergekit takes {} times as long as simo-merge",
}


def _merging(document: Document) -> Iterator[Measured]:
    for one in document["compared"]:
        for name, ratio in one["ratios"].items():
            low, high = interval([ratio["paired"]])
            yield Measured(
                name=f"{one['method']}: time of {name}",
                sentence=f"{one['method']}: {MERGED[name]}",
                value=median(ratio["paired"]),
                low=low,
                high=high,
                higher_is_better=name.startswith("mergekit"),
            )


OTHERS = {
    "torch": "torch's own export of the same model takes {} times as long as our graph",
    "optimum": "optimum's export of the same shape takes {} times as long as our graph",
    "adapted": "with the paper's map beside every block our graph takes {} times as long",
}


def _exports(document: Document) -> Iterator[Measured]:
    for name, one in document.get("slower_than_ours", {}).items():
        yield _spread(
            f"slower than ours {name}",
            OTHERS[name],
            one,
            higher_is_better=name != "adapted",  # which is ours, and what it costs
        )
    if "faster_in_int8" in document:
        sentence = "in int8 our graph is {} times as fast as in fp32"
        yield _spread("faster in int8", sentence, document["faster_in_int8"])


def _runtime(document: Document) -> Iterator[Measured]:
    bars = document["bars"]
    for size, ways in bars.get("memory", {}).items():
        for way, one in ways.items():
            if isinstance(one, Mapping):
                yield _spread(
                    f"bars memory {size} {way} ratio",
                    f"the {size} bundle, {way}: {{}} of the memory of a model for every task",
                    one["ratio"],
                    higher_is_better=False,
                )
    for size, one in bars.get("one-pass", {}).items():
        sentence = f"the {size} bundle: one pass is {{}} times as fast as a model for every task"
        yield _spread(f"bars one-pass {size} ratio", sentence, one["ratio"])
    if "folder" in bars:
        yield _spread(
            "bars folder times faster than the loop",
            "a folder of photos is {} times as fast through the pipeline as in a loop",
            bars["folder"]["times_faster_than_the_loop"],
        )


def _spread(name: str, sentence: str, one: Document, *, higher_is_better: bool = True) -> Measured:
    """Read a ratio that is told as count, median, p05 and p95."""
    return Measured(
        name=name,
        sentence=sentence,
        value=one["median"],
        low=one["p05"],
        high=one["p95"],
        higher_is_better=higher_is_better,
    )


READERS: dict[str, Callable[[Document], Iterator[Measured]]] = {
    "simo.bench/2": _bench,
    "simo.curve/1": _curve,
    "simo.merging/1": _merging,
    "simo.exports/1": _exports,
    "simo.bench.runtime/1": _runtime,
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
