"""Ways of re-alignment on the same experts: what each wins back, from which images and labels.

    python -m simo_bench.realignments --recipe nyuv2-vit-tiny --data DATA --split test --json FILE

Every row of benchmarks/recipes/realignments.yaml is built from the recipe's experts, once for every
seed of its steps, and measured on the split that is asked for. An interval is of the mean over the
seeds: images are drawn again, the seeds are not. Stages are kept, so that a killed study goes on
where it was; `--only` lets several processes share the rows, and `--keep` adds rows to a report.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError, model_validator

from simo_bench.kept import Earlier
from simo_build.build import realign
from simo_build.cli import (
    STAGES,
    data_option,
    experts_option,
    finish,
    json_option,
    polite,
    recipe_option,
    split_option,
)
from simo_build.costs import counted, of_expert, together
from simo_build.gauge import Gauge, Model
from simo_build.intervals import Bootstrap, Measured
from simo_build.loading import LoadedRecipe, load_recipe
from simo_build.merging import check_recipe, merge
from simo_build.origin import commit
from simo_build.parts import Part, Positive
from simo_build.progress import Bars, Progress
from simo_build.recipe import MergePart, TrainPart
from simo_build.report import described
from simo_build.rows import base_realigned, base_result, changed, jointly, realigned
from simo_build.stages import Stages
from simo_build.steps import Step
from simo_build.workshop import Workshop
from simo_runtime.errors import RecipeError, unknown

SCHEMA = "simo.realignments/1"
ROWS_FILE = Path(__file__).resolve().parents[1] / "recipes" / "realignments.yaml"
Row = dict[str, Any]


class Entry(Part):
    """A row: what is merged, how it is re-aligned, with how many seeds.

    `start: base` re-aligns the base itself. `joint` is one encoder that was trained together with
    all heads on the labels of a split, which nothing is merged for; `epochs` is then how long, if
    not as long as the recipe says.
    """

    name: str
    start: Literal["merged", "base"] = "merged"
    joint: Literal["train", "realign"] | None = None
    epochs: Positive | None = None
    merge: MergePart | None = None  # by default the recipe's
    realign: tuple[Step, ...] = ()
    seeds: Positive = 1
    against: tuple[str, ...] = ()  # rows that it is compared with

    @model_validator(mode="after")
    def _joint_is_alone(self) -> "Entry":
        others = self.model_fields_set & {"start", "merge", "realign"}
        if self.joint is not None and others:
            raise ValueError(f"{min(others)} has no meaning beside joint")
        if self.joint is None and self.epochs is not None:
            raise ValueError("epochs is how long joint training takes; a step has its own")
        return self

    def asked(self) -> dict[str, Any]:
        """Say what is built, for the report."""
        return {
            "merge": self.merge and self.merge.model_dump(mode="json", exclude_unset=True),
            "start": self.start,
            "joint": self.joint,
            "epochs": self.epochs,
            "realign": [step.model_dump(mode="json", exclude_unset=True) for step in self.realign],
        }


def read_entries(path: Path) -> list[Entry]:
    """Read the list of rows; RecipeError says what is wrong with it."""
    try:
        entries = TypeAdapter(list[Entry]).validate_python(yaml.safe_load(path.read_text()))
    except (ValidationError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: {error}") from error
    names = [entry.name for entry in entries]
    for entry in entries:
        if names.count(entry.name) > 1:
            raise RecipeError(f"{path}: {entry.name!r} stands twice")
        for other in entry.against:
            if other not in names:
                raise unknown(f"{path}: against", other, names)
    return entries


def chosen(entries: Sequence[Entry], only: Sequence[str], path: Path) -> list[Entry]:
    """Give the rows that are asked for, all if none is."""
    names = [entry.name for entry in entries]
    for name in only:
        if name not in names:
            raise unknown(f"row of {path}", name, names)
    return [entry for entry in entries if not only or entry.name in only]


def limited(entries: Sequence[Entry], seeds: int | None) -> list[Entry]:
    """Give the rows with no more than so many seeds each."""
    most = seeds or max((entry.seeds for entry in entries), default=1)
    return [entry.model_copy(update={"seeds": min(entry.seeds, most)}) for entry in entries]


def model_of(work: Workshop, entry: Entry, seed: int) -> Model:
    """Merge and re-align as a row says; the seed is that of all its steps."""
    if entry.joint is not None:
        with changed(work, train=trained(work.recipe.train, entry.epochs, seed)):
            return jointly(entry.joint)(work)
    steps = tuple(step.model_copy(update={"seed": seed}) for step in entry.realign)
    parts: dict[str, Any] = {"realign": steps}
    if entry.merge is not None:
        parts["merge"] = entry.merge
    with changed(work, **parts):
        check_recipe(work.loaded)
        if entry.start == "base":
            return realigned(work, "base", base_result(work), base_realigned(work))
        merged = merge(work)
        return realigned(work, "merged", merged, realign(work, merged))


def trained(train: TrainPart, epochs: int | None, seed: int) -> TrainPart:
    """Give the settings of a joint training: the recipe's own for the first seed and no epochs."""
    joint = train.joint.model_copy(update={"epochs": epochs} if epochs else {})
    return train.model_copy(update={"seed": train.seed + seed, "joint": joint})


