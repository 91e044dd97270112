"""What tests of re-alignment share: the steps in short, a merge with its re-alignment, reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from simo_build import data, workshop
from simo_build.build import realign
from simo_build.data import Samples
from simo_build.loading import LoadedRecipe
from simo_build.merging import merge
from simo_build.progress import Progress
from simo_build.realign import bench
from simo_build.stages import Result
from simo_build.workshop import Workshop
from tests.tiny import opened, write_recipe

QUICK: dict[str, Any] = {"epochs": 2, "lr": 3e-3, "batch": 3}
ALONE: dict[str, dict[str, Any]] = {
    "head": {"step": "head", **QUICK},
    "distill": {"step": "distill", "views": 1, **QUICK},
    "lora": {"step": "lora", **QUICK, "rank": 2},
    "representation": {"step": "representation", **QUICK, "rank": 2},
    "calibrate": {"step": "calibrate", "images": 4, "choose": {"rho": [0.5, 2]}},
    "tint": {"step": "tint", **QUICK, "lr": 3e-2},
}
RELEASED = {**ALONE["representation"], "variant": "released"}
JOINT = [name for name in ALONE if name != "head"]


def aligned(place: Path, out: Path, *steps: dict[str, Any]) -> tuple[Workshop, Result, Result]:
    """Merge and re-align, stages in a folder of their own."""
    merging = {"params": {"alpha": 0.5}}
    work = opened(write_recipe(place, merge=merging, realign=list(steps)))
    work.stages = workshop.Stages(out, work.stages.progress)
    merged = merge(work)
    return work, merged, realign(work, merged)


Reads = list[tuple[str, tuple[str, ...]]]


def spied(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """The splits that are read, and the tasks whose truths are read with them."""
    seen: Reads = []
    whole = data.load_split

    def spy(
        loaded: LoadedRecipe, split: str, *, tasks: Sequence[str], progress: Progress
    ) -> Samples:
        seen.append((split, tuple(tasks)))
        return whole(loaded, split, tasks=tasks, progress=progress)

    for module in (workshop, bench):
        monkeypatch.setattr(module, "load_split", spy)
    return seen
