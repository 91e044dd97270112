"""Every merging method on the same experts: alone, and after head re-alignment.

    python -m simo_bench.study --recipe nyuv2-vit-tiny --data DATA --json FILE

Every candidate of benchmarks/recipes/methods.yaml is merged, measured on the select split, and
scored by every proxy; `simo_bench.ranking` says how well these choose. Each method's best candidate
by equation 1 is re-aligned, and measured on the split that is asked for. Stages are kept, so that a
killed study goes on where it was.

Methods that learn their coefficients are in benchmarks/recipes/methods-learned.yaml, for --methods.
Several-pass methods (benchmarks/recipes/methods-several.yaml) are measured with the
experts' heads alone, and stand in a table of their own.
"""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import yaml

from simo_bench import references
from simo_build.alignment import Alignment
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
from simo_build.costs import of_expert, together
from simo_build.loading import LoadedRecipe, load_recipe
from simo_build.merging import merge
from simo_build.progress import Bars, Progress
from simo_build.proxies import PROXIES, SIMILARITIES
from simo_build.realign import shared_encoder
from simo_build.recipe import MergePart
from simo_build.report import described
from simo_build.several import SEVERAL
from simo_build.stages import Result, Stages
from simo_build.workshop import Workshop, against, measure, measure_experts, split_heads
from simo_runtime.errors import RecipeError

SCHEMA = "simo.study/1"
METHODS_FILE = Path(__file__).resolve().parents[1] / "recipes" / "methods.yaml"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method, its fixed parameters, its grid, and which candidates are re-aligned."""

    method: str
    name: str = ""
    params: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    realign: str = "chosen"

    def candidates(self) -> Iterator[dict[str, Any]]:
        """Give every combination of the grid with the fixed parameters."""
        for values in itertools.product(*self.grid.values()):
            yield {**self.params, **dict(zip(self.grid, values, strict=True))}


def read_entries(path: Path) -> list[Entry]:
    """Read the list of methods."""
    entries = []
    for one in yaml.safe_load(path.read_text(encoding="utf-8")):
        fields = {"params": {}, "grid": {}, **one}
        if unknown := set(fields) - set(Entry.__dataclass_fields__):
            raise RecipeError(f"{path}: unknown keys {', '.join(sorted(unknown))}")
        if fields.get("realign", "chosen") not in ("chosen", "all"):
            raise RecipeError(f"{path}: realign is {fields['realign']!r}; it is `chosen` or `all`")
        if fields["method"] in SEVERAL and "realign" in fields:
            raise RecipeError(
                f"{path}: {fields['method']}: heads of a reference are not re-aligned"
            )
        entries.append(Entry(**fields))
    return entries


@dataclass
class Study:
    """The experts that all methods share, and how a candidate is merged and measured."""

    work: Workshop
    split: str

    def __post_init__(self) -> None:
        self.recipe = self.work.recipe
        available = len(self.work.samples["realign"])
        self.unlabelled = self.work.unlabelled(min(self.recipe.merge.images, available))
        self.samples = {"select": self.work.samples["select"]}
        if self.split not in self.samples:
            self.samples[self.split] = self.work.split(self.split)
        self.experts = {name: measure_experts(self.work, s) for name, s in self.samples.items()}

    def merged(self, method: str, params: Mapping[str, Any]) -> Result:
        """Merge one candidate, through the stages of a build."""
        images = self.recipe.merge.images
        part = MergePart(method=method, params=dict(params), images=images)
        recipe = self.recipe.model_copy(update={"merge": part})
        self.work.loaded = replace(self.work.loaded, recipe=recipe)
        return merge(self.work)

    @cached_property
    def alignment(self) -> Alignment:
        """The experts' features on unlabelled images."""
        return Alignment(self.work, self.unlabelled)

    def scored(self, merged: Result) -> Row:
        """Score a candidate by every proxy: `proxies`, their `similarities` and `seconds`."""

        def make() -> tuple[dict[str, Any], dict[str, Any]]:
            alignment = self.alignment  # computed before the clock runs
            began = time.perf_counter()
            features = alignment.features(merged.tensors)
            encoding, found, seconds = time.perf_counter() - began, {}, {}
            for name in SIMILARITIES:
                began = time.perf_counter()
                found[name] = alignment.similarity(name, features)
                seconds[name] = round(encoding + time.perf_counter() - began, 4)
            times = {name: seconds[proxy.similarity] for name, proxy in PROXIES.items()}
            scores = alignment.scores(found)
            return {}, {"proxies": scores, "similarities": found, "seconds": times}

        inputs = {**self.work.inputs(), "merged": merged.key, "images": len(self.unlabelled)}
        return dict(self.work.stages.run("proxies", inputs, make).log)

    def measured(self, merged: Result, aligned: Result | None, split: str) -> Result:
        """Measure a candidate on a split, with the experts' heads or with re-aligned ones."""
        inputs = {"merged": merged.key, "aligned": aligned and aligned.key, "split": split}

        def make() -> tuple[dict[str, Any], dict[str, Any]]:
            heads = split_heads(self.work, aligned.tensors) if aligned else None
            found = measure(
                self.work,
                shared_encoder(merged.tensors, aligned.tensors) if aligned else merged.tensors,
                heads or self.work.expert_heads(),
                self.samples[split],
            )
            return {}, {"metrics": found, **against(self.work, found, self.experts[split])}

        return self.work.stages.run("measure", {**self.work.inputs(), **inputs}, make)

    def candidate(self, entry: Entry, params: Mapping[str, Any]) -> Row:
        """Merge one candidate, measure it on the select split, and score it by every proxy."""
        merged = self.merged(entry.method, params)
        measured, scored = self.measured(merged, None, "select"), self.scored(merged)
        row: Row = {
            "name": entry.name or entry.method,
            "method": entry.method,
            "params": dict(params),
            "merged": measured.log,
            "realigned": None,
            "proxies": scored["proxies"],
            "similarities": scored["similarities"],
            "learned": learned(merged),
            "seconds": {
                "merge": merged.seconds,
                "select": measured.seconds,
                "proxies": scored["seconds"],
            },
        }
        if entry.realign == "all":
            self.align(row)
        self.work.stages.progress.say(
            f"{row['name']} {dict(params)}: {row['merged']['normalised_performance'] - 1:+.2%}"
        )
        return row

    def align(self, row: Row) -> tuple[Result, Result]:
        """Re-align the heads to a candidate and measure it on the select split."""
        merged = self.merged(row["method"], row["params"])
        aligned = realign(self.work, merged)
        row["seconds"]["realign"] = aligned.seconds
        row["realigned"] = self.measured(merged, aligned, "select").log
        return merged, aligned

    def method(self, entry: Entry) -> tuple[list[Row], Row]:
        """Compare an entry's candidates; give them, and the best one on the study's split."""
        rows = [self.candidate(entry, params) for params in entry.candidates()]
        best = max(rows, key=lambda row: row["merged"]["normalised_performance"])
        merged, aligned = self.align(best)
        chosen = {key: best[key] for key in ("name", "method", "params", "learned")} | {
            "merged": self.measured(merged, None, self.split).log,
            "realigned": self.measured(merged, aligned, self.split).log,
            "seconds": best["seconds"],
        }
        return rows, chosen

    def reference(self, entry: Entry) -> tuple[list[Row], Row]:
        """Compare the candidates of a several-pass method, as `method` does for one encoder."""

        def measured(params: Mapping[str, Any], split: str) -> Row:
            row = references.reference(
                self.work,
                entry.method,
                params,
                split=split,
                samples=self.samples[split],
                experts=self.experts[split],
            )
            drop = row["merged"]["normalised_performance"] - 1
            self.work.stages.progress.say(f"{entry.method} {params}, {split}: {drop:+.2%}")
            return {"name": entry.name or entry.method, **row}

        rows = [measured(params, "select") for params in entry.candidates()]
        best = max(rows, key=lambda row: row["merged"]["normalised_performance"])
        return rows, best if self.split == "select" else measured(best["params"], self.split)


