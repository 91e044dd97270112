"""Calibration: cases whose outcome is known, the closed forms by hand, and what the log says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.build import build
from simo_build.costs import of_realign, together
from simo_build.data import Samples
from simo_build.encoder import Encoder, randomise
from simo_build.loading import load_recipe
from simo_build.merge import METHODS
from simo_build.moments import Sums
from simo_build.progress import Silent
from simo_build.realign.bench import Bench, Log, SharedModel
from simo_build.realign.calibrate import calibrate
from simo_build.realign.featcal import (
    Problem,
    Settings,
    featcal,
    see_matrix,
    see_norm,
    see_scale,
    solved_matrix,
    solved_norm,
    solved_scale,
)
from simo_build.realign.sidebyside import distances
from simo_build.recipe import EncoderPart, ImagePart
from simo_build.statedict import StateDict
from simo_build.steps import CALIBRATIONS, CalibrateStep
from simo_build.workshop import Workshop
from simo_runtime.errors import RecipeError
from tests.tiny import SIZE, SPLITS, TASKS, moved, opened, write_recipe

IMAGES = 6
EXACT = Settings(alpha=1.0, rho=1.0, ridge=1e-6)
USUAL = Settings(**CALIBRATIONS["featcal"])
RICH = {"init_values": 0.5, "qk_norm": True, "reg_tokens": 1}  # of an encoder that has all layers


@pytest.fixture
def work(place: Path) -> Workshop:
    return opened(write_recipe(place, realign=[]))


def made(**options: Any) -> Encoder:
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, **options}
    part = EncoderPart(model="vit_tiny_patch16_224", options=shape, taps=(1, 2), norm=True)
    encoder = Encoder(part, ImagePart(size=SIZE))
    randomise(encoder, 0)
    return encoder.eval()


def base_of(encoder: Encoder) -> StateDict:
    return {name: tensor.clone() for name, tensor in encoder.weights().items()}


def photos(count: int = 16) -> Samples:
    draw = np.random.default_rng(0)
    return Samples(draw.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8), {})


@torch.no_grad()
def taps(encoder: Encoder, weights: StateDict, samples: Samples) -> list[Tensor]:
    encoder.load(weights, source="a test")
    return encoder(torch.from_numpy(samples.images))


def off(one: list[Tensor], other: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True)]


def solved(encoder: Encoder, problem: Problem, samples: Samples) -> StateDict:
    return featcal(encoder, problem, samples, progress=Silent())


def calibrated(work: Workshop, start: StateDict, **step: Any) -> tuple[StateDict, Log]:
    whole = CalibrateStep(step="calibrate", **{"images": IMAGES, **step})
    model, log = calibrate(Bench(work), SharedModel(start, work.expert_heads()), whole)
    return model.encoder, log


# Cases whose outcome is known


@pytest.mark.parametrize("options", [{}, RICH], ids=["plain", "rich"])
def test_one_expert_comes_back_from_a_perturbed_start(options: dict[str, Any]) -> None:
    # every tensor is moved, tokens, positions and the final norm too; patches tell no more of the
    # embedding than its outputs, so that these are compared, also on other images for the blocks
    encoder, samples = made(**options), photos()
    base = base_of(encoder)
    expert, start = (moved(base, seed=seed, scale=0.1) for seed in (5, 6))
    found = solved(encoder, Problem([expert], start, base, EXACT), samples)
    want = taps(encoder, expert, samples)
    assert min(off(taps(encoder, start, samples), want)) > 0.3
    assert max(off(taps(encoder, found, samples), want)) < 5e-3


@pytest.mark.parametrize("options", [{}, RICH], ids=["plain", "rich"])
def test_nothing_changes_where_all_experts_are_the_shared_encoder(options: dict[str, Any]) -> None:
    encoder, samples = made(**options), photos(5)
    base = base_of(encoder)
    shared = moved(base, seed=5, scale=0.1)
    problem = Problem([shared, shared], shared, base, replace(USUAL, rho=1.0))
    for name, tensor in solved(encoder, problem, samples).items():
        assert_close(tensor, shared[name], rtol=1e-4, atol=1e-5)


def test_the_anchor_alone_stays_where_the_ridge_is_large() -> None:
    encoder, base = made(**RICH), base_of(made(**RICH))
    expert, shared = (moved(base, seed=seed, scale=0.1) for seed in (5, 6))
    problem = Problem([expert], shared, base, Settings(alpha=0.3, rho=2.0, ridge=1e6))
    for name, tensor in solved(encoder, problem, photos(5)).items():
        assert_close(tensor, 2 * shared[name] - base[name], rtol=1e-3, atol=1e-3)


def test_layers_are_solved_by_what_the_solved_ones_before_them_give() -> None:
    # fc2 of the last block, by least squares on what goes into it in the finished encoder
    encoder, samples, name = made(), photos(), "blocks.1.mlp.fc2.weight"
    base = base_of(encoder)
    experts = [moved(base, seed=seed, scale=0.1) for seed in (5, 6)]
    shared = moved(base, seed=7, scale=0.1)
    settings = Settings(alpha=0.4, rho=1.5, ridge=0.1)
    found = solved(encoder, Problem(experts, shared, base, settings), samples)

    def rows(weights: StateDict) -> np.ndarray[Any, np.dtype[np.float64]]:
        seen: list[Tensor] = []
        layer = encoder.vit.blocks[1].mlp.fc2
        handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        taps(encoder, weights, samples)
        handle.remove()
        return seen[0].flatten(0, 1).double().numpy()

    x = rows(found)
    gram, size = x.T @ x / len(x), np.linalg.norm(x.T @ x / len(x))
    anchor = 1.5 * shared[name].double().numpy() - 0.5 * base[name].double().numpy()
    left, right = 0.1 * np.eye(len(gram)), 0.1 * anchor.T
    for expert in experts:
        target = 0.4 * rows(expert) + 0.6 * x
        left = left + gram / size
        right = right + x.T @ target / len(x) / size @ expert[name].double().numpy().T
    expected = np.linalg.solve(left, right).T
    assert_close(found[name].double().numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", CALIBRATIONS)
def test_the_order_of_tasks_changes_nothing(place: Path, method: str) -> None:
    found = []
    for tasks in (TASKS, TASKS[::-1]):
        work = opened(write_recipe(place, tasks=tasks, realign=[]))
        start = moved(work.base, seed=9, scale=0.05)
        found.append(calibrated(work, start, method=method)[0])
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@pytest.mark.parametrize("method", ["regmean", "lot"])
def test_merging_methods_add_what_still_parts_the_experts(work: Workshop, method: str) -> None:
    start = moved(work.base, seed=9, scale=0.05)
    half = calibrated(work, start, method=method, alpha=0.5)[0]
    whole, log = calibrated(work, start, method=method)
    assert log["params"] == CALIBRATIONS[method]
    for name, tensor in whole.items():
        assert_close(half[name], (start[name] + tensor) / 2, rtol=1e-4, atol=1e-5)
        if name.endswith("mlp.fc1.bias"):
            experts = [one.encoder[name] for one in work.experts.values()]
            assert_close(tensor, sum(experts) / len(experts))
    assert METHODS[method].needs == "grams"


def test_images_that_say_too_little_are_told_of_as_the_steps(work: Workshop) -> None:
    with pytest.raises(RecipeError, match=r"^realign: calibrate by regmean: on these images the"):
        calibrated(work, work.base, method="regmean", off_diagonal=1.0, images=1)


# The closed forms, worked by hand


def problem_of(alpha: float, **tensors: list[float]) -> Problem:
    """Two experts, the shared encoder and the base, each with one number a tensor."""
    one, other, shared, base = (
        {name: torch.tensor([values[i]]) for name, values in tensors.items()} for i in range(4)
    )
    return Problem([one, other], shared, base, Settings(alpha=alpha, rho=2.0, ridge=0.5))


def test_a_matrix_by_hand() -> None:
    # x_s 1 and 3, so C = 5; experts see 2, 2 and 0, 4; alpha 0.5: cross 0.5 * 4 + 0.5 * 5 = 4.5
    # and 0.5 * 6 + 0.5 * 5 = 5.5; anchor 2 * 2 - 1 = 3
    problem = problem_of(0.5, w=[1.0, 3.0, 2.0, 1.0])
    named = {"weight": "w"}
    states = [
        {new: one[old].reshape(1, 1) for new, old in named.items()} for one in problem.experts
    ]
    shared, base = ({"weight": one["w"].reshape(1, 1)} for one in (problem.shared, problem.base))
    for one, value in zip([*states, shared, base], (0.0, 1.0, 2.0, 3.0), strict=True):
        one["bias"] = torch.tensor([value])
    seen = Sums({}, {})
    x = torch.tensor([[1.0], [3.0]])
    see_matrix(seen, x, [torch.tensor([[2.0], [2.0]]), torch.tensor([[0.0], [4.0]])])
    found = solved_matrix("weight", seen, Problem(states, shared, base, problem.settings))
    w = (4.5 * 1 / 5 + 5.5 * 3 / 5 + 0.5 * 3) / (2 + 0.5)
    assert_close(found["weight"], torch.tensor([[w]], dtype=torch.float64))
    # means of targets are 2; the anchor of the bias is 2 * 2 - 3 = 1
    left = (0 + 1 * 2 - w * 2) + (1 + 3 * 2 - w * 2)
    b = (left / 5 + 0.5 * 1) / (2 / 5 + 0.5)
    assert_close(found["bias"], torch.tensor([b], dtype=torch.float64))


def test_a_layer_scale_by_hand() -> None:
    # the same numbers as of the matrix
    seen = Sums({}, {})
    x = torch.tensor([[1.0], [3.0]])
    see_scale(seen, x, [torch.tensor([[2.0], [2.0]]), torch.tensor([[0.0], [4.0]])])
    found = solved_scale("gamma", seen, problem_of(0.5, gamma=[1.0, 3.0, 2.0, 1.0]))
    w = (4.5 * 1 / 5 + 5.5 * 3 / 5 + 0.5 * 3) / (2 + 0.5)
    assert_close(found["gamma"], torch.tensor([w], dtype=torch.float64))


def test_a_norm_is_two_equations_a_channel() -> None:
    # z -1 and 2: mean 0.5, square 2.5; anchors 3 and 1
    seen = Sums({}, {})
    see_norm(seen, torch.tensor([[-1.0], [2.0]]))
    problem = problem_of(0.3, weight=[1.0, 3.0, 2.0, 1.0], bias=[0.0, 1.0, 2.0, 3.0])
    found = solved_norm("weight", seen, problem)
    left = np.array([[2 * 2.5 + 0.5, 2 * 0.5], [2 * 0.5, 2 + 0.5]])
    right = np.array([2.5 * (1 + 3) + 0.5 * (0 + 1) + 0.5 * 3, 0.5 * (1 + 3) + (0 + 1) + 0.5 * 1])
    weight, bias = np.linalg.solve(left, right)
    assert_close(found["weight"], torch.tensor([weight]))
    assert_close(found["bias"], torch.tensor([bias]))


# What the log says


def test_distances_are_those_of_every_blocks_tokens() -> None:
    encoder = made()
    encoder.part = encoder.part.model_copy(update={"norm": False})
    base, samples = base_of(encoder), photos(3)
    experts = [moved(base, seed=seed, scale=0.1) for seed in (5, 6)]
    found = distances(encoder, [base, experts[0]], experts, samples)
    for state, told in zip((base, experts[0]), found, strict=True):
        own = taps(encoder, state, samples)
        every = [off(own, taps(encoder, one, samples)) for one in experts]
        assert_close(torch.tensor(told), torch.tensor(every).mean(dim=0), rtol=1e-4, atol=1e-6)


def test_the_log_says_how_much_nearer_the_experts_every_block_came(work: Workshop) -> None:
    start = moved(work.base, seed=9, scale=0.05)
    log = calibrated(work, start, alpha=1, rho=1)[1]
    assert log["params"] == {"alpha": 1, "rho": 1, "ridge": 0.2}
    before, after = (log["distances"][key] for key in ("before", "after"))
    assert len(before) == len(after) == 2
    assert all(new < old for new, old in zip(after, before, strict=True))


def test_no_step_of_an_optimiser_is_made(work: Workshop) -> None:
    log = calibrated(work, work.base)[1]
    costs = of_realign({"steps": [{"step": "calibrate", **log}, {"step": "head", "updates": 7}]})
    assert [cost.steps for cost in costs[:2]] == [0, 7]
    assert together(costs)["steps"] == 7


def test_without_candidates_nothing_of_select_is_looked_at(work: Workshop) -> None:
    log = calibrated(work, work.base)[1]
    assert {key: log[key] for key in ("images", "labels", "select_images", "select_labels")} == {
        "images": IMAGES,
        "labels": 0,
        "select_images": 0,
        "select_labels": 0,
    }


@pytest.mark.parametrize("by", ["select", "teachers"])
def test_the_best_of_all_candidates_and_the_start_stays(work: Workshop, by: str) -> None:
    start = moved(work.base, seed=9, scale=0.3)
    found, log = calibrated(work, start, choose={"rho": [1, 16], "alpha": [1]}, by=by)
    scores = [row["score"] for row in log["tried"]]
    assert [row["params"] and row["params"]["rho"] for row in log["tried"]] == [None, 1, 16]
    assert log["metric"] == max(scores)
    assert log["params"] == log["tried"][scores.index(max(scores))]["params"]
    again = calibrated(work, start, **log["params"])[0]
    assert all(torch.equal(found[name], tensor) for name, tensor in again.items())


def test_the_start_stays_where_every_candidate_is_worse(work: Workshop) -> None:
    start = next(iter(work.experts.values())).encoder
    choose = {"rho": [16], "ridge": [1e6]}
    found, log = calibrated(work, start, choose=choose, by="teachers")
    assert found is start
    assert log["params"] is None
    assert log["distances"]["before"] == log["distances"]["after"]


def test_more_images_than_there_are_is_refused_before_any_work(place: Path) -> None:
    step = {"step": "calibrate", "images": SPLITS["realign"] + 1}
    steps = [{"step": "head", "epochs": 1}, step]
    loaded = load_recipe(str(write_recipe(place, realign=steps)))
    with pytest.raises(RecipeError, match=r"realign\.1\.images is 7, but .* has 6 images"):
        build(loaded, place / "bundle", progress=Silent())
    assert not list(place.glob(".stages/realign*"))


def test_no_hook_stays(work: Workshop) -> None:
    calibrated(work, work.base)
    assert not any(module._forward_pre_hooks for module in work.encoder.vit.modules())
    assert not any(module._forward_hooks for module in work.encoder.vit.modules())
