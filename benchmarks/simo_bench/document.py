"""The document of a benchmark, `simo.bench/2`: raw samples, and what was found from them.

Everything under `found` is computed by `derive` from the rest of the document, so that whoever has
the file can compute it again; `check` does, and says what differs.

    schema, who, when, command, commit, versions, machine
    bundle       name, tasks, kinds, image_size, random_weights, gate (against PyTorch, when built)
    settings     backend, precision, threads, arms, rounds, ...; singles: what per-task models are
    limits       operations, bytes and roofline of every graph; ideal ratios   (simo_bench.limits)
    processes    of each: ms by arm in the order of the rounds, equality by arm, stages_ms,
                 whole_ms, count_ms, batch_ms, joules, others' share of the CPUs, throttling
    memory       bytes by arm, each measured in a process of its own
    disk         bytes of the shared bundle and of the per-task ones, in this precision
    found        arms, ratios, memory, disk, stages, parts, counts, throughput, whole, unstable
    steadier     commands that would hold the clocks; nothing here runs them
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

from simo_bench.limits import ideal
from simo_bench.samples import (
    Groups,
    Ratio,
    disturbed,
    interval,
    pooled,
    ratio_of,
    summary,
    unsteady,
)
from simo_bench.setup import BASELINES, TORCH
from simo_runtime.errors import BackendError

SCHEMA = "simo.bench/2"
KEYS = {
    "schema", "who", "when", "command", "commit", "versions", "machine", "bundle", "settings",
    "limits", "processes", "memory", "disk", "found", "steadier",
}  # fmt: skip
SHARED = ("joint", "split")

Found = dict[str, Any]


def derive(document: Mapping[str, Any]) -> Found:
    """Compute everything that the raw samples say."""
    processes, settings = document["processes"], document["settings"]
    device = "cpu" if settings["backend"] == "onnxruntime-cpu" else "gpu"
    around = disturbed(
        (one["others"] for one in processes), throttled=any(one["throttled"] for one in processes)
    )
    arms = {name: _arm(processes, name, device, around) for name in settings["arms"]}
    times = {name: samples(processes, name) for name, one in arms.items() if one["ms"]}
    found: Found = {
        "arms": arms,
        "ratios": _ratios(times, document["limits"]["ideal"], around),
        "memory": _memory(document),
        "disk": _disk(document),
        "stages": _stages(processes),
        "throughput": _throughput(processes, times),
        "whole": _whole(processes),
    }
    found["parts"] = _parts(found["stages"])
    found["counts"] = _counts(processes, document)
    noisy = any(one["unstable"] for one in (*arms.values(), *found["ratios"]))
    return {**found, "unstable": noisy}


def stage_names(document: Mapping[str, Any]) -> list[str]:
    """Give the stages in their order; JSON has them sorted by name."""
    heads = [f"head {task}" for task in document["bundle"]["tasks"]]
    order = ["decode", "preprocess", "copy in", "encoder", *heads, "copy out", "postprocess"]
    return [name for name in order if name in document["found"]["stages"]]


def samples(processes: list[Any], arm: str, key: str = "ms") -> list[list[float]]:
    """Give an arm's times by process."""
    return [one[key][arm] for one in processes if one[key].get(arm)]


def _arm(processes: list[Any], name: str, device: str, around: list[str]) -> Found:
    """Say what an arm's times are; none without the right answers in every process."""
    told = [one["arms"][name] for one in processes]
    reasons = [one["reason"] for one in told if one["reason"]]
    groups = samples(processes, name)
    if reasons or not groups:
        reason = reasons[0] if reasons else "it was not measured"
        return {"ms": None, "reason": reason, "unstable": [], "about": {}}
    unstable = [*unsteady(groups, device=device), *around]
    about = {"about": told[0]["about"], "reason": None}
    return {"ms": asdict(summary(groups)), "unstable": unstable, **about}


def _ratios(times: Mapping[str, Groups], ideals: Mapping[str, float], around: list[str]) -> Any:
    """Compare every baseline with every shared arm, and PyTorch with the joint graph."""
    pairs = [(above, below) for above in BASELINES for below in SHARED]
    pairs += [(above, "joint") for above in TORCH]
    return [
        _ratio(above, below, ratio_of(times[above], times[below]), ideals, around)
        for above, below in pairs
        if above in times and below in times
    ]


