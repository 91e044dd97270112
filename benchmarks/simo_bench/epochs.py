"""Plot of how experts were trained: their metric on `select` after every epoch."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simo_bench.trained import PHASES
from simo_build.evaluate import titled
from simo_build.plots import COLOURS
from simo_runtime.metrics import METRICS


def draw(found: Mapping[str, Any]) -> Figure:
    """Draw the metric on `select` against epochs: a panel for each expert, a colour a phase."""
    rows = found["rows"]
    figure = Figure(figsize=(0.4 + 3.2 * len(rows), 3.3), layout="constrained")
    panels = figure.subplots(1, len(rows), squeeze=False)[0]
    for panel, row in zip(panels, rows, strict=True):
        _phases(panel, row)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    return figure


def _phases(panel: Axes, row: Mapping[str, Any]) -> None:
    start = 0
    for (name, shown_as), colour in zip(PHASES.items(), COLOURS, strict=False):
        phase = row["phases"][name]
        history, best = phase["history"], start + phase["epoch"]
        # what is there before the first epoch of the head is noise, and would flatten all else
        first = 1 if name == "head" else 0
        places = range(start + first, start + len(history))
        panel.plot(places, history[first:], color=colour, marker="o", markersize=3, label=shown_as)
        panel.plot(best, phase["metric"], color=colour, marker="o", markersize=8, fillstyle="none")
        start += len(history) - 1
    panel.set_title(row["task"])
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("epoch")
    unit = METRICS[row["metric"]].unit
    panel.set_ylabel(titled(row["metric"]) + (f", {unit}" if unit else ""))
    panel.spines[["top", "right"]].set_visible(False)
