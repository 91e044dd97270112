"""benchmarks/README.md from the results: each number with who, on what, with what, and how.

python -m simo_bench.readme            # write it anew
python -m simo_bench.readme --check    # say whether it is as the results have it
"""

import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simo_bench import curve, heads, trained
from simo_bench.check import COMMITTED, read
from simo_bench.filling import command as filling
from simo_bench.filling import share
from simo_bench.gpu import table as gpu_table
from simo_bench.measured import measured
from simo_runtime.errors import DataError

PAGE = COMMITTED.parent / "README.md"
BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- end -->\n)", re.DOTALL)
MAIN = ("torch", "onnxruntime", "onnxruntime-gpu", "numpy", "timm", "simo-runtime", "python")

Document = Mapping[str, Any]


def eval_lines(found: Document) -> list[str]:
    """The mean of every row against the experts."""
    return [
        f"{row['row']}: {share(row['normalised_performance'])} against the experts"
        for row in found["rows"]
    ]


def study_lines(found: Document) -> list[str]:
    """The best method of a study."""
    rows = found["chosen"]
    if not rows:
        return [f"{len(found['references'])} several-pass methods; docs/merging.md has the table"]
    best = max(rows, key=lambda row: row["realigned"]["normalised_performance"])
    value = share(best["realigned"]["normalised_performance"])
    return [
        f"{len(rows)} methods; the best one after re-alignment is {best['name']}, "
        f"{value} against the experts"
    ]


def ablation_lines(found: Document) -> list[str]:
    """The metrics of every row."""
    return [
        f"{row['row']}: "
        + ", ".join(f"{name} {value:.4g}" for name, value in row["metrics"].items())
        for row in found["rows"]
    ]


def ranking_lines(found: Document) -> list[str]:
    """How many methods and proxies."""
    return [f"{len(found['proxies'])} proxies over the candidates of {found['methods']} methods"]


def relations_lines(found: Document) -> list[str]:
    """What was moved where."""
    ends = f"{min(found['lambdas'])} to {max(found['lambdas'])}"
    return [f"{len(found['moved'])} tasks, from the base to each expert, lambda {ends}"]


def coefficients_lines(found: Document) -> list[str]:
    """The mean of every task's coefficients over the layers of all blocks."""
    rows = [row["coefficients"] for row in found["rows"] if row["block"] is not None]
    means = [f"{task} {statistics.mean(row[task] for row in rows):.2f}" for task in rows[0]]
    return [f"{found['method']}, {len(rows)} layers, mean coefficients: {', '.join(means)}"]


def scaling_lines(found: Document) -> list[str]:
    """What is left of the experts, by how many are merged."""
    return [
        f"{one['tasks']} merged: {share(one['merged']['mean'])} against the experts"
        for one in found["by_count"]
        if one["tasks"] > 1
    ]


def merging_lines(found: Document) -> list[str]:
    """Ratios, and the times of single methods."""
    lines = ratio_lines(found)
    if found["methods"]:
        seconds = sorted(row["seconds"] for row in found["methods"].values())
        middle = statistics.median(seconds)
        ends = f"{seconds[0]:.1f} to {seconds[-1]:.1f} s"
        lines.append(f"{len(seconds)} methods merge in {ends}, median {middle:.1f} s")
    return lines


def ratio_lines(found: Document) -> list[str]:
    """Every ratio with its interval."""
    return [one.told for one in measured(found)]


def runtime_lines(found: Document) -> list[str]:
    """Ratios, what the predictor adds, and what half an hour of work did to the memory."""
    lines = ratio_lines(found)
    for bundle, ways in found["bars"].get("overhead", {}).items():
        for way, one in ways.items():
            extra = one["extra_ms"]
            lines.append(
                f"the {bundle} bundle, {way}: the predictor adds {extra['median']:.2f} ms "
                f"({extra['p05']:.2f} to {extra['p95']:.2f}), {one['extra_percent']:.2f} %"
            )
    soak = found["bars"].get("soak")
    if soak:
        least, most = soak["open_files"]
        lines.append(
            f"{soak['runs']} calls in {soak['minutes']:g} minutes: resident memory within "
            f"{soak['span_mib']:.1f} MiB, {least} to {most} open files"
        )
    return lines


def bench_lines(found: Document) -> list[str]:
    """Ratios, and what of the ideal was reached."""
    ratios = found["found"]["ratios"]
    reached = [
        f"{one['below']} against {one['above']} reaches {one['share']['roofline']:.1%} of the "
        f"ideal {one['ideal']['roofline']:.2f}"
        for one in ratios
        if one.get("ideal")
    ]
    return [*ratio_lines(found), *reached]


