"""Pictures of reports, drawn by matplotlib without a display; only this module needs it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision can tell apart; markers help too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def draw_relations(found: Mapping[str, Any]) -> Figure:
    """Draw a report of `simo_build.relate`: one panel for each moved task, one curve a task."""
    moved = found["moved"]
    figure = Figure(figsize=(0.6 + 3.4 * len(moved), 3.9), layout="constrained")
    panels = figure.subplots(1, len(moved), sharey=True, squeeze=False)[0]
    for panel, (task, curves) in zip(panels, moved.items(), strict=True):
        _panel(panel, task, found["lambdas"], curves["performance"])
    panels[0].set_ylabel("performance against its expert, %")
    panels[0].set_ylim(bottom=0)
    handles, names = panels[0].get_legend_handles_labels()
    metrics = {task: name.replace("_", " ") for task, name in found["metrics"].items()}
    shown = [f"{name}, {metrics[name].replace('iou', 'IoU')}" for name in names]
    legend = figure.legend(
        handles, shown, loc="outside upper center", ncols=len(shown), frameon=False
    )
    for line in legend.get_lines():  # the first panel's own task is drawn thicker there
        line.set_linewidth(2.0)
    return figure


def _panel(
    panel: Axes, moved: str, lambdas: list[float], performance: Mapping[str, list[float]]
) -> None:
    for place, name in ((0, "base"), (1, "expert")):
        if min(lambdas) <= place <= max(lambdas):
            panel.axvline(place, color="0.75", linewidth=1, zorder=0)
            panel.annotate(
                name,
                (place, 0.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 4),
                textcoords="offset points",
                color="0.35",
            )
    panel.axhline(100, color="0.75", linewidth=1, linestyle=":", zorder=0)
    for index, (task, values) in enumerate(performance.items()):
        panel.plot(
            lambdas,
            [100 * value for value in values],
            label=task,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4.5,
            linewidth=2.4 if task == moved else 1.4,
        )
    panel.set_title(f"towards the expert of {moved}")
    panel.set_xlabel("λ in base + λ · (expert - base)")
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the form that the file's name asks for, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    figure.savefig(partial, dpi=144)
    partial.replace(path)
