"""simo-coefficients: how much of every expert the shared encoder has, by block and kind of layer.

Figure 2 of arXiv 2504.11268, of what a recipe has learnt: the coefficients of a learned merging
method, those that `tint` steps have added, or both.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from simo_build.build import realign
from simo_build.learned import LEARNED
from simo_build.learned.scaled import layer_of
from simo_build.loading import LoadedRecipe
from simo_build.merge.depth import block_of
from simo_build.merging import check_recipe, merge
from simo_build.progress import Progress
from simo_build.report import check_measurable, described
from simo_build.stages import Result, Stages
from simo_build.workshop import Workshop
from simo_runtime.errors import RecipeError

SCHEMA = "simo.coefficients/1"
LAYERS = ("qkv", "proj", "fc1", "fc2")  # the linear layers of a block
NORMS = "norms"  # and layer scales: all else in a block
Row = dict[str, Any]
ByTask = dict[str, dict[str, float]]  # task to tensor to coefficient


def coefficients(loaded: LoadedRecipe, stages: Path, *, progress: Progress) -> dict[str, Any]:
    """Run what a recipe learns coefficients by, unless it is kept from before; give the report."""
    check(loaded)
    work = Workshop(loaded, Stages(stages, progress))
    merged = merge(work)
    steps = of_steps(work, realign(work, merged)) if has_tint(loaded) else []
    start = of_merge(work, merged)
    return {
        **described(work, SCHEMA, "simo-coefficients"),
        "method": loaded.recipe.merge.method,
        "params": merged.log["params"],
        "steps": [step.step for step in loaded.recipe.realign],
        "whole": start is not None and loaded.recipe.merge.lines is None,
        "rows": rows(work, total([*([start] if start else []), *steps])),
    }


def check(loaded: LoadedRecipe) -> None:
    """Refuse a recipe that learns no coefficients, before any heavy work."""
    check_measurable(loaded)
    check_recipe(loaded)
    if loaded.recipe.merge.method not in LEARNED and not has_tint(loaded):
        raise RecipeError(
            f"{loaded.shown}: merge.method {loaded.recipe.merge.method} learns no coefficients, "
            f"and `realign` has no step `tint`; take a method that does ({', '.join(LEARNED)}), or "
            "add the step"
        )


def has_tint(loaded: LoadedRecipe) -> bool:
    """Whether a step of a recipe learns coefficients."""
    return any(step.step == "tint" for step in loaded.recipe.realign)


def of_merge(work: Workshop, merged: Result) -> ByTask | None:
    """Give the coefficients in a merged encoder; None if it is no sum of scaled deltas.

    Of a learned method under `lines` they are those before `lines`, and None if steps go on from
    there.
    """
    choice, names = work.recipe.merge, list(work.base)
    if choice.method in LEARNED and (choice.lines is None or not has_tint(work.loaded)):
        told = merged.log["learned"]["learnt"]
        return {task: by_tensor(told[task], names) for task in work.recipe.tasks}
    if choice.method == "task_arithmetic" and choice.lines is None:
        alpha = float(merged.log["params"]["alpha"])
        return {task: dict.fromkeys(names, alpha) for task in work.recipe.tasks}
    return None


def of_steps(work: Workshop, aligned: Result) -> list[ByTask]:
    """Give what every `tint` step has added."""
    told = [log["coefficients"] for log in aligned.log["steps"] if log["step"] == "tint"]
    return [{t: by_tensor(one[t], list(work.base)) for t in work.recipe.tasks} for one in told]


def by_tensor(told: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Bring what a log tells of a task to one number a tensor.

    A log has numbers by tensor, by layer, or one of `all`; several of a tensor that are shared out
    among its weights; or beside its numbers the components that were taken.
    """
    numbers: Mapping[str, float | Sequence[float]] = told.get("coefficients", told)
    found = {}
    for name in names:
        label = next(one for one in (name, layer_of(name), "all") if one in numbers)
        value = numbers[label]
        found[name] = fmean(value) if isinstance(value, Sequence) else value
    return found


def total(parts: Sequence[ByTask]) -> ByTask:
    """Add coefficients up, tensor by tensor."""
    return {
        task: {name: sum(part[task][name] for part in parts) for name in parts[0][task]}
        for task in parts[0]
    }


def rows(work: Workshop, found: ByTask) -> list[Row]:
    """Give the mean over weights for every task, block and kind of layer, in the encoder's order.

    Tensors that no expert has changed are left out: their coefficients change nothing.
    """
    groups: dict[tuple[int | None, str], list[str]] = {}
    for name in changed(work):
        groups.setdefault((block_of(name), kind_of(name)), []).append(name)
    if not groups:
        raise RecipeError(
            f"{work.loaded.shown}: no expert differs from the base, so that there is nothing whose "
            "coefficients could be told; is `base` one of the experts' own?"
        )
    sizes = {name: tensor.numel() for name, tensor in work.base.items()}
    return [
        {
            "block": block,
            "layer": layer,
            "weights": sum(sizes[name] for name in names),
            "coefficients": {
                task: fmean([own[name] for name in names], [sizes[name] for name in names])
                for task, own in found.items()
            },
        }
        for (block, layer), names in groups.items()
    ]


def changed(work: Workshop) -> list[str]:
    """Name the tensors that at least one expert has other than the base."""
    every = [expert.encoder for expert in work.experts.values()]
    return [
        name
        for name, tensor in work.base.items()
        if any(not torch.equal(one[name], tensor) for one in every)
    ]


def kind_of(name: str) -> str:
    """Name the kind of layer of a tensor: a linear layer, what else a block has, or its own name.

    blocks.3.attn.qkv.bias is of qkv, blocks.3.norm1.weight of norms, patch_embed.proj.weight of
    patch_embed.
    """
    if block_of(name) is None:
        return name.partition(".")[0]
    layer = name.split(".")[-2]
    return layer if layer in LAYERS else NORMS


def table(found: Mapping[str, Any]) -> str:
    """Lay the coefficients out as a table in Markdown, a line for every block and layer."""
    tasks = list(found["metrics"])
    lines = [
        f"| block | layer | {' | '.join(tasks)} |",
        f"| ---: | --- | {' | '.join(['---:'] * len(tasks))} |",
    ]
    for row in found["rows"]:
        cells = [f"{row['coefficients'][task]:.3f}" for task in tasks]
        block = "" if row["block"] is None else row["block"]
        lines.append(f"| {block} | {row['layer']} | {' | '.join(cells)} |")
    return "\n".join(lines)
