"""The straight line: a recipe in, a bundle out.  `build` is the order of the method.

Stages are kept under `<folder of the bundle>/.stages` by the hash of what went into them, and
skipped the next time.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simo_build.checkpoints import Expert, description, load_base, read_expert
from simo_build.data import Samples, load_split, mirrored, open_dataset
from simo_build.encoder import Encoder
from simo_build.evaluate import compare, measure_heads
from simo_build.export import export_bundle, noise
from simo_build.features import compute_features
from simo_build.hashing import code_hash, digest
from simo_build.heads import Head, make_head
from simo_build.loading import LoadedRecipe
from simo_build.merge import candidates, method_named
from simo_build.progress import Progress
from simo_build.realign import realign_head
from simo_build.recipe import Recipe
from simo_build.stages import Result, Stages
from simo_build.statedict import StateDict, add, misfits, part, prefixed, subtract
from simo_build.train import device, expert_path, feature_shape, train_expert
from simo_export.graph import EXPORTER
from simo_runtime.bundle import MANIFEST, Bundle
from simo_runtime.errors import BundleError, CheckpointError, RecipeError, listing
from simo_runtime.metrics import METRICS

PACKAGES = ("simo-runtime", "torch", "timm", "onnx", "onnxscript", "numpy", "safetensors")


def build(loaded: LoadedRecipe, out: Path, *, progress: Progress) -> Bundle:
    """Run every stage of a recipe; the order below is the whole method.

    Raises the errors of `simo_runtime.errors`; whatever happens, there is never a half-written
    bundle at `out`.
    """
    check_recipe(loaded)
    work = Workshop(loaded, Stages(out.parent / ".stages", progress))
    merged = merge(work)
    aligned = realign(work, merged)
    return export(work, merged, aligned, out)


@dataclass
class Workshop:
    """What the stages share, read when it is first needed."""

    loaded: LoadedRecipe
    stages: Stages
    base_hash: str = field(init=False)
    base: StateDict = field(init=False)
    encoder: Encoder = field(init=False)

    def __post_init__(self) -> None:
        self.encoder = Encoder(self.recipe.encoder, self.recipe.image)
        self.base_hash = load_base(self.loaded, self.encoder)
        self.base = {n: t.detach().clone() for n, t in self.encoder.weights().items()}
        self.encoder.to(device())

    @property
    def recipe(self) -> Recipe:
        """The recipe itself."""
        return self.loaded.recipe

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """The experts of all tasks, trained here if they are missing and the recipe says so."""
        found = {}
        for task in self.recipe.tasks:
            path = expert_path(self.loaded, task, self.base_hash)
            if not path.is_file() and self.recipe.train_missing:
                path = train_expert(self.loaded, task, self.stages.progress)
            if not path.is_file():
                raise CheckpointError(
                    f"{path}: the expert of {task} is missing. Train it with "
                    f"`simo-train --recipe {self.loaded.shown} --task {task}`, or set "
                    "`train_missing: true` in the recipe."
                )
            expert = read_expert(path, like=description(self.recipe, task, self.base_hash))
            self.encoder.load(expert.encoder, source=str(path))  # refuses what does not fit
            self._check_head(expert)
            found[task] = expert
        return found

    def _check_head(self, expert: Expert) -> None:
        """Refuse an expert whose head is not the recipe's, before any work."""
        head = self.heads()[expert.task]
        faults = list(misfits(expert.head, head.state_dict()))
        if faults:
            raise CheckpointError(
                f"{expert.source}: {len(faults)} head tensors do not fit a "
                f"{self.recipe.tasks[expert.task].head} head\n{listing(faults)}"
            )

    @cached_property
    def samples(self) -> dict[str, Samples]:
        """The labelled images that a build may look at: `realign` and `select`, never `test`."""
        return {role: self.split(role) for role in ("realign", "select")}

    def split(self, role: str) -> Samples:
        """Read one split with the truths of every task."""
        tasks = list(self.recipe.tasks)
        return load_split(self.loaded, role, tasks=tasks, progress=self.stages.progress)

    def features(self, weights: StateDict, samples: Samples, label: str) -> list[torch.Tensor]:
        """Compute the features of a split with some encoder weights."""
        self.encoder.load(weights, source=label)
        return compute_features(self.encoder, samples, label=label, progress=self.stages.progress)

    def heads(self, weights: Mapping[str, StateDict] | None = None) -> dict[str, Head]:
        """Make the heads with the weights given, or with random ones."""
        made = {}
        for task, spec in self.recipe.specs().items():
            name, shape = self.recipe.tasks[task].head, feature_shape(self.encoder)
            head = make_head(name, spec, shape, seed=self.recipe.train.seed).to(device())
            if weights is not None:
                head.load_state_dict(weights[task])
            made[task] = head.eval()
        return made

    def expert_heads(self) -> dict[str, Head]:
        """Make the heads as the experts have them."""
        return self.heads({task: expert.head for task, expert in self.experts.items()})

    def inputs(self) -> dict[str, Any]:
        """Give the hashes of everything a build reads."""
        data = self.recipe.data
        return {
            "base": self.base_hash,
            "experts": {task: expert.hash for task, expert in self.experts.items()},
            "data": open_dataset(self.loaded).fingerprint() if data else None,
        }