def _ratio(
    above: str, below: str, ratio: Ratio, ideals: Mapping[str, float], around: list[str]
) -> Found:
    found: Found = {"above": above, "below": below, **asdict(ratio)}
    if above in BASELINES:
        found["ideal"] = dict(ideals)
        found["share"] = {name: ratio.median / ideals[name] for name in ("roofline", "operations")}
    found["unstable"] = list(around)
    if ratio.wide:
        ends = f"{ratio.low:.3f} to {ratio.high:.3f}"
        found["unstable"].append(f"the interval is wide, {ends}")
    return found


def _memory(document: Mapping[str, Any]) -> Found | None:
    """Compare what the arms add to an empty process's resident memory."""
    measured = document["memory"]
    resident = {name: one["resident"] for name, one in measured.items() if "resident" in one}
    if "sequential" not in resident:
        return None
    best = document["limits"]["ideal"]["memory"]
    ratios = {
        name: resident["sequential"] / resident[name] for name in SHARED if resident.get(name)
    }
    return {
        "resident": resident,
        "ratio": ratios,
        "ideal": best,
        "share": {name: ratio / best for name, ratio in ratios.items()},
    }


def _disk(document: Mapping[str, Any]) -> Found:
    shared, singles = document["disk"]["shared"], sum(document["disk"]["singles"].values())
    return {"shared": shared, "singles": singles, "ratio": singles / shared}


def _stages(processes: list[Any]) -> Found:
    names = {name for one in processes for name in one["stages_ms"]}
    return {name: asdict(summary(samples(processes, name, "stages_ms"))) for name in names}


def _parts(stages: Mapping[str, Any]) -> Found | None:
    """Give T (E + H) / (E + T H) of the measured parts: what putting them together could give."""
    heads = [one["p50"] for name, one in stages.items() if name.startswith("head ")]
    if not heads or "encoder" not in stages:
        return None
    encoder = stages["encoder"]["p50"]
    return {
        "encoder": encoder,
        "heads": sum(heads),
        "ideal": ideal([encoder] * len(heads), heads, encoder),
    }


def _counts(processes: list[Any], document: Mapping[str, Any]) -> list[Found]:
    """Give the median of every number of tasks, and what it could be at best."""
    tasks, graphs = document["bundle"]["tasks"], document["limits"]["graphs"]
    rows = []
    for number in range(1, len(tasks) + 1):
        groups = {
            name: [one["count_ms"][name][str(number)] for one in processes]
            for name in ("split", "sequential")
            if all(str(number) in one["count_ms"].get(name, {}) for one in processes)
        }
        heads = [graphs[task]["roofline_ms"] for task in tasks[:number]]
        encoder = graphs["encoder"]["roofline_ms"]
        rows.append(
            {
                "tasks": number,
                "ms": {name: median(pooled(group)) for name, group in groups.items()},
                "ideal": ideal([encoder] * number, heads, encoder),
            }
        )
    return rows


def _throughput(processes: list[Any], times: Mapping[str, Groups]) -> Found:
    """Give the images a second by arm and batch size, with the interval of the median."""
    found: Found = {}
    for name in times:
        batches = dict.fromkeys(batch for one in processes for batch in one["batch_ms"][name])
        rows = {}
        for batch in sorted(batches, key=int):
            groups = [one["batch_ms"][name][batch] for one in processes]
            low, high = interval(groups)
            rows[batch] = {
                "images_per_second": 1e3 * int(batch) / median(pooled(groups)),
                "low": 1e3 * int(batch) / high,
                "high": 1e3 * int(batch) / low,
                "count": len(pooled(groups)),
            }
        found[name] = rows
    return found


def _whole(processes: list[Any]) -> Found:
    """Summarise the way from the file to the photo's size; the ratio is paired like the others."""
    both = ("joint", "sequential")
    names = [name for name in both if all(one["whole_ms"].get(name) for one in processes)]
    found: Found = {name: asdict(summary(samples(processes, name, "whole_ms"))) for name in names}
    if len(names) == 2:
        above, below = (samples(processes, name, "whole_ms") for name in ("sequential", "joint"))
        found["ratio"] = asdict(ratio_of(above, below))
    return found


def check(document: Mapping[str, Any]) -> None:
    """Refuse a document of another schema, with other keys, or whose figures are not its samples'.

    Raises BackendError.
    """
    if document.get("schema") != SCHEMA:
        raise BackendError(f"the schema is {document.get('schema')!r}; {SCHEMA!r} is read here")
    if set(document) != KEYS:
        odd = sorted(set(document) ^ KEYS)
        raise BackendError(f"the document's keys are not those of {SCHEMA}: {', '.join(odd)}")
    found = json.loads(json.dumps(derive(document)))
    wrong = [key for key in found if found[key] != document["found"].get(key)]
    if wrong:
        raise BackendError(f"not what the raw samples say: {', '.join(wrong)}")
