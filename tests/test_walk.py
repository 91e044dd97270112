"""Merging block after block: what every block is merged by, and what the walk leaves behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.evidence import KINDS
from simo_build.merge import METHODS
from simo_build.merging import merge
from simo_build.statedict import StateDict, subtract
from simo_build.walk import walked
from simo_build.workshop import Workshop
from tests.tiny import TASKS, opened, write_recipe, write_workplace

IMAGES = 4
METHOD = "regmean_plusplus"
FC2 = "blocks.1.mlp.fc2"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_workplace(folder)
    return folder


def work_with(place: Path, **merging: Any) -> Workshop:
    return opened(write_recipe(place, merge={"method": METHOD, "images": IMAGES, **merging}))


def deltas(work: Workshop) -> list[StateDict]:
    return [subtract(one.encoder, work.base) for one in work.experts.values()]


def inputs_in(work: Workshop, weights: StateDict, layer: str) -> Tensor:
    """What goes into a layer of an encoder with these weights, one row a token."""
    work.encoder.load(weights, source="a test")
    seen: list[Tensor] = []
    module = work.encoder.vit.get_submodule(layer)
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        work.encoder(torch.from_numpy(work.unlabelled(IMAGES).images))
    handle.remove()
    return torch.cat(seen).flatten(0, -2).double()


def test_a_matrix_is_least_squares_on_its_inputs_behind_merged_blocks(place: Path) -> None:
    # the expert's second block behind the merged first one: its fc2 sees 4 * 7 rows of 128
    work = work_with(place, params={"off_diagonal": 0.5, "alpha": 1.5})
    merged = merge(work).tensors
    grams, pull = np.zeros((128, 128)), np.zeros((32, 128))
    for expert, delta in zip(work.experts.values(), deltas(work), strict=True):
        hybrid = {**merged, **{n: t for n, t in expert.encoder.items() if n.startswith("blocks.1")}}
        x = inputs_in(work, hybrid, FC2).numpy()
        gram = x.T @ x / len(x)
        gram = np.where(np.eye(128, dtype=bool), gram, 0.5 * gram)
        grams += gram
        pull += delta[f"{FC2}.weight"].double().numpy() @ gram
    expected = work.base[f"{FC2}.weight"].numpy() + 1.5 * pull @ np.linalg.inv(grams)
    assert_close(merged[f"{FC2}.weight"].double().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_first_block_is_that_of_regmean_if_experts_share_their_embedding(place: Path) -> None:
    work = work_with(place)
    shared = {name: work.base[name] for name in work.base if not name.startswith("blocks")}
    work.experts = {
        task: replace(one, encoder={**one.encoder, **shared}) for task, one in work.experts.items()
    }
    walk = walked(work, METHODS[METHOD], deltas(work), {})
    evidence = [KINDS["grams"].gather(work, task, work.unlabelled(IMAGES)) for task in TASKS]
    plain = METHODS["regmean"](deltas(work), evidence)
    for name, tensor in walk.items():
        if name.startswith("blocks.0"):
            assert_close(tensor, plain[name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(walk[f"{FC2}.weight"], plain[f"{FC2}.weight"], rtol=1e-3, atol=1e-4)


def test_what_lies_outside_of_blocks_takes_the_mean(place: Path) -> None:
    work = work_with(place)
    walk, (one, other) = walked(work, METHODS[METHOD], deltas(work), {}), deltas(work)
    assert list(walk) == list(work.base)
    for name in walk:
        if not name.startswith("blocks"):
            assert_close(walk[name], (one[name] + other[name]) / 2)


def test_a_single_expert_comes_back(place: Path) -> None:
    recipe = write_recipe(place, tasks=TASKS[:1], merge={"method": METHOD, "images": IMAGES})
    work = opened(recipe)
    merged = merge(work).tensors
    for name, tensor in work.experts[TASKS[0]].encoder.items():
        assert_close(merged[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_order_of_tasks_changes_nothing(place: Path) -> None:
    found = []
    for tasks in (TASKS, TASKS[::-1]):
        merging = {"method": METHOD, "images": IMAGES}
        found.append(merge(opened(write_recipe(place, tasks=tasks, merge=merging))).tensors)
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_lines_on_top_scale_what_the_walk_gave(place: Path) -> None:
    work = work_with(place, lines={"alpha": 0.5, "beta": 0.25})
    merged, walk = merge(work).tensors, walked(work, METHODS[METHOD], deltas(work), {})
    for name, scale in ((f"{FC2}.weight", 0.75), ("pos_embed", 0.5)):
        assert_close(merged[name], work.base[name] + scale * walk[name])


def test_no_hook_stays(place: Path) -> None:
    work = work_with(place)
    walked(work, METHODS[METHOD], deltas(work), {})
    assert not any(module._forward_hooks for module in work.encoder.vit.modules())
