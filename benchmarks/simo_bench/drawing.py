"""Plots of benchmarks: latency against tasks, stages of a photo, throughput against batch.

All times are medians of what was measured; the ideal is the measured time of one model per task
over the ideal ratio, counted from operations and bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simo_bench.document import stage_names
from simo_bench.setup import ARMS

Document = Mapping[str, Any]
Row = Mapping[str, Any]

# Okabe and Ito's colours; what is shared is blue, what is not is orange.
COLOURS = {
    "joint": "#0072B2",
    "split": "#56B4E9",
    "sequential": "#D55E00",
    "concurrent": "#E69F00",
    "torch_eager": "#CC79A7",
    "torch_compile": "#009E73",
}
MARKERS = {
    "joint": "o", "split": "D", "sequential": "s", "concurrent": "^",
    "torch_eager": "v", "torch_compile": "P",
}  # fmt: skip
SHADES = ("#9AA5B1", "#C3CBD4", "#E1E5EA")  # of stages that are not the model
HEADS = ("#D55E00", "#E69F00", "#CC79A7", "#009E73", "#F0E442", "#7F3C8D")
INK, SOFT, FAINT = "#1c2430", "#5b6675", "#dfe3e8"


def draw_counts(rows: Sequence[Row], panel: Axes, *, unit: float = 1.0) -> None:
    """Draw milliseconds against the number of tasks: every arm, and the ideal.

    A row has `tasks`, `ms` by arm and `ideal`; `unit` divides milliseconds.
    """
    counts = [row["tasks"] for row in rows]
    for name in ("sequential", "concurrent", "split", "joint"):
        if all(name in row["ms"] for row in rows):
            panel.plot(
                counts,
                [row["ms"][name] / unit for row in rows],
                label=ARMS[name],
                color=COLOURS[name],
                marker=MARKERS[name],
                markersize=5.5,
                linewidth=2.2 if name in ("joint", "sequential") else 1.4,
                clip_on=False,
                zorder=4 if name == "joint" else 3,
            )
    panel.plot(
        counts,
        [row["ms"]["sequential"] / row["ideal"] / unit for row in rows],
        label="best possible with one encoder",
        color=INK,
        linestyle=(0, (4, 3)),
        linewidth=1.3,
        zorder=5,
    )
    panel.set_xticks(counts)
    panel.set_xlim(min(counts) - 0.15, max(counts) + 0.15)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("tasks")
    _open(panel)


def _open(panel: Axes, *, grid: str = "y") -> None:
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(SOFT)
    panel.tick_params(colors=SOFT, labelcolor=INK)
    panel.set_axisbelow(True)
    panel.grid(axis=grid, color=FAINT, linewidth=0.8)  # type: ignore[arg-type]  # "x", "y", "both"


def scale(rows: Sequence[Row]) -> tuple[float, str]:
    """Choose milliseconds or seconds for a panel."""
    most = max(max(row["ms"].values()) for row in rows)
    return (1e3, "seconds") if most > 2000 else (1.0, "milliseconds")


def tasks_figure(document: Document) -> Figure:
    """Draw latency against the number of tasks, of one bundle."""
    rows = document["found"]["counts"]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    unit, shown = scale(rows)
    draw_counts(rows, panel, unit=unit)
    panel.set_ylabel(f"{shown} for one image")
    panel.legend(frameon=False, loc="upper left")
    return figure


def stages_figure(document: Document) -> Figure:
    """Draw where the time of a photo goes, as one bar for each way."""
    found = document["found"]["stages"]
    stages = {name: found[name]["p50"] for name in stage_names(document)}
    heads = [name for name in stages if name.startswith("head ")]
    counts = {"one encoder, its heads": 1, "one model per task": len(heads)}
    figure = Figure(figsize=(8.4, 2.6), layout="constrained")
    panel = figure.subplots()
    for row, (_, times) in enumerate(counts.items()):
        left = 0.0
        for name, colour, value in _parts(stages, heads, times):
            panel.barh(row, value, left=left, color=colour, height=0.58, edgecolor="white",
                       linewidth=0.8, label=name if row == 0 else None)  # fmt: skip
            left += value
        panel.annotate(f"{left:.0f} ms", (left, row), xytext=(6, 0), va="center", color=INK,
                       textcoords="offset points")  # fmt: skip
    panel.set_yticks(range(len(counts)), list(counts))
    panel.invert_yaxis()
    panel.margins(x=0.1)
    panel.set_xlim(left=0)
    panel.set_xlabel("milliseconds, medians of stages timed one by one")
    _open(panel, grid="x")
    panel.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _parts(
    stages: Mapping[str, float], heads: Sequence[str], times: int
) -> list[tuple[str, str, float]]:
    """Give name, colour and milliseconds of the parts of a bar; `times` is how often E runs."""
    before = [name for name in ("decode", "preprocess") if name in stages]
    parts = [(name, SHADES[index], stages[name]) for index, name in enumerate(before)]
    copies = sum(stages.get(name, 0.0) for name in ("copy in", "copy out"))
    parts.append(("copies", "#7a8694", copies))
    parts.append(("encoder", COLOURS["joint"], times * stages["encoder"]))
    parts += [(name, HEADS[i % len(HEADS)], stages[name]) for i, name in enumerate(heads)]
    return [*parts, ("postprocess", SHADES[2], stages.get("postprocess", 0.0))]


def throughput_figure(document: Document) -> Figure:
    """Draw images a second against the batch size, with the interval of the median."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    found = document["found"]["throughput"]
    batches: list[int] = []
    for name in (arm for arm in ARMS if arm in found):
        batches = sorted(map(int, found[name]))
        rows = [found[name][str(batch)] for batch in batches]
        values = [row["images_per_second"] for row in rows]
        below = [row["images_per_second"] - row["low"] for row in rows]
        above = [row["high"] - row["images_per_second"] for row in rows]
        panel.errorbar(batches, values, yerr=[below, above], label=ARMS[name], capsize=2.5,
                       color=COLOURS[name], marker=MARKERS[name], markersize=5.5,
                       linewidth=1.8, elinewidth=1)  # fmt: skip
    panel.set_xscale("log", base=2)
    panel.set_xticks(batches, [str(batch) for batch in batches])
    panel.xaxis.set_minor_locator(MaxNLocator(1))
    panel.set_ylim(bottom=0)
    panel.set_xlabel("images in a batch")
    panel.set_ylabel("images a second, all tasks")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    _open(panel)
    return figure


