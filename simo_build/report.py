"""simo-eval: the metrics after every stage of a recipe, on one split, with where they come from."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simo_build.build import build, realign, versions
from simo_build.data import Samples
from simo_build.loading import LoadedRecipe
from simo_build.losses import as_measured
from simo_build.merging import check_recipe, merge
from simo_build.progress import Progress
from simo_build.proxies import SELECT
from simo_build.realign import run_steps, shared_encoder
from simo_build.stages import Stages
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop, against, measure, measure_experts, split_heads
from simo_runtime import backends
from simo_runtime.bundle import Bundle
from simo_runtime.errors import RecipeError
from simo_runtime.metrics import METRICS, metric_named

SCHEMA = "simo.eval/1"
Row = dict[str, Any]


def study(loaded: LoadedRecipe, out: Path, split: str, *, progress: Progress) -> dict[str, Any]:
    """Measure experts, controls, merged, re-aligned and the bundle itself on one split."""
    check_measurable(loaded)
    check_recipe(loaded)
    bundle = build(loaded, out, progress=progress)
    work = Workshop(loaded, Stages(out.parent / ".stages", progress))
    samples = work.samples[split] if split == "select" else work.split(split)
    rows = study_rows(work, samples, bundle)
    return {
        **described(work, SCHEMA, Path(sys.argv[0]).name),
        "split": split,
        "images": len(samples),
        "merge": bundle.manifest.provenance["merge"]["params"],
        **used(bundle.manifest.provenance),
        "rows": rows,
        "gate": bundle.manifest.provenance["gate"],
    }


def described(work: Workshop, schema: str, command: str) -> dict[str, Any]:
    """Say what a report is and where it comes from: command, commit, versions, machine, hashes."""
    return {
        "schema": schema,
        "recipe": work.recipe.name,
        "command": shlex.join([command, *without_paths(sys.argv[1:])]),
        "commit": commit(),
        "versions": versions(),
        "machine": {"cpu": cpu_name(), "cpus": os.cpu_count(), "system": platform.system()},
        "inputs": work.inputs(),
        "metrics": {task: spec.metric for task, spec in work.recipe.specs().items()},
    }


def used(provenance: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Say how many images and labels of each split the build has learnt or chosen from."""
    merge, realign = provenance["merge"], provenance["realign"]
    chosen = merge if merge.get("by", SELECT) == SELECT else {}
    looks = [realign, merge.get("learned", {}), merge.get("evidence", {})]
    looks += [merge] if not chosen else []
    return {
        f"{what}_used": {
            "realign": max(look.get(what, 0) for look in looks),
            "select": max(realign.get(f"select_{what}", 0), chosen.get(what, 0)),
        }
        for what in ("images", "labels")
    }


def check_measurable(loaded: LoadedRecipe) -> None:
    """Refuse a recipe that has no accuracy to measure, or no data to measure it on."""
    if loaded.recipe.random_seed is not None:
        raise RecipeError(
            f"{loaded.shown}: base {loaded.recipe.base} is for measuring speed; it has no accuracy"
        )
    if loaded.recipe.data is None:
        raise RecipeError(f"{loaded.shown}: measuring needs `data`")


def study_rows(work: Workshop, samples: Samples, bundle: Bundle) -> list[Row]:
    """Measure every row; each carries the metrics and equations 1 and 2 against the experts."""
    merged = merge(work)
    aligned = realign(work, merged)
    experts = measure_experts(work, samples)
    rows: list[Row] = []

    def row(name: str, measured: Mapping[str, float]) -> None:
        rows.append({"row": name, "metrics": dict(measured), **against(work, measured, experts)})

    row("experts, one model per task", experts)
    row("base + experts' heads", measure(work, work.base, work.expert_heads(), samples))
    row("merged + experts' heads", measure(work, merged.tensors, work.expert_heads(), samples))
    if work.recipe.realign:
        for name, before, after in (
            ("base", work.base, base_realigned(work)),
            ("merged", merged.tensors, aligned.tensors),
        ):
            encoder, heads = shared_encoder(before, after), split_heads(work, after)
            told = f"{name} + re-aligned heads" if encoder is before else f"{name}, re-aligned"
            row(told, measure(work, encoder, heads, samples))
    row("the bundle, in ONNX Runtime", measure_bundle(bundle, samples))
    return rows


def base_realigned(work: Workshop) -> StateDict:
    """Run the same steps on the base itself: the control that says what merging is worth."""
    steps = [step.model_dump(mode="json") for step in work.recipe.realign]
    inputs = {**work.inputs(), "steps": steps}
    return work.stages.run("control", inputs, lambda: run_steps(work, work.base)).tensors


def measure_bundle(bundle: Bundle, samples: Samples) -> dict[str, float]:
    """Measure what is deployed: the bundle's graphs in the default backend."""
    import torch

    tasks = bundle.manifest.tasks
    session = backends.choose(None).open(bundle, threads=None)
    found = {task.name: metric_named(task.metric).start(task.channels) for task in tasks}
    for index in range(len(samples)):
        outputs = session.run(samples.images[index : index + 1], list(found))
        for task, accumulator in found.items():
            values = as_measured(torch.from_numpy(np.asarray(outputs[task])))
            accumulator.update(values, samples.truths[task][index : index + 1])
    session.close()
    return {task: accumulator.result() for task, accumulator in found.items()}


def table(found: Mapping[str, Any]) -> str:
    """Lay the rows out for people."""
    tasks = list(found["metrics"])
    heads = [f"{task} {found['metrics'][task]}" for task in tasks]
    heads = [head.replace("_", " ") for head in heads]
    lines = [["", *heads, "eq. 1 - 100 %", "eq. 2"]]
    for row in found["rows"]:
        values = [shown(row["metrics"][task], found["metrics"][task]) for task in tasks]
        eq1, eq2 = row["normalised_performance"] - 1.0, row["relative_drop"]
        lines.append([row["row"], *values, f"{eq1:+.2%}", f"{eq2:+.2%}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    body = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    title = f"{found['recipe']}: {found['images']} images of the {found['split']} split"
    return "\n".join([title, "", body[0], "-" * len(body[0]), *body[1:]])


def shown(value: float, metric: str) -> str:
    """Show a metric with its unit and the digits that matter."""
    unit = METRICS[metric].unit
    if metric == "mean_iou":
        return f"{100 * value:.2f} %"
    return f"{value:.2f}{unit}" if unit == "°" else f"{value:.4f} {unit}".rstrip()


def write_json(found: Mapping[str, Any], path: Path) -> None:
    """Write the study as JSON with sorted keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def without_paths(arguments: Sequence[str]) -> list[str]:
    """Replace the folders of this machine in a command, which must mean the same elsewhere.

    Of other absolute paths the name stays.
    """
    shown_as = {"--data": "DATA", "--experts": "EXPERTS", "-o": "OUT", "--out": "OUT"}
    shown = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        joined = argument.startswith("--") and "=" in argument
        option, _, value = argument.partition("=") if joined else (before, "", argument)
        told = shown_as.get(option, Path(value).name if Path(value).is_absolute() else value)
        shown.append(f"{option}={told}" if joined else told)
    return shown


def commit() -> str | None:
    """Give the commit of the code, marked when files differ from it; None outside a checkout."""
    where = Path(__file__).parent
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty"],
            cwd=where,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def cpu_name() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
