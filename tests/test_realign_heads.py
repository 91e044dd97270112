"""Heads that learn from their experts, and what the step `head` shares with others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from simo_build import workshop
from simo_build.build import realign
from simo_build.costs import of_realign
from simo_build.merging import merge
from simo_build.statedict import part
from tests.realigning import Reads, aligned
from tests.tiny import SPLITS, opened, write_recipe

HEADS: dict[str, Any] = {"step": "head", "epochs": 3, "lr": 1e-3, "batch": 3}
TAUGHT = {**HEADS, "labels": False, "outputs": 1}


def test_heads_learn_from_experts_without_any_label(
    place: Path, tmp_path: Path, reads: Reads
) -> None:
    step = {**TAUGHT, "by": "teachers", "epochs": 8}
    learnt_on = {"root": "data", "select": "realign"}
    path = write_recipe(place, merge={"params": {"alpha": 0.5}}, data=learnt_on, realign=[step])
    work = opened(path)
    work.stages = workshop.Stages(tmp_path, work.stages.progress)
    log = realign(work, merge(work)).log
    (cost,) = of_realign(log)
    assert cost.images == {"realign": SPLITS["realign"], "select": SPLITS["realign"]}
    assert cost.labels == {}
    assert not [split for split, truths in reads if split == "realign" and truths]
    for one in log["steps"][0]["tasks"].values():
        assert one["epoch"] > 0  # nearer to the expert than before


def test_heads_of_a_shared_encoder_that_is_the_expert_need_no_change(
    place: Path, tmp_path: Path
) -> None:
    step = {**TAUGHT, "by": "teachers"}
    path = write_recipe(place, tasks=("depth",), merge={"params": {"alpha": 1.0}}, realign=[step])
    work = opened(path)
    work.stages = workshop.Stages(tmp_path, work.stages.progress)
    found = realign(work, merge(work))
    before, after = work.experts["depth"].head, part(found.tensors, "depth.")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    outcome = found.log["steps"][0]["tasks"]["depth"]
    assert (outcome["epoch"], outcome["metric"]) == (0, pytest.approx(0, abs=1e-6))


def test_labels_and_experts_together_are_another_lesson_than_either(
    place: Path, tmp_path: Path
) -> None:
    steps = [HEADS, TAUGHT, {**TAUGHT, "labels": True}, {**TAUGHT, "labels": True, "outputs": 5}]
    found = [aligned(place, tmp_path / str(i), step)[2].tensors for i, step in enumerate(steps)]
    weights = [torch.cat([t.flatten() for t in tensors.values()]) for tensors in found]
    for i, one in enumerate(weights):
        assert all(not torch.equal(one, other) for other in weights[i + 1 :])


def test_an_average_and_patience_are_the_heads_too(place: Path, tmp_path: Path) -> None:
    plain, averaged, short = (
        aligned(place, tmp_path / name, {**HEADS, **extra})[2].log["steps"][0]["tasks"]["depth"]
        for name, extra in (("a", {}), ("b", {"ema": 0.9}), ("c", {"lr": 1.0, "patience": 1}))
    )
    assert plain["history"] != averaged["history"]
    assert len(short["history"]) < len(plain["history"])