def check_recipe(loaded: LoadedRecipe) -> None:
    """Refuse, before any heavy work, what the recipe cannot do."""
    recipe = loaded.recipe
    method = method_named(recipe.merge.method)
    if recipe.random_seed is None:
        method.check([*recipe.merge.params, *recipe.merge.choose])
    elif recipe.realign or recipe.merge.choose:
        raise RecipeError(
            f"{loaded.shown}: base {recipe.base} is for measuring speed; "
            "`realign` and `merge.choose` need a real base"
        )


def merge(work: Workshop) -> Result:
    """Merge the experts' encoders; parameters in `choose` are chosen on the select split.

    The choice is by equation 1, which one exploding task cannot rule; equation 2 is logged.
    The result's tensors are the shared encoder's.
    """
    if work.recipe.random_seed is not None:
        return Result(work.base, {"random": True}, digest({"random": work.base_hash}))
    choice = work.recipe.merge
    splits = "select" if choice.choose else None
    return work.stages.run(
        "merge",
        {**work.inputs(), "merge": choice.model_dump(mode="json"), "splits": splits},
        lambda: _merge(work),
    )


def _merge(work: Workshop) -> tuple[StateDict, dict[str, Any]]:
    choice, method = work.recipe.merge, method_named(work.recipe.merge.method)
    deltas = [subtract(expert.encoder, work.base) for expert in work.experts.values()]
    if not choice.choose:
        params = choice.params
        return add(work.base, method(deltas, **params)), {"params": params}
    experts = measure_experts(work, work.samples["select"])
    tried: list[dict[str, Any]] = []
    for params in candidates(choice.params, choice.choose):
        weights = add(work.base, method(deltas, **params))
        measured = measure(work, weights, work.expert_heads(), work.samples["select"])
        tried.append({"params": params, "metrics": measured, **against(work, measured, experts)})
        work.stages.progress.say(
            f"merge: {params}: normalised performance {tried[-1]['normalised_performance']:.4f}"
        )
    best = max(tried, key=lambda one: np.nan_to_num(one["normalised_performance"], nan=-np.inf))
    merged = add(work.base, method(deltas, **best["params"]))
    return merged, {"params": best["params"], "experts": experts, "tried": tried}


def measure_experts(work: Workshop, samples: Samples) -> dict[str, float]:
    """Measure every expert on its own task."""
    heads, specs = work.expert_heads(), work.recipe.specs()
    measured: dict[str, float] = {}
    for task, expert in work.experts.items():
        features = work.features(expert.encoder, samples, f"expert {task}")
        one = {task: heads[task]}
        measured |= measure_heads(one, specs, features=features, samples=samples)
    return measured


def measure(
    work: Workshop, weights: StateDict, heads: Mapping[str, Head], samples: Samples
) -> dict[str, float]:
    """Measure every head on the features of one encoder."""
    features = work.features(weights, samples, "the shared encoder")
    return measure_heads(heads, work.recipe.specs(), features=features, samples=samples)


def against(
    work: Workshop, measured: Mapping[str, float], experts: Mapping[str, float]
) -> dict[str, float]:
    """Compare with the experts by equations 1 and 2."""
    return compare(measured, experts, work.recipe.specs())