def curves_figure(panels: Sequence[tuple[str, Sequence[Row]]]) -> Figure:
    """Draw latency against tasks for several models, two panels in a row."""
    wide = min(2, len(panels))
    high = -(-len(panels) // wide)
    figure = Figure(figsize=(5.2 * wide, 0.6 + 3.5 * high), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False).flatten()
    for panel, (title, rows) in zip(axes, panels, strict=False):
        unit, shown = scale(rows)
        draw_counts(rows, panel, unit=unit)
        panel.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
        panel.set_ylabel(f"{shown} for one image", color=INK)
        _gain(panel, rows[-1], unit)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _gain(panel: Axes, row: Row, unit: float) -> None:
    """Say at the last number of tasks how many times as fast one encoder is."""
    ratio = row["ratio"]
    if ratio is None:
        return
    low, high = row["ms"]["joint"] / unit, row["ms"]["sequential"] / unit
    panel.annotate(
        "", (row["tasks"], low), xytext=(row["tasks"], high),
        arrowprops={"arrowstyle": "<->", "color": SOFT, "linewidth": 1.0, "shrinkA": 6,
                    "shrinkB": 6},
    )  # fmt: skip
    reached = f"{ratio['median'] / row['ideal']:.0%}"
    lines = [f"{ratio['median']:.2f} x", "as fast", reached, "of ideal"]
    panel.set_xlim(right=row["tasks"] + 1.0)
    panel.annotate(
        "\n".join([*lines, *(["UNSTABLE"] if ratio["unstable"] else [])]),
        (row["tasks"], (low + high) / 2),
        xytext=(9, 0), textcoords="offset points", ha="left", va="center", color=INK,
        fontsize=10, linespacing=1.25,
    )  # fmt: skip
