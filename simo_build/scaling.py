"""simo-scaling: what merging costs, and re-alignment wins back, as more experts are merged.

Figure 1 of arXiv 2504.11268: for every number of tasks, every subset of so many experts, or some
that are drawn, is merged as the recipe says and measured on its own tasks by equation 1.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from simo_build.build import realign
from simo_build.loading import LoadedRecipe
from simo_build.merging import check_recipe, merge
from simo_build.progress import Progress
from simo_build.realign import shared_encoder
from simo_build.relate import measured_experts
from simo_build.report import check_measurable, described
from simo_build.stages import Result, Stages
from simo_build.workshop import Workshop, against, measure, split_heads
from simo_runtime.errors import RecipeError

SCHEMA = "simo.scaling/1"
Row = dict[str, Any]


def scaling(
    loaded: LoadedRecipe,
    stages: Path,
    *,
    most: int,
    seed: int,
    realigned: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Measure subsets of every size on the select split, at most `most` of each; give the report.

    Every merge, re-alignment and measurement is kept as a stage.
    """
    check(loaded, realigned=realigned)
    work = Workshop(loaded, Stages(stages, progress))
    experts = measured_experts(work)
    chosen = list(subsets(list(loaded.recipe.tasks), most, seed))
    rows = [_row(work.only(tasks), experts["metrics"], realigned=realigned) for tasks in chosen]
    return {
        **described(work, SCHEMA, "simo-scaling"),
        "split": "select",
        "images": experts["images"],
        "experts": experts["metrics"],
        "method": loaded.recipe.merge.method,
        "seed": seed,
        "rows": rows,
        "by_count": by_count(rows),
    }


def check(loaded: LoadedRecipe, *, realigned: bool) -> None:
    """Refuse, before any heavy work, a recipe that cannot be measured so."""
    check_measurable(loaded)
    check_recipe(loaded)
    if realigned and not loaded.recipe.realign:
        raise RecipeError(
            f"{loaded.shown}: `realign` has no steps; give some, or leave --realign out"
        )


def subsets(tasks: Sequence[str], most: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Give subsets of every size, at most so many of each: all of them, or random ones.

    More of the same seed has those of fewer among them. Tasks keep their order.
    """
    for count in range(1, len(tasks) + 1):
        there = math.comb(len(tasks), count)
        yield from combinations(tasks, count) if there <= most else _drawn(tasks, count, most, seed)


def _drawn(tasks: Sequence[str], count: int, most: int, seed: int) -> list[tuple[str, ...]]:
    """Draw different subsets of one size."""
    generator, found = np.random.default_rng((seed, count)), dict[tuple[str, ...], None]()
    while len(found) < most:
        places = sorted(generator.choice(len(tasks), count, replace=False).tolist())
        found[tuple(tasks[place] for place in places)] = None
    return list(found)


def _row(work: Workshop, experts: Mapping[str, float], *, realigned: bool) -> Row:
    """Merge the experts of a workshop, re-align on request, and measure what comes out."""
    tasks = list(work.recipe.tasks)
    work.stages.progress.say(f"scaling: {len(tasks)} of the experts: {', '.join(tasks)}")
    merged = merge(work)
    row = {"tasks": tasks, "params": dict(merged.log["params"])}
    row["merged"] = _measured(work, experts, merged, None)
    if realigned:
        row["realigned"] = _measured(work, experts, merged, realign(work, merged))
    return row


def _measured(
    work: Workshop, experts: Mapping[str, float], merged: Result, aligned: Result | None
) -> Mapping[str, Any]:
    """Measure a shared encoder with the experts' heads, or those that were re-aligned to it."""

    def make() -> tuple[dict[str, Any], dict[str, Any]]:
        weights = (
            merged.tensors if aligned is None else shared_encoder(merged.tensors, aligned.tensors)
        )
        heads = work.expert_heads() if aligned is None else split_heads(work, aligned.tensors)
        return {}, measure(work, weights, heads, work.samples["select"])

    inputs = {"merged": merged.key, "aligned": aligned and aligned.key, **work.inputs()}
    metrics = dict(work.stages.run("scaling", inputs, make).log)
    return {"metrics": metrics, **against(work, metrics, experts)}


def by_count(rows: Sequence[Row]) -> list[Row]:
    """Give for every number of tasks the mean and the spread over its subsets of equation 1."""
    found: list[Row] = []
    for count in sorted({len(row["tasks"]) for row in rows}):
        own = [row for row in rows if len(row["tasks"]) == count]
        stages = [stage for stage in ("merged", "realigned") if stage in own[0]]
        spreads: Row = {
            stage: spread([row[stage]["normalised_performance"] for row in own]) for stage in stages
        }
        found.append({"tasks": count, "subsets": len(own), **spreads})
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Give mean, standard deviation (of these values, 0 of one), lowest and highest."""
    return {
        "mean": fmean(values),
        "deviation": pstdev(values),
        "lowest": min(values),
        "highest": max(values),
    }


def table(found: Mapping[str, Any]) -> str:
    """Lay the counts out as a table in Markdown: performance against the experts."""
    stages = [stage for stage in ("merged", "realigned") if stage in found["by_count"][0]]
    heads = [f"{told} | {told}, lowest to highest" for told in map(shown, stages)]
    lines = [
        f"| tasks | subsets | {' | '.join(heads)} |",
        f"| ---: | ---: |{' ---: | ---: |' * len(stages)}",
    ]
    for row in found["by_count"]:
        cells = [cell for stage in stages for cell in _cells(row[stage])]
        lines.append(f"| {row['tasks']} | {row['subsets']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(one: Mapping[str, float]) -> list[str]:
    return [
        f"{one['mean']:.1%} ± {one['deviation']:.1%}",
        f"{one['lowest']:.1%} to {one['highest']:.1%}",
    ]


def shown(stage: str) -> str:
    """Name a stage for people."""
    return {"merged": "merged", "realigned": "re-aligned"}[stage]
