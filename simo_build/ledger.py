"""The report beside a bundle: what came out of every stage, what it cost, and what went in.

Everything is of the select split, never of `test`. What stages have logged is not measured again;
only the folded model, the bundle, and a few images for the pictures are run for it.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simo_build.costs import Cost, counted, of_expert, of_merge, of_realign
from simo_build.data import Samples
from simo_build.evaluate import compare, percent, predictions, shown, titled
from simo_build.export import folded_encoder
from simo_build.features import BATCH
from simo_build.gauge import Gauge, graph_weights
from simo_build.heads import Head
from simo_build.losses import TORCH_KINDS, as_measured
from simo_build.page import Cell, Page, Table, columns_of, to_html, to_markdown
from simo_build.pictures import Strip, strip
from simo_build.proxies import SELECT
from simo_build.realign import shared_encoder
from simo_build.stages import Result
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop, measure, measure_experts, split_heads
from simo_runtime.bundle import REPORTS, Bundle
from simo_runtime.errors import BackendError
from simo_runtime.metrics import metric_named, performances
from simo_runtime.tasks import TaskSpec

Metrics = Mapping[str, float]
UNKNOWN = "not recorded"
TRIED = 40  # candidates in a report; the manifest has all
EXPERTS, MERGED, ALIGNED = "experts", "merged", "re-aligned"
FOLDED, ONNX = "folded", "in ONNX Runtime"
PICTURES_NOTE = (
    "Images of the select split, spread evenly over it, as the network sees them. Depth and other "
    "values are drawn over one range"
)
OF_TRUTH = ", the truth's; black has no truth."


def write_report(work: Workshop, merged: Result, aligned: Result, bundle: Bundle) -> None:
    """Write both reports into a bundle, unless they are there, and say where they are."""
    where = bundle.root / REPORTS[-1]
    if all((bundle.root / name).is_file() for name in REPORTS):
        work.stages.progress.say(f"report: {where} is there already")
        return
    work.stages.progress.say("report ...")
    page = Ledger(work, merged, aligned, bundle).page()
    texts = dict(zip(REPORTS, (to_markdown(page), to_html(page)), strict=True))
    # Not within the bundle: what a killed build leaves there would make the bundle refuse to open.
    partial = bundle.root.with_name(f".{bundle.root.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
            (partial / name).replace(bundle.root / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    work.stages.progress.say(f"report: {where}")


@dataclass(frozen=True)
class Ledger:
    """A finished build, and the page that tells of it."""

    work: Workshop
    merged: Result
    aligned: Result
    bundle: Bundle

    @property
    def measurable(self) -> bool:
        """Whether it predicts anything, and there are images to show it on."""
        return self.work.recipe.data is not None and self.work.recipe.random_seed is None

    @property
    def specs(self) -> dict[str, TaskSpec]:
        """The recipe's tasks."""
        return self.work.recipe.specs()

    def page(self) -> Page:
        """Measure what is not known yet, and put the report together."""
        began = time.perf_counter()
        stages = self.stages() if self.measurable and not self.work.recipe.blind else {}
        strips = tuple(self.strips()) if self.measurable else ()
        seconds = time.perf_counter() - began
        tables = [
            *(self.after_stages(stages) if stages else []),
            cost_table([*self.costs(), Cost(stage="report", seconds=seconds)]),
            *choice_tables(self.merged.log, self.specs),
            *history_tables(self.aligned.log, self.specs),
            gate_table(self.bundle.manifest.provenance["gate"], self.specs),
            *self.origins(),
        ]
        return Page(
            title=f"{self.work.recipe.name}: how this bundle was made",
            lead=self.lead(),
            figures=tuple(self.figures(stages)),
            tables=tuple(tables),
            strips=strips,
            pictures_note=PICTURES_NOTE + ("." if self.work.recipe.blind else OF_TRUTH),
        )

    def lead(self) -> str:
        """Say in a sentence what the bundle is."""
        recipe, tasks = self.work.recipe, list(self.work.recipe.tasks)
        told = f"{', '.join(tasks)} from one pass of one {recipe.encoder.model} encoder"
        size = f"images of {recipe.image.size[0]} x {recipe.image.size[1]} pixels"
        if recipe.random_seed is not None:
            return f"{told}, {size}. Its weights are random: it serves to measure speed alone."
        return f"{told}, {size}. {len(tasks)} experts were merged by {recipe.merge.method}."

    def figures(self, stages: Mapping[str, Metrics]) -> Iterator[tuple[str, str]]:
        """Give the few numbers that matter most."""
        if stages:
            last = compare(stages[ONNX], stages[EXPERTS], self.specs)["normalised_performance"]
            yield percent(last), "of the experts' performance, mean over the tasks"
        weights = graph_weights(self.bundle)
        yield millions(weights["encoder"]), "weights in the encoder, run once for all tasks"
        yield millions(weights["heads"]), "weights in all heads together"
        size = sum(entry.bytes for entry in self.bundle.manifest.files.values())
        yield f"{size / 1e6:.1f} MB", "in all, weights stored once"

    def stages(self) -> dict[str, Metrics]:
        """Give the metrics on `select` after every stage, from the logs where they have them."""
        work, log, select = self.work, self.merged.log, self.work.samples["select"]
        found: dict[str, Metrics] = {EXPERTS: log.get("experts") or measure_experts(work, select)}
        known = [row for row in log.get("tried", ()) if row["params"] == log["params"]]
        found[MERGED] = (known[0].get("metrics") if known else None) or measure(
            work, self.merged.tensors, work.expert_heads(), select
        )
        if work.recipe.realign:
            found[ALIGNED] = self.aligned.log["metrics"]
        found[FOLDED] = self.folded(select)
        gauge = Gauge(work, select)
        found[ONNX] = gauge.bundle(self.bundle).metrics()
        for precision in self.bundle.manifest.graphs:
            if precision == "fp32":
                continue
            try:
                found[f"{ONNX}, {precision}"] = gauge.bundle(self.bundle, precision).metrics()
            except BackendError as error:  # a CPU has no bf16
                work.stages.progress.say(f"report: without {precision}, not run here: {error}")
        return found

    def after_stages(self, stages: Mapping[str, Metrics]) -> Iterator[Table]:
        """Lay out the metrics after every stage."""
        narrow = (name for name in self.bundle.manifest.graphs if name != "fp32")
        unrun = [name for name in narrow if f"{ONNX}, {name}" not in stages]
        images = len(self.work.samples["select"])
        yield from stage_tables(stages, self.specs, images, unrun=unrun)

    def encoder(self) -> StateDict:
        """Give the weights of the shared encoder at the end."""
        return shared_encoder(self.merged.tensors, self.aligned.tensors)

    @torch.inference_mode()
    def folded(self, samples: Samples) -> Metrics:
        """Measure the folded model in PyTorch, on the CPU, as it goes into the graphs."""
        work = self.work
        work.encoder.load(self.encoder(), source="the shared encoder", adapters=True)
        plain = folded_encoder(work.encoder.cpu().eval(), work.recipe)
        heads = split_heads(work, self.aligned.tensors)
        folded = {task: head.cpu().eval().folded() for task, head in heads.items()}
        every = {t: metric_named(s.metric).start(s.channels) for t, s in self.specs.items()}
        for start in range(0, len(samples), BATCH):
            rows = slice(start, start + BATCH)
            taps = plain(torch.from_numpy(samples.images[rows]))
            for task, head in folded.items():
                finished = TORCH_KINDS[self.specs[task].kind].finish(head(*taps))
                every[task].update(as_measured(finished), samples.truths[task][rows])
        return {task: accumulator.result() for task, accumulator in every.items()}

    def strips(self) -> Iterator[Strip]:
        """Draw the pictures, a strip for every task."""
        few = spread(self.work.samples["select"], self.work.recipe.report.images)
        if not len(few):
            return
        work, experts = self.work, self.work.expert_heads()
        merged = self.said(self.merged.tensors, experts, few)
        models = {MERGED: merged}
        if work.recipe.realign:
            models[ALIGNED] = self.said(
                self.encoder(), split_heads(work, self.aligned.tensors), few
            )
        for task, spec in self.specs.items():
            own = self.said(work.experts[task].encoder, {task: experts[task]}, few)
            predicted = {"expert": own[task], **{name: one[task] for name, one in models.items()}}
            yield strip(spec, few, predicted)

    def said(
        self, encoder: StateDict, heads: Mapping[str, Head], samples: Samples
    ) -> dict[str, NDArray[Any]]:
        """Give what a model predicts for some images, by task, (n, ...)."""
        taps = self.work.features(encoder, samples, "pictures")
        return {
            task: np.concatenate([one for _, one in predictions(head, self.specs[task], taps)])
            for task, head in heads.items()
        }

    def costs(self) -> Iterator[Cost]:
        """Give what every stage took, in their order."""
        if self.work.recipe.random_seed is None:
            yield from (of_expert(expert) for expert in self.work.experts.values())
            yield of_merge(self.merged.log, self.merged.seconds)
            yield from of_realign(self.aligned.log, self.aligned.seconds)
        key = self.bundle.manifest.provenance["key"]
        yield Cost(stage="fold, export, check", seconds=self.work.stages.noted("export", key))

    def origins(self) -> Iterator[Table]:
        """Say what went in: hashes of base, experts and data; and the versions."""
        provenance = self.bundle.manifest.provenance
        inputs = provenance["inputs"]
        rows = [("base", inputs["base"])]
        hashes = inputs.get("experts", {})
        rows += [(f"expert {task}", hashes[task]) for task in self.specs if task in hashes]
        rows += [("data", inputs["data"])] if inputs.get("data") else []
        rows += [("bundle", provenance["key"])]
        yield Table(
            title="What went in",
            note="SHA-256 of the weights, of what the data's files are, and of all that shaped the "
            "bundle: the same hashes mean the same bundle, byte for byte.",
            head=("", "hash"),
            rows=columns_of(rows),
            words=True,
        )
        yield Table(
            title="Versions",
            head=("", "version"),
            rows=columns_of([(name, str(one)) for name, one in provenance["versions"].items()]),
            words=True,
        )


