"""Put what was measured into the pages: every number in a table comes from benchmarks/results.

    python -m simo_bench.pages           # write docs/merging.md anew
    python -m simo_bench.pages --check   # say whether it is as the results have it

In the tables of methods the last two columns are filled; between the lines `<!-- NAME -->` and
`<!-- end -->` whole tables are.
"""

import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simo_bench import filling, ranking, references
from simo_bench.check import COMMITTED
from simo_bench.check import read as read_result
from simo_bench.filling import share
from simo_runtime.errors import DataError

RESULTS, PAGE = COMMITTED, Path(__file__).resolve().parents[2] / "docs" / "merging.md"
STUDIES = ("nyuv2-methods.json", "nyuv2-methods-evidence.json", "nyuv2-methods-learned.json")
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \|")
COLUMNS = ("merged", "re-aligned")

Row = Mapping[str, Any]


def read(name: str) -> dict[str, Any]:
    """Read a result."""
    path = RESULTS / name
    if not path.is_file():
        raise DataError(f"{path}: missing; benchmarks/README.md has the command that makes it")
    return read_result(path)


def chosen() -> list[Row]:
    """Give what every method's best candidate came to, on the studies' split."""
    return [row for name in STUDIES for row in read(name)["chosen"]]


def drop(row: Row, kind: str) -> str:
    """Show equation 1 minus 100 %."""
    return share(row[kind]["normalised_performance"])


def methods() -> str:
    """All methods and variants, the best after re-alignment first."""
    rows = sorted(chosen(), key=lambda row: -row["realigned"]["normalised_performance"])
    lines = ["| method | parameters | merged | heads re-aligned | seconds to merge |"]
    lines += ["| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        params = ", ".join(f"{key} {value}" for key, value in row["params"].items())
        lines.append(
            f"| {row['name']} | {params} | {drop(row, 'merged')} | {drop(row, 'realigned')} "
            f"| {row['seconds']['merge']:.1f} |"
        )
    return "\n".join(lines)


def several() -> str:
    """The several-pass methods."""
    return references.table(read("nyuv2-methods-several.json")["references"])


def proxies() -> str:
    """How well proxies choose."""
    return ranking.table(read("nyuv2-proxies.json"))


def merging() -> str:
    """The times of merging, against a limit and against mergekit."""
    found = read("merging-vit-base.json")
    lines = ["| | seconds, median of rounds | least to most | private memory |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    named = {
        "limit": "reading the inputs, writing the output",
        "stage": "our merge, imports not counted",
        "command": "`simo-merge`, from command to file",
        "mergekit": "mergekit-pytorch, from command to file",
    }
    for one in found["compared"]:
        for arm, told in named.items():
            rows = one["samples"].get(arm, [])
            times = sorted(row["seconds"] for row in rows)
            memory = max((row.get("private_bytes", 0) for row in rows), default=0) / 1e6
            if rows:
                lines.append(
                    f"| {one['method']}: {told} | {statistics.median(times):.2f} | {times[0]:.2f} "
                    f"to {times[-1]:.2f} | {f'{memory:.0f} MB' if memory else ''} |"
                )
    return "\n".join(lines)


def every() -> str:
    """The times of all methods at ViT-B shapes."""
    rows = read("merging-vit-base-methods.json")["methods"].items()
    cells = [f"`{name}` {row['seconds']:.1f} s" for name, row in rows]
    return ", ".join(sorted(cells)) + "."


BLOCKS: dict[str, Callable[[], str]] = {
    "methods": methods,
    "several": several,
    "proxies": proxies,
    "merging": merging,
    "every": every,
}


def filled(page: str) -> str:
    """Give the page with all numbers as the results have them."""
    page = BLOCK.sub(lambda m: f"{m.group(1)}\n{BLOCKS[m.group(2)]()}\n\n{m.group(3)}", page)
    rows = {row["name"]: row for row in chosen()}
    return "\n".join(_lines(page.split("\n"), rows))


def _lines(lines: Sequence[str], rows: Mapping[str, Row]) -> Iterator[str]:
    """Fill the last two columns of the tables that have them."""
    inside = False
    for line in lines:
        if line.startswith("| method |"):
            inside = line.endswith(f"| {' | '.join(COLUMNS)} |")
        inside = inside and line.startswith("|")
        match = ROW.match(line)
        if inside and match:
            name = match.group(1)
            if name not in rows:
                raise DataError(f"{PAGE.name}: no study in {', '.join(STUDIES)} has {name}")
            kept = line.rsplit("|", 3)[0]
            line = f"{kept}| {drop(rows[name], 'merged')} | {drop(rows[name], 'realigned')} |"
        yield line


main = filling.command(PAGE, filled, "simo_bench.pages")

if __name__ == "__main__":
    main()
