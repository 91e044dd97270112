"""What a GPU machine has measured: one document, its short table, and the bars that were asked for.

    python -m simo_bench.gpu.table gpu-results --json benchmarks/results/gpu.json

The document holds everything that the steps made of items have found, raw samples too, with the
command, the commit, the versions and the machine.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from simo_bench.gpu.ledger import SCHEMA as ITEMS
from simo_bench.gpu.ledger import fault
from simo_build.origin import write_json

SCHEMA = "simo.gpu/1"
STATE = "steps.json"
SEQUENTIAL, CONCURRENT = 0.93, 0.80  # of the ideal ratio, batch 1, three linear heads
ROOFLINE = {1: 3.0, 16: 1.6}  # times the encoder's compute roofline in bf16, by batch
AHEAD = 1.15  # times as fast as torch.compile, batch 1
RIVALS = ("sequential", "concurrent")
ARMS = ("joint", *RIVALS)
# Operations of ViT-B/14 at 280 x 378 and of its heads, one image: simo_build.size counts them, and
# a test holds these to it. Heads are in the order in which tasks are added.
ENCODER_FLOP = 103.18e9
HEAD_FLOP = {
    "linear": (0.086e9, 0.007e9, 0.020e9, 0.007e9, 0.007e9, 0.265e9),
    "dpt_small": (35.64e9, 35.54e9, 35.56e9, 35.54e9, 35.54e9, 35.88e9),
}

Found = Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    """Read a file; nothing if it is not there or not whole."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def collected(folder: Path) -> dict[str, Any]:
    """Put the results of a folder into one document."""
    parts = {path.stem: read(path) for path in sorted(folder.glob("*.json"))}
    items = {name: one["items"] for name, one in parts.items() if one.get("schema") == ITEMS}
    return {"steps": {}, **read(folder / STATE), "schema": SCHEMA, "items": items}


def table(found: Found, folder: Path | None = None) -> str:
    """Lay out the steps, what was timed, what is wrong, and the bars.

    The results of the runtime's own backends are documents of their own, in the folder.
    """
    lines = [f"{'step':<44}{'state':<9}{'seconds':>8}  reason", "-" * 78]
    for name, one in found["steps"].items():
        lines.append(f"{name:<44}{one['state']:<9}{one['seconds']:>8.0f}  {one['reason'][:60]}")
    lines += ["", *_device(found), "", *_passes(found), "", *_merging(found), *faults(found)]
    return "\n".join([*lines, "", *bars(found, folder)])


def faults(found: Found) -> list[str]:
    """Name everything that failed, came out wrong, or was not measured as it should be."""
    lines = []
    for name, items in found["items"].items():
        for key, one in items.items():
            reason = fault(one)
            if reason is not None:
                lines.append(f"WRONG: {name}: {key}: {reason[:200]}")
            elif _on_gpu(found) and not _everything(one.get("captured", True)):
                lines.append(f"NOT CAPTURED: {name}: {key}: {one.get('why_not_captured')}")
    commits = {
        str(one.get("commit")) for items in found["items"].values() for one in items.values()
    }
    if len(commits) > 1:
        lines.append(f"items were measured at several commits: {', '.join(sorted(commits))}")
    return lines


def _on_gpu(found: Found) -> bool:
    return bool(found.get("machine", {}).get("gpu"))


def _everything(told: Any) -> bool:
    """Say whether all that is told, arm by arm, is true."""
    if isinstance(told, Mapping):
        return all(map(_everything, told.values()))
    return all(map(_everything, told)) if isinstance(told, list) else bool(told)


def device_of(found: Found) -> Found:
    """Give the device as it was measured; nothing if it was not."""
    device: Found = found["items"].get("roofline", {}).get("device", {})
    return device if "peaks" in device else {}


def _device(found: Found) -> list[str]:
    device = device_of(found)
    if not device:
        return ["the device was not measured"]
    peaks = ", ".join(f"{name} {peak / 1e12:.1f}" for name, peak in device["peaks"].items())
    return [
        f"{device['name']}: TFLOP/s {peaks}; {device['bandwidth'] / 1e9:.0f} GB/s, measured here"
    ]


def timed(found: Found, kind: str = "passes") -> Iterator[tuple[str, Found]]:
    """Give every item of a pass that was timed, by its key: kind of heads, precision, way, size."""
    for name, items in found["items"].items():
        if name.startswith(f"{kind}-"):
            yield from ((key, one) for key, one in items.items() if "found" in one)


def ideal(key: str, count: int) -> float:
    """Give how many times the operations of one pass the models of all tasks need."""
    heads = HEAD_FLOP[key.split()[0]][:count]
    return (count * ENCODER_FLOP + sum(heads)) / (ENCODER_FLOP + sum(heads))


def rows(found: Found) -> list[list[str]]:
    """Give a row for every pass: key, times, ratios with their share of the ideal, roofline."""
    device, told = device_of(found), []
    for key, one in timed(found):
        ms, ratios = one["found"]["ms"], one["found"]["ratios"]
        cells = [key, *(f"{ms[name]['p50']:.3f}" for name in ARMS)]
        for name in RIVALS:
            ratio = ratios[name]["median"]
            share = "" if found.get("tiny") else f" ({ratio / ideal(key, one['tasks']):.0%})"
            cells.append(f"{ratio:.2f}{share}")
        cells.append("" if found.get("tiny") else _times(key, one, device))
        told.append([*cells, "UNSTABLE" if any(one["found"]["unstable"].values()) else ""])
    return told


