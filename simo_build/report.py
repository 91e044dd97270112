"""simo-eval: the metrics after every stage of a recipe, on one split, with where they come from."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simo_build.build import build, realign
from simo_build.costs import Cost, counted, of_expert, of_merge, of_realign, together
from simo_build.evaluate import percent, shown, titled
from simo_build.gauge import Gauge, Model, graph_weights, weights_in, weights_of
from simo_build.intervals import Bootstrap, Measured, against, difference
from simo_build.loading import LoadedRecipe, check_truths
from simo_build.merging import check_recipe, merge
from simo_build.origin import command_of, origin
from simo_build.origin import write_json as write_json
from simo_build.progress import Progress
from simo_build.rows import controls, stage_rows
from simo_build.stages import Result, Stages
from simo_build.workshop import Workshop
from simo_runtime.bundle import Bundle
from simo_runtime.errors import BundleError, RecipeError, unknown
from simo_runtime.tasks import TaskSpec

SCHEMA = "simo.eval/2"
EXPERTS = "experts, one model per task"
BUNDLE = "the bundle, in ONNX Runtime"
Row = dict[str, Any]


def study(
    loaded: LoadedRecipe, out: Path, split: str, *, progress: Progress, with_controls: bool = False
) -> dict[str, Any]:
    """Measure experts, merged, re-aligned and the bundle itself on one split; controls if asked."""
    check_measurable(loaded)
    check_recipe(loaded)
    bundle = build(loaded, out, progress=progress)
    work = Workshop(loaded, Stages(out.parent / ".stages", progress))
    merged = merge(work)
    aligned = realign(work, merged)
    sheet = Sheet(work, split)
    sheet.experts()
    sheet.models(*stage_rows(work, merged, aligned))
    main = len(sheet.rows) - 1  # the model that the recipe asks for
    seconds = work.stages.noted("export", bundle.manifest.provenance["key"])
    exported = Cost(stage="export", seconds=seconds)
    sheet.bundle(BUNDLE, bundle, (*built(merged, aligned), exported))
    if with_controls:
        for model in controls(work):
            sheet.models(model)
    provenance = bundle.manifest.provenance
    return {
        **sheet.document(),
        "merge": provenance["merge"].get("params", {}),
        **used(provenance),
        "comparisons": sheet.comparisons(main),
        "gate": provenance["gate"],
    }


def described(work: Workshop, schema: str, program: str) -> dict[str, Any]:
    """Say what a report is and where it comes from: command, commit, versions, machine, hashes."""
    return {
        "schema": schema,
        "recipe": work.recipe.name,
        **origin(command_of(program)),
        "inputs": work.inputs(),
        "metrics": {task: spec.metric for task, spec in work.recipe.specs().items()},
    }


def study_bundles(
    loaded: LoadedRecipe,
    folders: Sequence[Path],
    split: str,
    *,
    stages: Path,
    progress: Progress,
    precisions: Sequence[str] = ("fp32",),
) -> dict[str, Any]:
    """Measure finished bundles through the runtime, on the data and against a recipe's experts.

    They may come from any recipe; BundleError says which task of one does not fit. Each is measured
    in every precision that is asked for. The first is compared with all others.
    """
    check_measurable(loaded)
    bundles = [Bundle.open(folder) for folder in folders]
    for bundle, precision in itertools.product(bundles, precisions):
        bundle.manifest.graph_files(precision)  # refuses one that is not there, before all work
    loaded = with_tasks_of(loaded, bundles)
    sheet = Sheet(Workshop(loaded, Stages(stages, progress)), split)
    sheet.experts()
    for bundle, name in zip(bundles, names_of(bundles), strict=True):
        costs = built_from(bundle.manifest.provenance)
        for precision in dict.fromkeys(precisions):
            sheet.bundle(name, bundle, costs, precision)
    return {
        **sheet.document(),
        "bundles": {
            name: {key: bundle.manifest.provenance.get(key) for key in ("key", "inputs", "gate")}
            for bundle, name in zip(bundles, names_of(bundles), strict=True)
        },
        "comparisons": sheet.comparisons(1),
    }


def with_tasks_of(loaded: LoadedRecipe, bundles: Sequence[Bundle]) -> LoadedRecipe:
    """Give the recipe with the bundles' tasks alone; BundleError if they are not the recipe's."""
    specs = loaded.recipe.specs()
    names = [task.name for task in bundles[0].manifest.tasks]
    for bundle in bundles:
        where = f"{bundle.root} and {loaded.shown}"
        if bundle.manifest.random_weights:
            raise BundleError(f"{bundle.root}: is for measuring speed; it has no accuracy")
        for task in bundle.manifest.tasks:
            if task.name not in specs:
                raise BundleError(f"{where}: {unknown('task', task.name, specs)}")
            check_task(where, task, specs[task.name])
        found = [task.name for task in bundle.manifest.tasks]
        if sorted(found) != sorted(names):
            raise BundleError(
                f"{bundle.root} has {', '.join(found)}, {bundles[0].root} has {', '.join(names)}; "
                "only bundles of the same tasks can be compared"
            )
    tasks = {name: part for name, part in loaded.recipe.tasks.items() if name in names}
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"tasks": tasks}))


def check_task(where: str, found: TaskSpec, wanted: TaskSpec) -> None:
    """Refuse a bundle's task that means something else than the recipe's."""
    if found.kind != wanted.kind:
        raise BundleError(
            f"{where}: {found.name} is {found.kind} in the bundle, {wanted.kind} in the recipe"
        )
    if found.labels != wanted.labels:
        raise BundleError(
            f"{where}: {found.name} has other classes in the bundle than in the recipe: "
            f"{', '.join(found.labels)} there, {', '.join(wanted.labels)} here"
        )


def names_of(bundles: Sequence[Bundle]) -> list[str]:
    """Name bundles by their recipes, or by their folders where a recipe's name stands twice."""
    names = [bundle.manifest.name for bundle in bundles]
    if len(set(names)) < len(names):
        names = [bundle.root.resolve().name for bundle in bundles]
    if len(set(names)) < len(names):
        names = [f"{number}, {name}" for number, name in enumerate(names, start=1)]
    return [f"bundle {name}" for name in names]


