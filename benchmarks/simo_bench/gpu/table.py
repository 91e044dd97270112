"""A short table of what a GPU machine has measured, with the bars that were asked for."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

SEQUENTIAL, CONCURRENT = 0.93, 0.80  # of the ideal ratio, batch 1, three linear heads
ROOFLINE = {1: 3.0, 16: 1.6}  # times the encoder's compute roofline in bf16, by batch
AHEAD = 1.15  # times as fast as torch.compile, batch 1
RIVALS = ("sequential", "concurrent")
ENCODER_FLOP = 103.2e9  # ViT-B/14 at 280 x 378, one image

Found = Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    """Read a file; nothing if it is not there or not whole."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def table(folder: Path) -> str:
    """Lay out the steps, what was timed, and the bars."""
    state = read(folder / "steps.json")
    lines = [f"{'step':<44}{'state':<9}{'seconds':>8}  reason", "-" * 78]
    for name, one in state.get("steps", {}).items():
        lines.append(f"{name:<44}{one['state']:<9}{one['seconds']:>8.0f}  {one['reason'][:60]}")
    lines += ["", *_device(folder), "", *_passes(folder), "", *_merging(folder), *bars(folder)]
    return "\n".join(lines)


def _device(folder: Path) -> list[str]:
    device = read(folder / "roofline.json").get("items", {}).get("device")
    if not device or "failed" in device:
        return ["the device was not measured"]
    peaks = ", ".join(f"{name} {peak / 1e12:.1f}" for name, peak in device["peaks"].items())
    return [
        f"{device['name']}: TFLOP/s {peaks}; {device['bandwidth'] / 1e9:.0f} GB/s, measured here"
    ]


def timed(folder: Path) -> Iterator[tuple[str, Found]]:
    """Give every item of a pass that was timed, by its key."""
    for path in sorted(folder.glob("passes-*.json")):
        for key, one in read(path).get("items", {}).items():
            if "found" in one:
                yield key, one


def _passes(folder: Path) -> list[str]:
    head = f"{'PyTorch':<46}{'joint ms':>9}{'in turn':>9}{'at once':>9}{'ratio':>7}{'ratio':>7}"
    lines = [head, "-" * len(head)]
    for key, one in timed(folder):
        ms, ratios = one["found"]["ms"], one["found"]["ratios"]
        cells = "".join(
            f"{ms[name]['p50']:>9.3f}" for name in ("joint", "sequential", "concurrent")
        )
        pair = "".join(f"{ratios[name]['median']:>7.2f}" for name in ("sequential", "concurrent"))
        unsure = " UNSTABLE" if any(one["found"]["unstable"].values()) else ""
        lines.append(f"{key:<46}{cells}{pair}{unsure}")
    return lines


def _merging(folder: Path) -> list[str]:
    items = read(folder / "merging-times.json").get("items", {})
    return [
        f"merging, {name}: {one['seconds']:.2f} s"
        for name, one in items.items()
        if "seconds" in one
    ]


def bars(folder: Path) -> list[str]:
    """Say of every bar whether it was met; one that was not measured says so."""
    found = dict(timed(folder))
    return ["", *_ratio_bars(found), *_roofline_bars(found, folder), *_ahead_bar(found, folder)]


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
            ratios = one["found"]["ratios"]
            for name, bar in (("sequential", SEQUENTIAL), ("concurrent", CONCURRENT)):
                share = ratios[name]["median"] / 3  # linear heads cost next to nothing
                yield f"{key}, {name}: {share:.2f} of 3, asked {bar}: {_met(share >= bar)}"


def _roofline_bars(found: Mapping[str, Found], folder: Path) -> Iterator[str]:
    device = read(folder / "roofline.json").get("items", {}).get("device") or {}
    for batch, bar in ROOFLINE.items():
        one = best(found, "bf16", batch)
        if one is None or "peaks" not in device:
            yield f"bf16, batch {batch}, against the roofline: not measured"
            continue
        limit = 1e3 * batch * ENCODER_FLOP / device["peaks"]["bf16"]
        times = one[0] / limit
        yield f"{one[1]}: {times:.2f} times the roofline, asked {bar}: {_met(times <= bar)}"


def _ahead_bar(found: Mapping[str, Found], folder: Path) -> Iterator[str]:
    """Compare the runtime's backends with torch.compile in the same precision."""
    backends = sorted(folder.glob("tasks-*linear*.json"))
    for path in backends:
        for curve in read(path).get("curves", []):
            for one in curve["documents"]:
                precision = one["settings"]["precision"]
                rival = found.get(f"linear {precision} compile 3 tasks, batch 1")
                arm = one["found"]["arms"].get("joint", {}).get("ms")
                if len(one["bundle"]["tasks"]) == 3 and rival and arm:
                    ours = median(t for p in one["processes"] for t in p["ms"]["joint"])
                    ratio = median(rival["host_ms"]["joint"]) / ours
                    yield (
                        f"{path.stem}: {ratio:.2f} times as fast as torch.compile, "
                        f"asked {AHEAD}: {_met(ratio >= AHEAD)}"
                    )
    if not backends:
        yield "against torch.compile: no backend of the runtime was measured"


def _met(met: bool) -> str:
    return "met" if met else "NOT MET"