def spread(samples: Samples, count: int) -> Samples:
    """Take some images of a split, spread evenly over it."""
    count = min(count, len(samples))
    rows = np.arange(count) * len(samples) // max(count, 1)
    truths = {task: truth[rows] for task, truth in samples.truths.items()}
    return Samples(samples.images[rows], truths)


def stage_tables(
    stages: Mapping[str, Metrics],
    specs: Mapping[str, TaskSpec],
    images: int,
    unrun: Sequence[str] = (),
) -> Iterator[Table]:
    """Lay out the metrics after every stage, against the experts.

    `unrun` are the bundle's precisions that this machine cannot run.
    """
    missing = f" The machine of the build cannot run {' and '.join(unrun)}." if unrun else ""
    experts = stages[EXPERTS]
    kinds = {task: spec.metric for task, spec in specs.items()}
    rows = []
    for name, found in stages.items():
        shares = performances(found, experts, kinds)
        equations = compare(found, experts, specs)
        one, two = equations["normalised_performance"] - 1.0, equations["relative_drop"]
        metrics = [
            Cell(shown(found[task], kind), percent(float(shares[task])), float(shares[task]))
            for task, kind in kinds.items()
        ]
        rows.append((Cell(name), *metrics, *(Cell(equation(drop)) for drop in (one, two))))
    heads = [f"{task}, {titled(kind)}" for task, kind in kinds.items()]
    yield Table(
        title="After every stage",
        note=f"On the {images} images of the select split, on which parameters and epochs were "
        "chosen: the test split mostly gives less. Beside a metric stands its share of the "
        "expert's performance. Equation 1 is the mean of these shares, less 100 %; equation 2 is "
        f"the mean relative change.{missing} simo-eval measures controls, intervals and the test "
        "split.",
        head=("", *heads, "eq. 1 - 100 %", "eq. 2"),
        rows=tuple(rows),
        strong=list(stages).index(ONNX),
    )