def built(merged: Result, aligned: Result) -> tuple[Cost, ...]:
    """Give what the stages of a build took."""
    realigning = of_realign(aligned.log, aligned.seconds)
    return (of_merge(merged.log, merged.seconds), *realigning)


def built_from(provenance: Mapping[str, Any]) -> tuple[Cost, ...]:
    """Give what a bundle says of its making; times are not in it."""
    return (of_merge(provenance.get("merge", {})), *of_realign(provenance.get("realign", {})))


class Sheet:
    """The rows of a study on one split, with what was measured for each."""

    def __init__(self, work: Workshop, split: str) -> None:
        self.work, self.split = work, split
        self.gauge = Gauge(work, work.samples[split] if split == "select" else work.split(split))
        self.bootstrap = Bootstrap(images=len(self.gauge.samples))
        self.rows: list[Row] = []
        self.measured: list[Measured] = []

    def experts(self) -> None:
        """Add the experts' row, with what their training took."""
        experts = self.work.experts.values()
        encoders = sum(weights_in(expert.encoder) for expert in experts)
        heads = {"heads": weights_of(self.work.expert_heads())}
        costs = [of_expert(expert) for expert in experts]
        self._add(EXPERTS, self.gauge.experts, {"encoder": encoders, **heads}, costs)

    def models(self, *models: Model) -> None:
        """Add the rows of models."""
        for model in models:
            measured = self.gauge.model(model)
            self._add(model.name, measured, model.parameters(), model.costs)

    def bundle(
        self, name: str, bundle: Bundle, costs: Sequence[Cost], precision: str = "fp32"
    ) -> None:
        """Add the row of a bundle in one precision."""
        name = name if precision == "fp32" else f"{name}, {precision}"
        self._add(name, self.gauge.bundle(bundle, precision), graph_weights(bundle), costs)

    def _add(
        self, name: str, measured: Measured, parameters: dict[str, int], costs: Sequence[Cost]
    ) -> None:
        self.measured.append(measured)
        row: Row = {"row": name, "metrics": measured.metrics(), "parameters": parameters}
        row |= against(measured, self.gauge.experts, self.bootstrap)
        self.rows.append({**row, **together(costs)})

    def comparisons(self, main: int) -> list[Row]:
        """Compare one row with every other but the experts', which all are compared with anyway."""
        return [
            {
                "row": self.rows[main]["row"],
                "against": self.rows[other]["row"],
                **difference(
                    self.measured[main], self.measured[other], self.gauge.experts, self.bootstrap
                ),
            }
            for other in range(1, len(self.rows))
            if other != main
        ]

    def document(self) -> dict[str, Any]:
        """Give what every study says, with the rows."""
        return {
            **described(self.work, SCHEMA, Path(sys.argv[0]).name),
            "split": self.split,
            "images": len(self.gauge.samples),
            "bootstrap": self.bootstrap.about(),
            "rows": self.rows,
        }


