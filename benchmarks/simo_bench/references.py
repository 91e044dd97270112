"""Several-pass methods as reference rows of a study: every task on features of its own.

They need more passes than one, so they stand apart from the methods that a build may use. Heads
stay as the experts have them: these features are to come near those that the heads know.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from simo_build.data import Samples
from simo_build.evaluate import measure_heads
from simo_build.several import SEVERAL, SeveralPass, Sight
from simo_build.statedict import add, subtract
from simo_build.workshop import Workshop, against

Row = dict[str, Any]


def merged_apart(work: Workshop, method: str, params: Mapping[str, Any]) -> SeveralPass:
    """Give the encoders of all tasks, in the order of the recipe's tasks."""
    deltas = [subtract(one.encoder, work.base) for one in work.experts.values()]
    return SEVERAL[method](deltas, sight(work, method), **params)


def sight(work: Workshop, method: str) -> Sight:
    """Give what a method may look at: `merge.images` images without truths, if it does."""
    images = np.zeros((0, *work.recipe.image.size, 3), dtype=np.uint8)
    if SEVERAL[method].sees:
        images = work.unlabelled(work.recipe.merge.images).images
    return Sight(encoder=work.encoder, base=work.base, images=images)


def rehearse(work: Workshop, method: str, tried: Iterable[Mapping[str, Any]]) -> None:
    """Refuse parameters out of range, and too few images, before any heavy work."""
    seen = sight(work, method)
    for params in tried:
        SEVERAL[method].rehearse(seen, tasks=len(work.recipe.tasks), **params)


def measure_apart(work: Workshop, result: SeveralPass, samples: Samples) -> dict[str, float]:
    """Measure every expert's head on the features of its own task's encoder."""
    specs, measured = work.recipe.specs(), dict[str, float]()
    for place, (task, head) in enumerate(work.expert_heads().items()):
        weights = add(work.base, result.deltas[place])
        with result.on(place, work.encoder):
            features = work.features(weights, samples, f"the encoder of {task}")
        measured |= measure_heads({task: head}, specs, features=features, samples=samples)
    return measured


def reference(
    work: Workshop,
    method: str,
    params: Mapping[str, Any],
    *,
    split: str,
    samples: Samples,
    experts: Mapping[str, float],
) -> Row:
    """Measure a several-pass method on a split; the row is kept, as a stage of a build is."""

    def make() -> tuple[dict[str, Any], Row]:
        result = merged_apart(work, method, params)
        measured = measure_apart(work, result, samples)
        found = {"metrics": measured, **against(work, measured, experts)}
        return {}, {"merged": found, "passes": result.passes, "bytes": result.bytes}

    inputs = {**work.inputs(), "method": method, "params": dict(params), "split": split}
    if SEVERAL[method].sees:
        inputs["images"] = work.recipe.merge.images
    kept = work.stages.run("reference", inputs, make)
    return {"method": method, "params": dict(params), **kept.log, "seconds": kept.seconds}


def table(rows: Sequence[Row]) -> str:
    """Lay the references out as a table in Markdown."""
    lines = [
        "| several passes, to compare with | parameters | passes | stored | merged |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        params = ", ".join(f"{key} {value}" for key, value in row["params"].items())
        drop = row["merged"]["normalised_performance"] - 1
        cost = f"{row['passes']:.2f} | {row['bytes'] / 1e6:.1f} MB"
        lines.append(f"| `{row['name']}` | {params} | {cost} | {drop:+.2%} |")
    return "\n".join(lines)