def cost_table(costs: list[Cost]) -> Table:
    """Lay out what every stage took."""
    rows = []
    for cost in costs:
        steps = UNKNOWN if cost.steps is None else f"{cost.steps:,}" if cost.steps else "-"
        known = cost.steps is not None
        looked = [
            counted(each) if each or known else UNKNOWN for each in (cost.images, cost.labels)
        ]
        seconds = f"{cost.seconds:.1f}" if cost.seconds is not None else "-" if known else UNKNOWN
        rows.append((cost.stage, *looked, steps, seconds))
    return Table(
        title="What each stage cost",
        note="Images and labels by split, each counted once. Seconds are of the run that made a "
        "stage, on the machine that ran it, also where this build has found it kept.",
        head=("", "images", "labels", "optimiser steps", "seconds"),
        rows=columns_of(rows),
    )


def choice_tables(log: Mapping[str, Any], specs: Mapping[str, TaskSpec]) -> Iterator[Table]:
    """Say how the merging parameters came to be: given, chosen, learnt."""
    if "tried" in log:
        yield tried_table(log, specs)
    elif log.get("params"):
        rows = [(name, str(value)) for name, value in log["params"].items()]
        yield Table(
            title="Merging parameters",
            note="Given in the recipe; nothing was chosen.",
            head=("", "value"),
            rows=columns_of(rows),
            words=True,
        )
    if "learned" in log:
        yield learned_table(log["learned"])