def _times(key: str, one: Found, device: Found) -> str:
    """Tell how many times longer a pass takes than its operations must at the measured peak."""
    peak = device.get("peaks", {}).get(one["precision"])
    if peak is None:
        return "-"
    operations = ENCODER_FLOP + sum(HEAD_FLOP[key.split()[0]][: one["tasks"]])
    least_ms = 1e3 * one["batch"] * operations / peak
    return f"{one['found']['ms']['joint']['p50'] / least_ms:.2f}"


COLUMNS = ("pass in PyTorch", "joint ms", "in turn", "at once", "ratio in turn", "ratio at once",
           "x roofline", "")  # fmt: skip


def _passes(found: Found) -> list[str]:
    lines = [list(COLUMNS), *rows(found)]
    for key, one in timed(found, "toy"):
        lines.append([f"toy {key}", *(f"{one['found']['ms'][n]['p50']:.3f}" for n in ARMS)])
    return [f"{one[0]:<42}{''.join(f'{cell:>14}' for cell in one[1:])}".rstrip() for one in lines]


def _merging(found: Found) -> list[str]:
    items = found["items"].get("merging-times", {})
    return [
        f"merging, {name}: {one['seconds']:.2f} s"
        for name, one in items.items()
        if "seconds" in one
    ]


def headlines(found: Found) -> list[str]:
    """Tell a document for benchmarks/README.md: what was timed, what is wrong, the bars."""
    head = [f"| {' | '.join(COLUMNS)} |", f"| --- {'| ---: ' * (len(COLUMNS) - 1)}|"]
    body = [f"| {' | '.join(row)} |" for row in rows(found)]
    listed = [*_device(found), *_merging(found), *faults(found), *bars(found)]
    return [*listed, "", *head, *body, ""] if body else listed


def bars(found: Found, folder: Path | None = None) -> list[str]:
    """Say of every bar whether it was met; one that was not measured says so."""
    passes = dict(timed(found))
    device = device_of(found)
    told = [*_ratio_bars(passes), *_roofline_bars(passes, device), *_ways(passes)]
    return [*told, *_ahead_bar(passes, folder)] if folder else told


def best(found: Mapping[str, Found], precision: str, batch: int, count: int = 3) -> Any:
    """Give the fastest joint pass with linear heads in PyTorch: its key and its milliseconds."""
    rows = [
        (one["found"]["ms"]["joint"]["p50"], key)
        for key, one in found.items()
        if key.startswith(f"linear {precision} ") and key.endswith(f" {count} tasks, batch {batch}")
    ]
    return min(rows, default=None)


def _ratio_bars(found: Mapping[str, Found]) -> Iterator[str]:
    for key, one in found.items():
        if key.startswith("linear ") and key.endswith(" 3 tasks, batch 1"):
            most = ideal(key, 3)
            for name, bar in (("sequential", SEQUENTIAL), ("concurrent", CONCURRENT)):
                share = one["found"]["ratios"][name]["median"] / most
                yield f"{key}, {name}: {share:.2f} of {most:.2f}, asked {bar}: {_met(share >= bar)}"


def _roofline_bars(found: Mapping[str, Found], device: Found) -> Iterator[str]:
    for batch, bar in ROOFLINE.items():
        one = best(found, "bf16", batch)
        if one is None or not device:
            yield f"bf16, batch {batch}, against the roofline: not measured"
            continue
        limit = 1e3 * batch * ENCODER_FLOP / device["peaks"]["bf16"]
        times = one[0] / limit
        yield f"{one[1]}: {times:.2f} times the roofline, asked {bar}: {_met(times <= bar)}"


def _ways(found: Mapping[str, Found]) -> Iterator[str]:
    """Compare the ways of PyTorch with torch.compile: the same pass, by the same clock."""
    for key, one in found.items():
        heads, precision, way, rest = key.split(maxsplit=3)
        rival = found.get(f"{heads} {precision} compile {rest}")
        if way != "compile" and rival:
            ratio = rival["found"]["ms"]["joint"]["p50"] / one["found"]["ms"]["joint"]["p50"]
            yield f"{key}: {ratio:.2f} times as fast as torch.compile"


def _ahead_bar(found: Mapping[str, Found], folder: Path) -> Iterator[str]:
    """Compare the runtime's backends with torch.compile in the same precision, copies included."""
    backends = sorted(folder.glob("tasks-*linear*.json"))
    for path in backends:
        for curve in read(path).get("curves", []):
            for one in curve["documents"]:
                precision = one["settings"]["precision"]
                rival = found.get(f"linear {precision} compile 3 tasks, batch 1")
                arm = one["found"]["arms"].get("joint", {}).get("ms")
                if len(one["bundle"]["tasks"]) == 3 and rival and arm:
                    ours = median(t for p in one["processes"] for t in p["ms"]["joint"])
                    ratio = median(rival["host_ms_with_copies"]["joint"]) / ours
                    yield (
                        f"{path.stem}: {ratio:.2f} times as fast as torch.compile, copies "
                        f"included, asked {AHEAD}: {_met(ratio >= AHEAD)}"
                    )
    if not backends:
        yield "against torch.compile: no backend of the runtime was measured"


def _met(met: bool) -> str:
    return "met" if met else "NOT MET"


def main() -> None:
    """Print the table of a folder of results, and write its document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    found = collected(told.folder)
    if told.json is not None:
        write_json(found, told.json)
    print(table(found, told.folder))


if __name__ == "__main__":
    main()
