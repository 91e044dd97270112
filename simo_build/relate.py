"""simo-relate: how every task fares while the encoder moves from the base to one expert, and past.

Section 6.4 of arXiv 2504.11268: the encoder is base + lambda * (expert - base), every head is its
expert's own. Where another task gains on the way, the expert holds something for it; where it
loses, the two are in each other's way.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simo_build.loading import LoadedRecipe
from simo_build.progress import Progress
from simo_build.report import check_measurable, described
from simo_build.stages import Stages
from simo_build.statedict import add, subtract
from simo_build.workshop import Workshop, measure, measure_experts
from simo_runtime.metrics import normalised_performance

SCHEMA = "simo.relations/1"


def relate(
    loaded: LoadedRecipe, lambdas: Sequence[float], stages: Path, *, progress: Progress
) -> dict[str, Any]:
    """Measure all tasks on the select split at every lambda of every expert; give the report.

    Every point is kept as a stage, so that more lambdas cost only those that are new.
    """
    check_measurable(loaded)
    work = Workshop(loaded, Stages(stages, progress))
    experts = measured_experts(work)
    moved = {task: _curves(work, task, lambdas, experts["metrics"]) for task in loaded.recipe.tasks}
    return {
        **described(work, SCHEMA, "simo-relate"),
        "split": "select",
        "images": experts["images"],
        "experts": experts["metrics"],
        "lambdas": list(lambdas),
        "moved": moved,
    }


def measured_experts(work: Workshop) -> Mapping[str, Any]:
    """Give the experts' own `metrics` on the select split and its number of `images`, kept."""

    def make() -> tuple[dict[str, Any], dict[str, Any]]:
        samples = work.samples["select"]
        return {}, {"metrics": measure_experts(work, samples), "images": len(samples)}

    return work.stages.run("experts", work.inputs(), make).log


def _curves(
    work: Workshop, moved: str, lambdas: Sequence[float], experts: Mapping[str, float]
) -> dict[str, dict[str, list[float]]]:
    """Give the metric of every task at every lambda, and its performance against its expert."""
    points = [_point(work, moved, scale) for scale in lambdas]
    kinds = _metrics(work)  # in the recipe's order
    metrics = {task: [point[task] for point in points] for task in kinds}
    performance = {
        task: [normalised_performance({task: v}, {task: experts[task]}, kinds) for v in values]
        for task, values in metrics.items()
    }
    return {"metrics": metrics, "performance": performance}


def _point(work: Workshop, moved: str, scale: float) -> dict[str, float]:
    """Measure all tasks on base + scale * (expert - base); at 0 it is the base, whoever moves."""

    def make() -> tuple[dict[str, Any], dict[str, Any]]:
        delta = subtract(work.experts[moved].encoder, work.base)
        weights = add(work.base, {name: scale * tensor for name, tensor in delta.items()})
        heads, samples = work.expert_heads(), work.samples["select"]
        return {}, {"metrics": measure(work, weights, heads, samples)}

    inputs = {**work.inputs(), "moved": moved if scale else None, "lambda": scale or 0.0}
    metrics: dict[str, float] = work.stages.run("relate", inputs, make).log["metrics"]
    shown = ", ".join(f"{task} {value:.4f}" for task, value in metrics.items())
    work.stages.progress.say(f"relate: {moved} at {scale:g}: {shown}")
    return metrics


def _metrics(work: Workshop) -> dict[str, str]:
    return {task: spec.metric for task, spec in work.recipe.specs().items()}


def table(found: Mapping[str, Any]) -> str:
    """Lay the curves out as a table in Markdown: performance against the expert, 100 % as good."""
    tasks = list(found["metrics"])
    lines = [
        f"| moved | lambda | {' | '.join(tasks)} |",
        f"| --- | ---: | {' | '.join(['---:'] * len(tasks))} |",
    ]
    for moved, curves in found["moved"].items():
        for index, scale in enumerate(found["lambdas"]):
            cells = [f"{curves['performance'][task][index]:.1%}" for task in tasks]
            lines.append(f"| {moved} | {scale:g} | {' | '.join(cells)} |")
    return "\n".join(lines)
