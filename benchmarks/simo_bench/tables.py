"""A benchmark's document as lines for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from simo_bench.document import stage_names
from simo_bench.setup import ARMS

Document = Mapping[str, Any]


def table(document: Document) -> str:
    """Lay a whole document out."""
    parts = [
        _head(document),
        _arms(document),
        _ratios(document),
        _stages(document),
        _throughput(document),
        _room(document),
        _notes(document),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _head(document: Document) -> list[str]:
    settings, bundle = document["settings"], document["bundle"]
    high, wide = bundle["image_size"]
    gpu = document["machine"]["gpu"]
    lines = [
        f"{bundle['name']}: {', '.join(bundle['tasks'])}, {high} x {wide} pixels, "
        f"{settings['precision']}, {settings['backend']}, {settings['threads']} threads",
        f"on {gpu['name'] if gpu else document['machine']['cpu']}; "
        f"per-task models: {settings['singles']}",
    ]
    if bundle["random_weights"]:
        lines.append("random weights: its predictions mean nothing, its times do")
    return lines


def _arms(document: Document) -> list[str]:
    lines = [f"{'one image, milliseconds':<32}{'median':>9}{'p90':>9}{'p95':>9}{'p99':>9}{'n':>6}"]
    lines.append("-" * len(lines[0]))
    for name in document["settings"]["arms"]:
        arm = document["found"]["arms"][name]
        if arm["ms"] is None:
            lines.append(f"{ARMS[name]:<32}  no latency: {arm['reason']}")
            continue
        ms = arm["ms"]
        cells = "".join(f"{_number(ms[key]):>9}" for key in ("p50", "p90", "p95", "p99"))
        lines.append(f"{ARMS[name]:<32}{cells}{ms['count']:>6}{_flag(arm)}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _flag(one: Mapping[str, Any]) -> str:
    return "  UNSTABLE" if one["unstable"] else ""


def _ratios(document: Document) -> list[str]:
    lines = [f"{'times as fast':<40}{'ratio':>7}{'95 % interval':>17}{'ideal':>8}{'reached':>9}"]
    lines.append("-" * len(lines[0]))
    for one in document["found"]["ratios"]:
        best, ends = one.get("ideal"), f"{one['low']:.2f} to {one['high']:.2f}"
        pair = f"{one['below']} against {one['above']}"
        reached = f"{best['roofline']:>8.2f}{one['share']['roofline']:>9.1%}" if best else ""
        lines.append(f"{pair:<40}{one['median']:>7.2f}{ends:>17}{reached}{_flag(one)}")
    parts, ideal = document["found"]["parts"], document["limits"]["ideal"]
    measured = f", of the measured parts {parts['ideal']:.2f}" if parts else ""
    lines.append(
        f"ideal by operations and bytes {ideal['roofline']:.2f}, by operations alone "
        f"{ideal['operations']:.2f}{measured}"
    )
    return lines


def _stages(document: Document) -> list[str]:
    stages, whole = document["found"]["stages"], document["found"]["whole"]
    if not stages:
        return []
    total = sum(one["p50"] for one in stages.values())
    lines = [f"{'one photo, encoder and heads':<32}{'median ms':>10}{'share':>8}"]
    lines.append("-" * len(lines[0]))
    lines += [
        f"{name:<32}{_number(stages[name]['p50']):>10}{stages[name]['p50'] / total:>8.1%}"
        for name in stage_names(document)
    ]
    for name in ("joint", "sequential"):
        if name in whole:
            lines.append(f"{f'file to arrays, {name}':<32}{_number(whole[name]['p50']):>10}")
    return lines


def _throughput(document: Document) -> list[str]:
    found = document["found"]["throughput"]
    if not found or not next(iter(found.values())):
        return []
    batches = sorted(next(iter(found.values())), key=int)
    lines = [f"{'images a second, batch':<32}" + "".join(f"{batch:>9}" for batch in batches)]
    lines.append("-" * len(lines[0]))
    for name in (arm for arm in document["settings"]["arms"] if arm in found):
        rows = found[name]
        cells = "".join(f"{rows[batch]['images_per_second']:>9.2f}" for batch in batches)
        lines.append(f"{ARMS[name]:<32}{cells}")
    return lines


def _room(document: Document) -> list[str]:
    memory, disk = document["found"]["memory"], document["found"]["disk"]
    lines = []
    if memory:
        lines = [
            f"{'memory, ' + ARMS[name]:<40}{bytes_ / 2**20:>8.0f} MiB more than an empty process"
            for name, bytes_ in memory["resident"].items()
        ]
        lines += [
            f"{name} takes {ratio:.2f} times less (at best {memory['ideal']:.2f})"
            for name, ratio in memory["ratio"].items()
        ]
    lines.append(
        f"on disk {disk['shared'] / 1e6:.1f} MB against {disk['singles'] / 1e6:.1f} MB, "
        f"{disk['ratio']:.2f} times less"
    )
    joules = [one["joules"] for one in document["processes"] if one["joules"]]
    for name in joules[0] if joules else ():
        mean = sum(one[name] for one in joules) / len(joules)
        lines.append(f"energy, {ARMS[name]}: {mean:.3f} J an image")
    return lines


def _notes(document: Document) -> list[str]:
    lines = _failed(document["processes"])
    if document["found"]["unstable"]:
        lines.append("UNSTABLE: these numbers may not come out the same again.")
        lines += [f"  {reason}" for reason in _reasons(document["found"])]
    lines += [f"For steadier clocks: {command}" for command in document["steadier"]]
    return lines


def _reasons(found: Mapping[str, Any]) -> list[str]:
    """Name what was unsteady, what holds for everything once."""
    named = [(ARMS[name], arm["unstable"]) for name, arm in found["arms"].items() if arm["ms"]]
    named += [(f"{r['below']} against {r['above']}", r["unstable"]) for r in found["ratios"]]
    common = [reason for reason in named[0][1] if all(reason in own for _, own in named)]
    own = [f"{name}: {r}" for name, reasons in named for r in reasons if r not in common]
    return [*common, *own]


def _failed(processes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the outputs that were not what they should have been."""
    rows = {
        (name, row["task"]): row
        for one in processes
        for name, arm in one["arms"].items()
        for row in arm["equality"]
        if not row["passed"]
    }
    return [
        f"{ARMS[name]}, {task}: {row['measure']} {row['found']:.6f}, at least {row['least']} "
        f"is needed{'' if row['finite'] else '; there are values that are no numbers'}"
        for (name, task), row in rows.items()
    ]