def params_of(work: Workshop, entry: Entry) -> dict[str, Any] | None:
    """Give the parameters that a row's encoders are merged with, chosen on select or given."""
    if entry.joint is not None or entry.start == "base":
        return None
    with changed(work, **({"merge": entry.merge} if entry.merge else {})):
        params: dict[str, Any] = merge(work).log["params"]
        return params


@dataclass
class Table:
    """The rows of a study on one split, and what every seed of each came to."""

    work: Workshop
    split: str
    found: dict[str, list[Measured]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        samples = self.work.samples[self.split] if self.split == "select" else None
        self.gauge = Gauge(self.work, samples or self.work.split(self.split))
        self.bootstrap = Bootstrap(images=len(self.gauge.samples))

    def add(self, entry: Entry) -> None:
        """Build and measure a row with all its seeds."""
        models = [model_of(self.work, entry, seed) for seed in range(entry.seeds)]
        measured = [self.gauge.model(model) for model in models]
        self.found[entry.name] = measured
        self.rows.append(
            {
                "row": entry.name,
                "commit": commit(),
                **entry.asked(),
                "params": params_of(self.work, entry),
                "parameters": models[0].parameters(),
                **summary(measured, self.gauge.experts, self.bootstrap),
                **together(models[0].costs),
            }
        )
        drop = self.rows[-1]["normalised_performance"] - 1
        self.work.stages.progress.say(f"{entry.name}: {drop:+.2%}")

    def comparisons(self, entries: Sequence[Entry]) -> Iterator[Row]:
        """Compare rows with those that they name, if both are there."""
        for entry in entries:
            for other in entry.against:
                if entry.name in self.found and other in self.found:
                    pair = self.found[entry.name], self.found[other]
                    found = gap(*pair, self.gauge.experts, self.bootstrap)
                    yield {"row": entry.name, "against": other, **found}


def performance(
    measured: Sequence[Measured], experts: Measured, counts: Any = None
) -> dict[str, Any]:
    """Give equations 1 and 2 and every task's performance, the mean over seeds."""
    every = [one.compared(experts, counts) for one in measured]
    return {name: np.mean([one[name] for one in every], axis=0) for name in every[0]}


def summary(
    measured: Sequence[Measured], experts: Measured, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Describe a row: means over its seeds with intervals, and every seed's own numbers."""
    whole = performance(measured, experts)
    drawn = performance(measured, experts, bootstrap.counts_Rn)
    metrics = [one.metrics() for one in measured]
    seeds = [float(one.compared(experts)["normalised_performance"]) for one in measured]
    return {
        "metrics": {task: float(np.mean([one[task] for one in metrics])) for task in metrics[0]},
        "normalised_performance": float(whole["normalised_performance"]),
        "relative_drop": float(whole["relative_drop"]),
        "performance": {task: float(whole[f"performance.{task}"]) for task in metrics[0]},
        "interval": {
            name: bootstrap.interval(drawn[name])
            for name in ("normalised_performance", "relative_drop")
        },
        "seeds": [
            {"normalised_performance": score, "metrics": one}
            for score, one in zip(seeds, metrics, strict=True)
        ],
    }


def gap(
    one: Sequence[Measured], other: Sequence[Measured], experts: Measured, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Give by how much the first is better by equation 1, means over seeds, on the same images."""
    name, counts = "normalised_performance", bootstrap.counts_Rn
    whole = performance(one, experts)[name] - performance(other, experts)[name]
    drawn = performance(one, experts, counts)[name] - performance(other, experts, counts)[name]
    return {name: float(whole), "interval": bootstrap.interval(drawn)}


def run(
    loaded: LoadedRecipe,
    every: Sequence[Entry],
    entries: Sequence[Entry],
    split: str,
    out: Path,
    *,
    progress: Progress,
    earlier: Sequence[Earlier] = (),
) -> dict[str, Any]:
    """Run the study; give the whole document, with the other rows of earlier ones."""
    work = Workshop(loaded, Stages(out, progress))
    about = {**described(work, SCHEMA, "python -m simo_bench.realignments"), "split": split}
    asked = {entry.name: entry.asked() for entry in every}
    for one in earlier:
        one.check(about, asked, [entry.name for entry in entries])
    table = Table(work, split)
    for entry in entries:
        table.add(entry)
    found = {
        **about,
        "images": len(table.gauge.samples),
        "bootstrap": table.bootstrap.about(),
        "experts": table.gauge.experts.metrics(),
        "experts_took": together(map(of_expert, work.experts.values())),
        "rows": table.rows,
        "comparisons": list(table.comparisons(every)),
    }
    for one in earlier:
        found = one.joined(found, list(asked))
    return found


def table_of(found: Mapping[str, Any]) -> str:
    """Lay the rows out as a table in Markdown."""
    lines = [
        "| | images | labels | steps | eq. 1 - 100 % | 95 % | seeds |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        ends = row["interval"]["normalised_performance"]
        between = " to ".join(f"{end - 1:+.1%}" for end in ends) if ends else "-"
        cells = [
            row["row"],
            counted(row["images"]),
            counted(row["labels"]),
            f"{row['steps'] or 0}",
            f"{row['normalised_performance'] - 1:+.2%}",
            between,
            f"{len(row['seeds'])}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@recipe_option
@click.option(
    "--rows",
    "rows_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=ROWS_FILE,
    help="The list of rows.  [default: benchmarks/recipes/realignments.yaml]",
)
@click.option("--only", multiple=True, help="A row's name; all others are left out. Repeatable.")
@click.option(
    "--keep",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An earlier report, whose rows that are not built now stay. Repeatable.",
)
@click.option(
    "--seeds", type=click.IntRange(1), help="At most so many seeds of every row, for a shorter run."
)
@split_option
@json_option("the rows, with hashes and versions")
@data_option
@experts_option
@polite
def main(
    recipe: str,
    rows_file: Path,
    only: tuple[str, ...],
    keep: tuple[Path, ...],
    seeds: int | None,
    split: str,
    json_file: Path | None,
    data: Path | None,
    experts: Path,
) -> None:
    """Compare ways of re-alignment on the experts of a recipe."""
    loaded = load_recipe(recipe, data=data, experts=experts)
    every = read_entries(rows_file)
    entries = limited(chosen(every, only, rows_file), seeds)
    earlier = [Earlier.read(path) for path in keep]
    found = run(loaded, every, entries, split, STAGES, progress=Bars(), earlier=earlier)
    finish(found, table_of(found), json_file)


if __name__ == "__main__":
    main()