def used(provenance: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Say how many images and labels of each split the build has learnt or chosen from."""
    found = together(built_from(provenance))
    splits = ("realign", "select")
    return {
        f"{what}_used": {split: found[what].get(split, 0) for split in splits}
        for what in ("images", "labels")
    }


def check_measurable(loaded: LoadedRecipe) -> None:
    """Refuse a recipe that has no accuracy to measure, or no data or truth to measure it by."""
    if loaded.recipe.random_seed is not None:
        raise RecipeError(
            f"{loaded.shown}: base {loaded.recipe.base} is for measuring speed; it has no accuracy"
        )
    if loaded.recipe.data is None:
        raise RecipeError(f"{loaded.shown}: measuring needs `data`")
    check_truths(loaded, "measuring")


def table(found: Mapping[str, Any]) -> str:
    """Lay the rows out for people: what they came to, what they took, and how sure it is."""
    title = f"{found['recipe']}: {found['images']} images of the {found['split']} split"
    level = f"{found['bootstrap']['level']:.0%}"
    note = (
        "In brackets: of a metric the performance against the expert; of an equation its "
        f"{level} interval, by a paired bootstrap over images."
    )
    parts = [title, note, columns(_accuracy(found)), columns(_took(found["rows"]))]
    if found["comparisons"]:
        name = found["comparisons"][0]["row"]
        parts += [f"{name}, better by (points; + is better):", columns(_compared(found))]
    return "\n\n".join(parts)


def _accuracy(found: Mapping[str, Any]) -> list[list[str]]:
    kinds = found["metrics"]
    heads = [f"{task}, {titled(kind)}" for task, kind in kinds.items()]
    lines = [["", *heads, "eq. 1 - 100 %", "eq. 2"]]
    for row in found["rows"]:
        values = [
            f"{shown(row['metrics'][task], kind)} ({percent(row['performance'][task])})"
            for task, kind in kinds.items()
        ]
        ends = row["interval"]
        one = ends["normalised_performance"]
        lines.append(
            [
                row["row"],
                *values,
                f"{100 * (row['normalised_performance'] - 1):+.2f}{between(one, less=1.0)} %",
                f"{100 * row['relative_drop']:+.2f}{between(ends['relative_drop'])} %",
            ]
        )
    return lines


def _took(rows: Sequence[Row]) -> list[list[str]]:
    lines = [["", "encoder", "heads", "images", "labels", "steps", "seconds"]]
    for row in rows:
        parameters = [f"{row['parameters'][part]:,}" for part in ("encoder", "heads")]
        used_here = [counted(row[what]) for what in ("images", "labels")]
        steps = "unknown" if row["steps"] is None else str(row["steps"])
        times = [f"{stage} {seconds:.1f}" for stage, seconds in row["seconds"].items()]
        lines.append([row["row"], *parameters, *used_here, steps, ", ".join(times) or "-"])
    return lines


def _compared(found: Mapping[str, Any]) -> list[list[str]]:
    lines = [["than", "eq. 1", "eq. 2"]]
    for one in found["comparisons"]:
        cells = [
            f"{100 * one[name]:+.2f}{between(one['interval'][name])}"
            for name in ("normalised_performance", "relative_drop")
        ]
        lines.append([one["against"], *cells])
    return lines


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Lay cells out in columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([body[0], "-" * len(body[0]), *body[1:]])


def between(ends: Sequence[float] | None, *, less: float = 0.0) -> str:
    """Show an interval in points; nothing if there is none."""
    if ends is None:
        return ""
    low, high = (100 * (end - less) for end in ends)
    return f" [{low:+.2f}, {high:+.2f}]"
