"""What another task costs: 1 to 6 tasks on one encoder against one model per task, and the ideal.

    python -m simo_bench.curve --json benchmarks/results/latency-tasks.json --plot PICTURE

Models have real shapes and random weights. Each number of tasks is a benchmark of its own, as
`simo-bench` would do it, with a joint graph of just those tasks. Every finished one lies in the
work folder, so that a run that was stopped goes on where it was.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

from simo_bench import document as documents
from simo_bench.devices import device_for
from simo_bench.latency import Options, bench, signed
from simo_build.build import build
from simo_build.cli import polite
from simo_build.loading import load_recipe
from simo_build.origin import command_of, commit, write_json
from simo_build.progress import Silent
from simo_runtime import backends
from simo_runtime.cpus import available_cpus
from simo_runtime.errors import BackendError, unknown

SCHEMA = "simo.curve/1"
PROGRAM = "python -m simo_bench.curve"
KINDS: dict[str, dict[str, Any]] = {
    "seg": {"kind": "segmentation", "labels": [f"class {number}" for number in range(13)]},
    "depth": {"kind": "depth"},
    "normals": {"kind": "normals"},
    "edges": {"kind": "edges"},
    "keypoints": {"kind": "keypoints"},
    "objects": {"kind": "segmentation", "labels": [f"class {number}" for number in range(40)]},
}
HEADS = {"linear": "linear heads", "dpt_small": "small DPT heads", "dpt": "DPT heads"}
ARMS = ("joint", "sequential", "concurrent")

Document = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An encoder of the study."""

    title: str
    model: str
    size: tuple[int, int]
    options: Mapping[str, int] = field(default_factory=dict)
    taps: tuple[int, int, int, int] = (3, 6, 9, 12)


SHAPES = {
    "vit_tiny": Shape(
        title="ViT-Ti/16 at 192 x 256", model="vit_tiny_patch16_224", size=(192, 256)
    ),
    "vit_base": Shape(
        title="ViT-B/14 at 280 x 378", model="vit_base_patch14_dinov2", size=(280, 378)
    ),
    "toy": Shape(  # for trying this out
        title="a toy at 32 x 48",
        model="vit_tiny_patch16_224",
        size=(32, 48),
        options={"embed_dim": 32, "depth": 4, "num_heads": 2},
        taps=(1, 2, 3, 4),
    ),
}


def recipe_of(shape: str, heads: str, tasks: int, work: Path, precision: str = "fp32") -> Path:
    """Write the recipe of a shape with its first tasks, in fp32 and another precision."""
    one, name = SHAPES[shape], f"{shape}-{heads}-{tasks}"
    name += "" if precision == "fp32" else f"-{precision}"
    recipe = {
        "name": name,
        "encoder": {"model": one.model, "taps": list(one.taps), "options": dict(one.options)},
        "base": "random(0)",
        "image": {"size": list(one.size)},
        "tasks": {task: {**KINDS[task], "head": heads} for task in list(KINDS)[:tasks]},
        "export": {"precisions": sorted({"fp32", precision}), "images": 2},
    }
    path = work / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def bundle_of(shape: str, heads: str, tasks: int, work: Path, precision: str = "fp32") -> Path:
    """Build the bundle of a shape with its first tasks; one that is there stays."""
    path = recipe_of(shape, heads, tasks, work, precision)
    return build(load_recipe(str(path)), work / path.stem, progress=Silent()).root


