"""Pictures of reports, drawn by matplotlib without a display; only this module needs it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simo_runtime.files import whole

# Okabe and Ito's colours, which people with any colour vision can tell apart; markers help too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
STAGES = {"merged": "merged, experts' heads", "realigned": "re-aligned"}


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
    _open(panel)


def draw_scaling(found: Mapping[str, Any]) -> Figure:
    """Draw a report of `simo_build.scaling`: the mean of every count, its range, every subset."""
    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    panel = figure.subplots()
    counts = [row["tasks"] for row in found["by_count"]]
    panel.axhline(100, color="0.75", linewidth=1, linestyle=":", zorder=0)
    stages = [stage for stage in STAGES if stage in found["rows"][0]]
    for index, stage in enumerate(stages):
        aside = 0.05 * (2 * index - len(stages) + 1)  # else the subsets of two stages cover another
        _scaling_stage(panel, found, stage, COLOURS[index], MARKERS[index], aside)
    panel.set_xticks(counts)
    panel.set_xlim(0.8, max(counts) + 0.2)
    panel.set_xlabel("number of merged experts")
    panel.set_ylabel("performance against the experts, %")
    panel.legend(frameon=False, loc="best")
    _open(panel)
    return figure


def _scaling_stage(
    panel: Axes, found: Mapping[str, Any], stage: str, colour: str, marker: str, aside: float
) -> None:
    rows = found["by_count"]
    places = [row["tasks"] + aside for row in rows]
    lowest, mean, highest = (
        [100 * row[stage][value] for row in rows] for value in ("lowest", "mean", "highest")
    )
    panel.fill_between(places, lowest, highest, color=colour, alpha=0.12, linewidth=0)
    panel.scatter(
        [len(row["tasks"]) + aside for row in found["rows"]],
        [100 * row[stage]["normalised_performance"] for row in found["rows"]],
        s=12,
        color=colour,
        alpha=0.5,
        linewidth=0,
    )
    panel.plot(places, mean, label=STAGES[stage], color=colour, marker=marker, markersize=5.5)


def draw_coefficients(found: Mapping[str, Any]) -> Figure:
    """Draw a report of `simo_build.coefficients`: one panel a kind of layer, one curve a task.

    Blocks whose layers all share a coefficient get one panel for all of them.
    """
    panels = coefficient_panels(found["rows"])
    wide = min(3, len(panels))
    high = -(-len(panels) // wide)
    figure = Figure(figsize=(0.8 + 3.2 * wide, 0.7 + 2.5 * high), layout="constrained")
    axes = figure.subplots(high, wide, sharey=True, squeeze=False).flatten()
    for axis, (title, rows) in zip(axes, panels.items(), strict=False):
        _coefficients(axis, title, rows)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    whose = "of the expert's delta" if found["whole"] else "as it was learnt"
    figure.supylabel(f"coefficient {whose}", fontsize="medium")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    return figure


def coefficient_panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Sort the rows of coefficients into panels: the layers of blocks, then what lies outside."""
    inside: dict[str, list[Mapping[str, Any]]] = {
        name: [] for name in ("qkv", "proj", "fc1", "fc2")
    }
    outside = [row for row in rows if row["block"] is None]
    for row in rows:
        if row["block"] is not None:
            inside.setdefault(row["layer"], []).append(row)
    inside = {name: own for name, own in inside.items() if own}
    curves = [[(row["block"], row["coefficients"]) for row in own] for own in inside.values()]
    if curves and all(curve == curves[0] for curve in curves):
        inside = {"all layers": next(iter(inside.values()))}
    return {**inside, **({"outside of the blocks": outside} if outside else {})}


def _coefficients(panel: Axes, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    outside = rows[0]["block"] is None
    places = [index if outside else row["block"] for index, row in enumerate(rows)]
    for index, task in enumerate(rows[0]["coefficients"]):
        panel.plot(
            places,
            [row["coefficients"][task] for row in rows],
            label=task,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4.5,
            linewidth=1.4,
            linestyle="none" if outside else "-",
        )
    panel.axhline(0, color="0.75", linewidth=1, zorder=0)
    panel.set_title(title)
    panel.set_xlabel("" if outside else "block")
    if outside:
        panel.set_xticks(places, [row["layer"].replace("_", "\n") for row in rows])
        panel.set_xlim(-0.5, len(rows) - 0.5)
    else:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    _open(panel)


def _open(panel: Axes) -> None:
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


# By the schema of a report, without its version.
DRAWN: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "simo.relations": draw_relations,
    "simo.scaling": draw_scaling,
    "simo.coefficients": draw_coefficients,
}


def draw(found: Mapping[str, Any]) -> Figure:
    """Draw a report, each kind in its own way."""
    return DRAWN[found["schema"].partition("/")[0]](found)


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the form that the file's name asks for, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        figure.savefig(partial, dpi=144)
