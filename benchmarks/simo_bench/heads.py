"""How long re-aligning the heads takes: the `head` step with its default schedule, on some images.

    python -m simo_bench.heads --recipe nyuv2-vit-tiny --data DATA --images 300 --json FILE

The images are the first ones of `train`, with their labels; the encoder is the base, the heads are
the experts'. Timed is the whole step: the feature pass over the images, their mirror images and
those of `select`, all epochs of all heads, and the measurements on `select`. Reading the data is
not. Every run starts afresh.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

from simo_build.cli import (
    STAGES,
    data_option,
    experts_option,
    finish,
    json_option,
    polite,
    recipe_option,
)
from simo_build.data import Samples
from simo_build.loading import load_recipe
from simo_build.progress import Bars
from simo_build.realign.bench import Bench, SharedModel
from simo_build.realign.head import realign_heads
from simo_build.report import described
from simo_build.stages import Stages
from simo_build.steps import HeadStep
from simo_build.workshop import Workshop
from simo_runtime.errors import SimoError

SCHEMA = "simo.heads/1"


@dataclass
class Few(Bench):
    """A bench with so many images of `train` for those of `realign`."""

    images: Samples | None = None

    def labelled(self, role: str) -> Samples:
        if role == "realign" and self.images is not None:
            return self.images
        return super().labelled(role)


def first(samples: Samples, count: int) -> Samples:
    """Give the first images of a split; SimoError if there are fewer."""
    if count > len(samples):
        raise SimoError(f"--images {count}: `train` has {len(samples)}; give at most as many")
    truths = {task: truth[:count] for task, truth in samples.truths.items()}
    images, names = samples.images[:count], samples.names[:count]
    return replace(samples, images=images, truths=truths, names=names)


def timed(work: Workshop, images: Samples) -> dict[str, float]:
    """Run the step once; give its seconds, of the clock and of all processors."""
    bench = Few(work, images=images)
    model = SharedModel(work.base, work.expert_heads())
    bench.labelled("select")
    clock, processors = time.perf_counter(), time.process_time()
    realign_heads(bench, model, HeadStep(step="head"))
    return {
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processors,
    }


def run(work: Workshop, count: int, runs: int) -> dict[str, Any]:
    """Time the step so many times; give the whole document."""
    images = first(work.split("train"), count)
    found = [timed(work, images) for _ in range(runs)]
    seconds = [one["seconds"] for one in found]
    return {
        **described(work, SCHEMA, "python -m simo_bench.heads"),
        "images": count,
        "epochs": HeadStep(step="head").epochs,
        "threads": torch.get_num_threads(),
        "runs": found,
        "median_seconds": statistics.median(seconds),
        "spread_seconds": [min(seconds), max(seconds)],
    }


def told(found: Mapping[str, Any]) -> str:
    """Say in a line what was measured."""
    low, high = found["spread_seconds"]
    return (
        f"{found['images']} images, {found['epochs']} epochs, {found['threads']} threads: "
        f"{found['median_seconds']:.1f} s (median of {len(found['runs'])}, {low:.1f} to {high:.1f})"
    )


@click.command()
@recipe_option
@click.option("--images", type=click.IntRange(min=1), default=300, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
@json_option("the times, with hashes and versions")
@data_option
@experts_option
@polite
def main(
    recipe: str, images: int, runs: int, json_file: Path | None, data: Path | None, experts: Path
) -> None:
    """Time the re-alignment of heads."""
    loaded = load_recipe(recipe, data=data, experts=experts)
    found = run(Workshop(loaded, Stages(STAGES, Bars())), images, runs)
    finish(found, told(found), json_file)


if __name__ == "__main__":
    main()
