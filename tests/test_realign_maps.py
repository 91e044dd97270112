"""Maps beside the blocks, in builds: alone, with heads, and before other steps."""

from pathlib import Path
from typing import Any

import pytest
import torch

from simo_build.loading import load_recipe
from simo_build.realign import shared_encoder
from simo_build.statedict import part
from simo_build.workshop import measure, split_heads
from simo_runtime.errors import RecipeError
from tests.realigning import ALONE, RELEASED, aligned
from tests.tiny import write_recipe, write_workplace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_workplace(folder)
    return folder


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_maps_can_be_trained_alone(place: Path, tmp_path: Path, variant: str) -> None:
    form = {**ALONE["representation"], "variant": variant, "heads": "none", "by": "teachers"}
    work, _, found = aligned(place, tmp_path, {**form, "lr": 1e-2, "epochs": 6})
    for task, one in work.experts.items():  # with what a BatchNorm counts
        head = part(found.tensors, f"{task}.")
        assert all(torch.equal(head[key], tensor) for key, tensor in one.head.items())
    ups = [tensor for key, tensor in found.tensors.items() if key.endswith("up.weight")]
    assert len(ups) == 2
    assert all(up.any() for up in ups)


def test_heads_that_stood_still_are_trained_by_the_next_step(place: Path, tmp_path: Path) -> None:
    alone = {**ALONE["representation"], "heads": "none"}
    work, _, found = aligned(place, tmp_path, alone, {**ALONE["distill"], "lr": 1e-3})
    assert found.log["steps"][1]["epoch"] > 0
    head = part(found.tensors, "normals.")
    assert not all(torch.equal(head[k], t) for k, t in work.experts["normals"].head.items())


def test_maps_beside_blocks_are_made_once(tmp_path: Path) -> None:
    twice = [{"step": "representation"}, {"step": "representation"}]
    with pytest.raises(RecipeError, match="`representation` stands twice"):
        load_recipe(str(write_recipe(tmp_path, realign=twice)))


def test_blocks_with_maps_beside_them_are_not_calibrated(tmp_path: Path) -> None:
    steps = [{"step": "representation"}, {"step": "head"}, {"step": "calibrate"}]
    with pytest.raises(RecipeError, match="put it before `representation`"):
        load_recipe(str(write_recipe(tmp_path, realign=steps)))
    load_recipe(str(write_recipe(tmp_path, realign=steps[::-1])))


@pytest.mark.parametrize("maps", [ALONE["representation"], RELEASED], ids=["paper", "released"])
def test_maps_beside_blocks_outlive_the_steps_after_them(
    place: Path, tmp_path: Path, maps: dict[str, Any]
) -> None:
    steps = (maps, ALONE["lora"], ALONE["head"], ALONE["distill"])
    work, merged, found = aligned(place, tmp_path, *steps)
    encoder = shared_encoder(merged.tensors, found.tensors)
    assert len(set(encoder) - set(work.base)) == 4
    select = work.samples["select"]
    after = measure(work, encoder, split_heads(work, found.tensors), select)
    assert after == pytest.approx(found.log["metrics"])
    scores = [log["metric"] for log in found.log["steps"] if log["step"] != "head"]
    assert scores == sorted(scores)