def curve_lines(found: Document) -> list[str]:
    """The whole table of a study over tasks."""
    return ["", *curve.table(found).split("\n")]


def gate_lines(found: Document) -> list[str]:
    """How near every precision's graphs came to PyTorch, task by task."""
    gate = found["gate"]
    lines = ["", "| precision | task | cosine | relative difference | same classes | metric |"]
    lines.append("| --- | --- | ---: | ---: | ---: | --- |")
    for one in gate["found"]:
        classes = "" if one["argmax"] is None else f"{one['argmax']:.2%}"
        torch, onnx = one["metric_torch"], one["metric_onnx"]
        metric = f"{torch:.5g} to {onnx:.5g} ({abs(onnx / torch - 1):.3%})"
        cells = [one["precision"], one["task"], f"{one['cosine']:.6f}", f"{one['frobenius']:.1e}"]
        lines.append(f"| {' | '.join([*cells, classes, metric])} |")
    return lines


HEADLINES: dict[str, Callable[[Document], list[str]]] = {
    "simo.ablation/1": ablation_lines,
    "simo.bench.runtime/1": runtime_lines,
    "simo.bench/2": bench_lines,
    "simo.coefficients/1": coefficients_lines,
    "simo.curve/1": curve_lines,
    "simo.eval/1": eval_lines,
    "simo.eval/2": eval_lines,
    "simo.exports/1": ratio_lines,
    "simo.gate/1": gate_lines,
    "simo.gpu/1": gpu_table.headlines,
    "simo.heads/1": lambda found: [heads.told(found)],
    "simo.merging/1": merging_lines,
    "simo.ranking/1": ranking_lines,
    "simo.realignments/1": eval_lines,
    "simo.relations/1": relations_lines,
    "simo.scaling/1": scaling_lines,
    "simo.study/1": study_lines,
    "simo.trained/1": lambda found: ["", *trained.table(found).split("\n")],
}


def section(name: str, found: Document) -> str:
    """Give the part of the page about one result."""
    schema = str(found.get("schema"))
    told = HEADLINES.get(schema)
    if told is None:
        raise DataError(f"{name}: there is nothing in simo_bench.readme for the schema {schema!r}")
    lines = [line if not line or line.startswith("|") else f"- {line}" for line in told(found)]
    about = [
        f"| who | {found.get('who', 'the project')} |",
        "| --- | --- |",
        f"| hardware | {hardware(found)} |",
        f"| versions | {versions(found)} |",
        f"| commit | {commit(found)} |",
        f"| command | `{command(found)}` |",
    ]
    return "\n".join([f"### [{name}](results/{name})", "", *lines, "", *about])


def hardware(found: Document) -> str:
    """Name the processor or the GPU; `not told` where the result does not."""
    machine = found.get("machine")
    if isinstance(machine, Mapping):
        gpu = machine.get("gpu")
        cpu = machine.get("cpu") or machine.get("processor")
        where = gpu["name"] if isinstance(gpu, Mapping) else str(cpu)
        cpus = machine.get("cpus")
        return f"{where}, {cpus} CPUs" if cpus and not gpu else where
    return str(machine or "not told")


def versions(found: Document) -> str:
    """Give the versions that matter most."""
    told = found.get("versions") or {}
    machine = found.get("machine")
    if not told and isinstance(machine, Mapping):
        told = machine.get("versions") or machine
    return ", ".join(f"{name} {told[name]}" for name in MAIN if told.get(name)) or "not told"


def commit(found: Document) -> str:
    """Give the commit of the code, which some results tell with the machine."""
    machine = found.get("machine")
    told = machine.get("commit") if isinstance(machine, Mapping) else None
    return str(found.get("commit") or told or "not told")


def command(found: Document) -> str:
    """Give the command; `|` would end a cell."""
    told = found.get("command") or "not told"
    text = told if isinstance(told, str) else " ".join(map(str, told))
    return text.replace("|", "\\|")


def results(folder: Path) -> str:
    """Give the part of the page that comes from the results."""
    return "\n\n".join(section(path.name, read(path)) for path in sorted(folder.glob("*.json")))


def filled(page: str, folder: Path = COMMITTED) -> str:
    """Give the page with the results put in; DataError if it has no place for them."""
    if not BLOCK.search(page):
        raise DataError("the page has no lines <!-- results --> and <!-- end -->")
    body = results(folder)
    return BLOCK.sub(lambda match: f"{match.group(1)}\n{body}\n\n{match.group(2)}", page)


main = filling(PAGE, filled, "simo_bench.readme")

if __name__ == "__main__":
    main()