def realign(work: Workshop, merged: Result) -> Result:
    """Run the recipe's re-alignment steps; the result's tensors are `<task>.<head tensor>`."""
    if work.recipe.random_seed is not None:
        return Result(flat_heads(work.heads()), {}, digest({"random heads": merged.key}))
    if not work.recipe.realign:
        return Result(flat_heads(work.expert_heads()), {}, digest({"heads": work.inputs()}))
    steps = [step.model_dump(mode="json") for step in work.recipe.realign]
    inputs = {**work.inputs(), "merged": merged.key, "steps": steps}
    return work.stages.run("realign", inputs, lambda: realign_heads(work, merged.tensors))


def realign_heads(work: Workshop, weights: StateDict) -> tuple[StateDict, dict[str, Any]]:
    """Re-align the experts' heads to an encoder; give the heads' tensors and a log."""
    heads, specs = work.expert_heads(), work.recipe.specs()
    samples = dict(work.samples)
    if any(step.flip for step in work.recipe.realign):
        kinds = {task: spec.kind for task, spec in specs.items()}
        samples["realign"] = mirrored(samples["realign"], kinds)
    features = {role: work.features(weights, split, role) for role, split in samples.items()}
    count = len(work.samples["realign"])
    log: dict[str, Any] = {"images": count, "steps": []}
    for step in work.recipe.realign:
        rows = len(samples["realign"]) if step.flip else count
        outcomes = {
            task: realign_head(
                head,
                specs[task],
                step=step,
                images=rows,
                features=features,
                samples=samples,
                progress=work.stages.progress,
            )
            for task, head in heads.items()
        }
        log["steps"].append({task: vars(outcome) for task, outcome in outcomes.items()})
    log["metrics"] = measure_heads(
        heads, specs, features=features["select"], samples=work.samples["select"]
    )
    return flat_heads(heads), log


def flat_heads(heads: Mapping[str, Head]) -> StateDict:
    """Put all heads into one dictionary, `<task>.<tensor>`."""
    flat: StateDict = {}
    for task, head in heads.items():
        flat |= prefixed(head.state_dict(), f"{task}.")
    return flat


def split_heads(work: Workshop, flat: StateDict) -> dict[str, Head]:
    """Make heads from a dictionary of `flat_heads`."""
    return work.heads({task: part(flat, f"{task}.") for task in work.recipe.tasks})


def export(work: Workshop, merged: Result, aligned: Result, out: Path) -> Bundle:
    """Fold, export, check and write the bundle, unless the same one is there already."""
    recipe, progress = work.recipe, work.stages.progress
    provenance = {
        "recipe": work.loaded.text,
        "inputs": work.inputs() if recipe.random_seed is None else {"base": work.base_hash},
        "versions": versions(),
        "exporter": EXPORTER,
        "merge": dict(merged.log),
        "realign": dict(aligned.log),
        "metrics": {task: plain_metric(spec.metric) for task, spec in recipe.specs().items()},
    }
    made_of = {"merged": merged.key, "aligned": aligned.key, "code": code_hash()}
    key = digest({**made_of, **provenance})
    existing = opened(out)
    if existing is not None and existing.manifest.provenance.get("key") == key:
        progress.say("export: the bundle is there already")
        return existing
    progress.say("export ...")
    work.encoder.load(merged.tensors, source="the shared encoder")
    samples = noise(recipe) if recipe.data is None else first(work.samples["select"], recipe)
    return export_bundle(
        out,
        encoder=work.encoder,
        heads=split_heads(work, aligned.tensors),
        recipe=recipe,
        samples=samples,
        provenance={**provenance, "key": key},
    )


def first(samples: Samples, recipe: Recipe) -> Samples:
    """Take the images of a split that the gate looks at."""
    count = recipe.gate.images
    truths = {task: truth[:count] for task, truth in samples.truths.items()}
    return Samples(samples.images[:count], truths)


def plain_metric(name: str) -> dict[str, Any]:
    """Describe a metric in plain values."""
    return {key: value for key, value in vars(METRICS[name]).items() if key != "start"}


def versions() -> dict[str, str]:
    """Give the versions of what shapes a bundle."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def opened(out: Path) -> Bundle | None:
    """Open the bundle at `out` if there is a whole one."""
    try:
        return Bundle.open(out) if (out / MANIFEST).is_file() else None
    except BundleError:
        return None