def measure(
    shape: str, heads: str, most: int, options: Options, work: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Benchmark 1 to `most` tasks of one shape with one kind of head."""
    backend = backends.choose(options.backend).name
    root, rows = bundle_of(shape, heads, most, work, options.precision), []
    for count in range(1, most + 1):
        tasks = tuple(KINDS)[:count]
        kept = work / f"{root.name}-of-{count}-{backend}.json"
        found = _kept(kept, options)
        if found is None:
            tell(f"{root.name}: {count} of {most} tasks")
            one = Options(**{**vars(options), "tasks": tasks})
            found = bench(root, one, command=command_of(PROGRAM), tell=lambda line: None)
            write_json(found, kept)
        rows.append(found)
    return {"shape": shape, "title": SHAPES[shape].title, "heads": heads, "documents": rows}


def _kept(path: Path, options: Options) -> dict[str, Any] | None:
    """Give a document of an earlier run, if the same code measured the same."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        documents.check(found)
    except (OSError, ValueError, KeyError, BackendError):
        return None
    wanted = {key: getattr(options, key) for key in ("rounds", "processes", "longest", "precision")}
    wanted["backend"] = backends.choose(options.backend).name
    wanted["threads"] = options.threads or available_cpus()
    wanted["batches"] = list(options.batches)
    same = all(found["settings"][key] == value for key, value in wanted.items())
    if options.device is not None:
        same = same and found["limits"]["device"]["name"] == options.device.name
    return found if same and found["commit"] == commit() else None


def rows_of(curve: Document) -> list[dict[str, Any]]:
    """Give what is drawn and told of a curve: medians, ratio, ideal and share by tasks."""
    rows = []
    for one in curve["documents"]:
        found, ideal = one["found"], one["limits"]["ideal"]["roofline"]
        ratios = {(r["above"], r["below"]): r for r in found["ratios"]}
        rows.append(
            {
                "tasks": len(one["bundle"]["tasks"]),
                "ms": {name: arm["ms"]["p50"] for name, arm in found["arms"].items() if arm["ms"]},
                "ideal": ideal,
                "operations": one["limits"]["ideal"]["operations"],
                "ratio": ratios.get(("sequential", "joint")),
                "concurrent": ratios.get(("concurrent", "joint")),
            }
        )
    return rows


def table(found: Document) -> str:
    """Lay the curves out in Markdown."""
    lines = ["| model | tasks | one graph, ms | one model per task, ms | times as fast (95 %) "]
    lines[0] += "| ideal | reached | against concurrent |"
    lines.append("| --- | ---: " + "| ---: " * 6 + "|")
    for curve in found["curves"]:
        for row in rows_of(curve):
            name = f"{curve['title']}, {HEADS[curve['heads']]}"
            lines.append(f"| {name} | {row['tasks']} | {_cells(row)} |")
    return "\n".join(lines)


def _cells(row: Document) -> str:
    ratio, other = row["ratio"], row["concurrent"]
    if ratio is None:
        return "no latency | | | | | "
    unsure = " UNSTABLE" if ratio["unstable"] else ""
    ends = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
    cells = [f"{row['ms'][name]:.1f}" for name in ("joint", "sequential")]
    cells += [f"{ratio['median']:.2f} ({ends}){unsure}", f"{row['ideal']:.2f}"]
    cells += [f"{ratio['median'] / row['ideal']:.0%}", f"{other['median']:.2f}" if other else "-"]
    return " | ".join(cells)


def study(
    shapes: Sequence[str], heads: Sequence[str], most: int, options: Options, work: Path
) -> dict[str, Any]:
    """Measure every curve and give the document."""
    for name, known in [*((s, SHAPES) for s in shapes), *((h, HEADS) for h in heads)]:
        if name not in known:  # type: ignore[operator]  # both are dictionaries by name
            raise unknown("shape or head", name, [*SHAPES, *HEADS])
    curves = [
        measure(shape, head, most, options, work, lambda line: click.echo(line, err=True))
        for shape in shapes
        for head in heads
    ]
    first = curves[0]["documents"][0]
    return {
        "schema": SCHEMA,
        **signed(command_of(PROGRAM), options.who),
        "machine": first["machine"],
        "curves": curves,
    }


@click.command()
@click.option("--shapes", default="vit_tiny,vit_base", show_default=True)
@click.option("--heads", default="linear,dpt_small", show_default=True)
@click.option("--tasks", "most", type=click.IntRange(1, len(KINDS)), default=6, show_default=True)
@click.option("--rounds", type=click.IntRange(min=2), default=10, show_default=True)
@click.option("--processes", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--longest", type=click.FloatRange(min=0), default=120.0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1))
@click.option("--backend")
@click.option("--precision", default="fp32", show_default=True)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    help="Also time batches of this size. Repeatable.",
)
@click.option("--device", help="Of the ideal: here (measured), a name, or a JSON of one.")
@click.option("--who", default="the project", show_default=True)
@click.option(
    "--work", type=click.Path(file_okay=False, path_type=Path), default=Path("bench-work")
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path))
@polite
def main(
    shapes: str, heads: str, most: int, work: Path, json_file: Path | None, plot: Path | None,
    **chosen: Any,
) -> None:  # fmt: skip
    """Time 1 to 6 tasks on one encoder against one model per task."""
    named, threads = chosen.pop("device"), chosen["threads"] or available_cpus()
    backends.choose(chosen["backend"])  # before anything is measured or built for it
    options = Options(
        **chosen,
        device=device_for(named, chosen["backend"], threads=threads),  # once for all curves
        arms=ARMS,
        seconds=0.0,
        warm_up=2,
        extras=False,
        memory=False,
    )
    found = study(shapes.split(","), heads.split(","), most, options, work)
    click.echo(table(found))
    if json_file is not None:
        write_json(found, json_file)
    if plot is not None:
        draw(found, plot)


def draw(found: Document, path: Path) -> None:
    """Draw the curves into a picture."""
    from simo_bench.drawing import curves_figure
    from simo_build.plots import save

    panels = [
        (f"{curve['title']}, {HEADS[curve['heads']]}", rows_of(curve)) for curve in found["curves"]
    ]
    save(curves_figure(panels), path)


if __name__ == "__main__":
    main()
