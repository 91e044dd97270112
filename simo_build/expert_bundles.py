"""One bundle for every expert, beside the shared one: what a comparison of speed compares with.

    <out>/                     the shared bundle
    <out>.experts/<task>/      the expert of one task: its own encoder, its own head

An expert goes through the same folding, export and comparison with PyTorch as the shared model, so
that both run the same kind of graph. Its weights are the expert's own, neither merged nor
re-aligned.
"""

from copy import copy
from dataclasses import replace
from pathlib import Path

from simo_build.build import calibration, first, opened, plain_metric, versions
from simo_build.export import export_bundle, noise
from simo_build.hashing import code_hash, digest
from simo_build.heads import Head
from simo_build.loading import LoadedRecipe
from simo_build.merging import check_recipe
from simo_build.progress import Progress
from simo_build.stages import Stages
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop
from simo_export.bundle import check_folder
from simo_export.graph import EXPORTER
from simo_runtime.bundle import Bundle


def experts_folder(out: Path) -> Path:
    """Give the folder of the experts' bundles that belong to the bundle at `out`."""
    return out.with_name(f"{out.name}.experts")


def build_experts(loaded: LoadedRecipe, out: Path, *, progress: Progress) -> dict[str, Bundle]:
    """Write the bundle of every expert of a recipe into the folder beside `out`.

    A recipe with a random base has no experts: each bundle then holds the base and the task's
    random head, which is as large and as slow as an expert. A bundle that is there already stays.
    Raises the errors of `simo_build.build.build`.
    """
    check_recipe(loaded)
    work = Workshop(loaded, Stages(out.parent / ".stages", progress))
    for task in work.recipe.tasks:
        check_folder(experts_folder(out) / task)
    return {task: _build(work, task, experts_folder(out) / task) for task in work.recipe.tasks}


def _build(work: Workshop, task: str, out: Path) -> Bundle:
    part = _alone(work, task)
    recipe, progress = part.recipe, work.stages.progress
    inputs = {"base": work.base_hash}
    if recipe.random_seed is None:
        inputs = part.inputs()
    provenance = {
        "recipe": work.loaded.text,
        "expert": task,
        "inputs": inputs,
        "versions": versions(),
        "exporter": EXPORTER,
        "metrics": {name: plain_metric(spec.metric) for name, spec in recipe.specs().items()},
    }
    provenance["key"] = digest({"code": code_hash(), **provenance})
    existing = opened(out)
    if existing is not None and existing.manifest.provenance.get("key") == provenance["key"]:
        progress.say(f"expert {task}: the bundle is there already")
        return existing
    progress.say(f"expert {task}: export ...")
    weights, heads = _model(part, task)
    work.encoder.load(weights, source=f"the expert of {task}")
    samples = noise(recipe) if recipe.data is None else first(part.samples["select"], recipe)
    return export_bundle(
        out,
        encoder=work.encoder,
        heads=heads,
        recipe=recipe,
        samples=samples,
        provenance=provenance,
        calibration=calibration(part),
        say=progress.say,
    )


def _alone(work: Workshop, task: str) -> Workshop:
    """Give the workshop of the same recipe with one of its tasks, named after it."""
    if work.recipe.random_seed is None:
        part = work.only([task])
    else:
        part = copy(work)
        chosen = work.recipe.model_copy(update={"tasks": {task: work.recipe.tasks[task]}})
        part.loaded = replace(work.loaded, recipe=chosen)
    named = part.recipe.model_copy(update={"name": f"{work.recipe.name}.{task}"})
    part.loaded = replace(part.loaded, recipe=named)
    return part


def _model(part: Workshop, task: str) -> tuple[StateDict, dict[str, Head]]:
    if part.recipe.random_seed is not None:
        return part.base, part.heads()
    return part.experts[task].encoder, part.expert_heads()