def learned(merged: Result) -> Row | None:
    """Say from how many images and labels coefficients were learnt; None if they were not."""
    told = merged.log.get("learned")
    return told and {key: told[key] for key in ("images", "labels", "epoch", "history")}


def run(
    loaded: LoadedRecipe, entries: Sequence[Entry], split: str, out: Path, *, progress: Progress
) -> dict[str, Any]:
    """Run the study; give the whole document."""
    work = Workshop(loaded, Stages(out, progress))
    for entry in entries:
        if entry.method in SEVERAL:
            references.rehearse(work, entry.method, entry.candidates())
    study = Study(work, split)
    tried: list[Row] = []
    chosen: list[Row] = []
    apart: list[Row] = []
    for entry in entries:
        several = entry.method in SEVERAL
        rows, best = study.reference(entry) if several else study.method(entry)
        tried += rows
        (apart if several else chosen).append(best)
    return {
        **described(work, SCHEMA, "python -m simo_bench.study"),
        "split": split,
        "images": len(study.samples[split]),
        "unlabelled": len(study.unlabelled),
        "experts": study.experts,
        "experts_took": together(map(of_expert, work.experts.values())),
        "chosen": chosen,
        "references": apart,
        "candidates": tried,
    }


def table(found: Mapping[str, Any]) -> str:
    """Lay the chosen candidates out as a table in Markdown, references in one of their own."""
    tables = [_chosen_table(found["chosen"])] if found["chosen"] else []
    if found["references"]:
        tables.append(references.table(found["references"]))
    return "\n\n".join(tables)


def _chosen_table(rows: Sequence[Row]) -> str:
    lines = ["| method | parameters | merged | heads re-aligned |", "| --- | --- | ---: | ---: |"]
    for row in rows:
        params = ", ".join(f"{key} {value}" for key, value in row["params"].items())
        drops = [row[kind]["normalised_performance"] - 1 for kind in ("merged", "realigned")]
        lines.append(f"| `{row['name']}` | {params} | {drops[0]:+.2%} | {drops[1]:+.2%} |")
    return "\n".join(lines)


@click.command()
@recipe_option
@click.option(
    "--methods",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=METHODS_FILE,
    help="The list of methods.  [default: benchmarks/recipes/methods.yaml]",
)
@split_option
@json_option("the tables, with hashes and versions")
@data_option
@experts_option
@polite
def main(
    recipe: str,
    methods: Path,
    split: str,
    json_file: Path | None,
    data: Path | None,
    experts: Path,
) -> None:
    """Compare merging methods on the experts of a recipe."""
    loaded = load_recipe(recipe, data=data, experts=experts)
    found = run(loaded, read_entries(methods), split, STAGES, progress=Bars())
    finish(found, table(found), json_file)


if __name__ == "__main__":
    main()