def tried_table(log: Mapping[str, Any], specs: Mapping[str, TaskSpec]) -> Table:
    """Lay out the candidates, and mark the one that was taken."""
    every, by_select = list(log["tried"]), log["by"] == SELECT
    taken = next(row for row in every if row["params"] == log["params"])
    tried = every[:TRIED] if taken in every[:TRIED] else [*every[: TRIED - 1], taken]
    tasks = list(specs) if by_select else []
    rows = []
    for row in tried:
        metrics = [Cell(shown(row["metrics"][task], specs[task].metric)) for task in tasks]
        score = row["score"]
        told = equation(score - 1.0) if by_select else f"{score:.4f}"
        rows.append((Cell(named(row["params"])), *metrics, Cell(told)))
    how = (
        "by equation 1 on the select split, with the experts' heads"
        if by_select
        else f"by {log['by']}, a score without labels, on {log['images']} images of realign"
    )
    more = len(every) - len(tried)
    return Table(
        title="How merging parameters were chosen",
        note=f"The best of {len(every)} candidates {how}."
        + (f" The manifest has the other {more}." if more else ""),
        head=("", *tasks, "eq. 1 - 100 %" if by_select else "score"),
        rows=tuple(rows),
        strong=tried.index(taken),
    )


def learned_table(learned: Mapping[str, Any]) -> Table:
    """Say how coefficients were learnt."""
    history, epoch = learned["history"], learned["epoch"]
    return Table(
        title="How coefficients were learnt",
        note=f"On {learned['images']} images of realign, {learned['labels']} of them with labels; "
        f"{learned['held_out']} were held out to tell the best epoch by.",
        head=("", "before", "after", "epoch that stayed"),
        rows=columns_of(
            [
                (
                    "loss on the images held out",
                    f"{history[0]:.4f}",
                    f"{history[epoch]:.4f}",
                    f"{epoch} of {len(history) - 1}",
                )
            ]
        ),
    )


def history_tables(log: Mapping[str, Any], specs: Mapping[str, TaskSpec]) -> Iterator[Table]:
    """Say what every step of re-alignment did, and which epoch stayed."""
    rows = []
    for step in log.get("steps", ()):
        each = step.get("tasks", {"": step})
        for task in [task for task in ("", *specs) if task in each]:
            one = each[task]
            if "history" not in one:
                continue
            kind = specs[task].metric if task and step.get("by") != "teachers" else None
            values = (one["history"][0], one["history"][one["epoch"]])
            told = [shown(value, kind) if kind else f"{value:.4f}" for value in values]
            name = f"{step['step']}, {task}" if task else step["step"]
            rows.append((name, *told, f"{one['epoch']} of {len(one['history']) - 1}"))
    if rows:
        yield Table(
            title="What re-alignment did",
            note="On the select split, or, where a step is told its best epoch by the teachers, by "
            "their loss with its sign turned. Epoch 0 is the start.",
            head=("", "before", "after", "epoch that stayed"),
            rows=columns_of(rows),
        )


def gate_table(gate: Mapping[str, Any], specs: Mapping[str, TaskSpec]) -> Table:
    """Say how near the exported graphs come to PyTorch, in every precision."""
    rows = []
    for one in gate["found"]:
        kind, left_out = specs[one["task"]].metric, one["precision"] in gate["left_out"]
        metrics = [one[name] for name in ("metric_torch", "metric_onnx")]
        rows.append(
            (
                f"{one['precision']} {one['task']}" + (" (left out)" if left_out else ""),
                "not finite" if one["cosine"] is None else f"{one['cosine']:.8f}",
                "not finite" if one["frobenius"] is None else f"{one['frobenius']:.1e}",
                "-" if one["argmax"] is None else percent(one["argmax"], 2),
                *("-" if value is None else shown(value, kind) for value in metrics),
            )
        )
    return Table(
        title="The graphs against PyTorch",
        note=f"On {gate['images']} images, the heads' outputs before their last step. "
        + "".join(f"{name}: {how}. " for name, how in gate["how"].items())
        + "".join(
            f"{name} leaves in floats: {', '.join(kept)}. "
            for name, kept in gate["kept_in_floats"].items()
        ),
        head=(
            *("", "cosine", "relative difference", "same classes"),
            *("metric, PyTorch", "metric, ONNX Runtime"),
        ),
        rows=columns_of(rows),
    )


def named(params: Mapping[str, Any]) -> str:
    """Show parameters in a line."""
    return ", ".join(f"{name} {value}" for name, value in params.items()) or "none"


def equation(drop: float) -> str:
    """Show what an equation gives; the experts are exactly 0."""
    return percent(drop, 2, signed=True) if drop else "0"


def millions(count: int) -> str:
    """Show a count of weights."""
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
