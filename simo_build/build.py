"""The straight line: a recipe in, a bundle out.  `build` is the order of the method.

Stages are kept under `<folder of the bundle>/.stages` by the hash of what went into them, and
skipped the next time.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simo_build.data import Samples, say_overlaps
from simo_build.export import export_bundle, noise
from simo_build.hashing import code_hash, digest
from simo_build.ledger import write_report
from simo_build.loading import LoadedRecipe
from simo_build.merging import check_recipe, merge
from simo_build.origin import versions as versions_of
from simo_build.progress import Progress
from simo_build.realign import check_steps, run_steps, shared_encoder
from simo_build.recipe import Recipe
from simo_build.scalars import Scalars
from simo_build.stages import Result, Stages
from simo_build.workers import workers
from simo_build.workshop import Workshop, flat_heads, split_heads
from simo_export.graph import EXPORTER
from simo_runtime.bundle import MANIFEST, Bundle
from simo_runtime.errors import BundleError
from simo_runtime.metrics import METRICS

PACKAGES = ("simo-runtime", "torch", "timm", "onnx", "onnxscript", "numpy", "safetensors")


def build(
    loaded: LoadedRecipe, out: Path, *, progress: Progress, scalars: Scalars | None = None
) -> Bundle:
    """Run every stage of a recipe; the order below is the whole method.

    Raises the errors of `simo_runtime.errors`; whatever happens, there is never a half-written
    bundle at `out`. The report comes last: a bundle without one is whole, and gets it the next
    time.
    """
    check_recipe(loaded)
    say_overlaps(loaded, progress)
    work = Workshop(loaded, Stages(out.parent / ".stages", progress), scalars)
    check_steps(work)
    merged = merge(work)
    aligned = realign(work, merged)
    bundle = Bundle.open(workers().from_main(lambda: export(work, merged, aligned, out).root))
    if workers().main:
        write_report(work, merged, aligned, bundle)
    return bundle


def realign(work: Workshop, merged: Result) -> Result:
    """Run the recipe's re-alignment steps.

    The result's tensors are `<task>.<head tensor>`, and `encoder.<tensor>` if a step changed it.
    """
    if work.recipe.random_seed is not None:
        return Result(flat_heads(work.heads()), {}, digest({"random heads": merged.key}))
    if not work.recipe.realign:
        return Result(flat_heads(work.expert_heads()), {}, digest({"heads": work.inputs()}))
    inputs = realign_inputs(work, merged.key)
    return work.stages.run_in_parts(
        "realign", inputs, lambda states: run_steps(work, merged.tensors, states)
    )


def realign_inputs(work: Workshop, merged: str) -> dict[str, Any]:
    """Give everything that re-alignment depends on; `merged` is the key of the merge."""
    steps = [step.model_dump(mode="json") for step in work.recipe.realign]
    return {**work.inputs(), "merged": merged, "steps": steps}


def export(work: Workshop, merged: Result, aligned: Result, out: Path) -> Bundle:
    """Fold, export, check and write the bundle, unless the same one is there already."""
    recipe, progress = work.recipe, work.stages.progress
    provenance = provenance_of(work, merged, aligned)
    existing = opened(out)
    if existing is not None and existing.manifest.provenance.get("key") == provenance["key"]:
        progress.say("export: the bundle is there already")
        return existing
    progress.say("export ...")
    started = time.perf_counter()
    encoder = shared_encoder(merged.tensors, aligned.tensors)
    work.encoder.load(encoder, source="the shared encoder", adapters=True)
    samples = noise(recipe) if recipe.data is None else first(work.samples["select"], recipe)
    bundle = export_bundle(
        out,
        encoder=work.encoder,
        heads=split_heads(work, aligned.tensors),
        recipe=recipe,
        samples=samples,
        provenance=provenance,
        calibration=calibration(work),
        say=progress.say,
    )
    work.stages.note("export", provenance["key"], time.perf_counter() - started)
    return bundle


def provenance_of(work: Workshop, merged: Result, aligned: Result) -> dict[str, Any]:
    """Say what a bundle comes from; its `key` is the hash of that."""
    recipe = work.recipe
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
    return {**provenance, "key": digest({**made_of, **provenance})}


def first(samples: Samples, recipe: Recipe) -> Samples:
    """Take the images of a split that the gate looks at."""
    count = recipe.export.images
    truths = {task: truth[:count] for task, truth in samples.truths.items()}
    return Samples(samples.images[:count], truths)


def calibration(work: Workshop) -> NDArray[np.uint8] | None:
    """Take the images that tell int8 and fp8 their ranges, of the split that heads learn from."""
    if work.recipe.data is None or not {"int8", "fp8"} & set(work.recipe.export.precisions):
        return None
    return work.samples["realign"].images[: work.recipe.export.calibration]


def plain_metric(name: str) -> dict[str, Any]:
    """Describe a metric in plain values."""
    described = vars(METRICS[name]).items()
    return {key: value for key, value in described if not callable(value)}


def versions() -> dict[str, str]:
    """Give the versions of what shapes a bundle."""
    return versions_of(PACKAGES)


def opened(out: Path) -> Bundle | None:
    """Open the bundle at `out` if there is a whole one."""
    try:
        return Bundle.open(out) if (out / MANIFEST).is_file() else None
    except BundleError:
        return None
