"""AWD, worked by hand and held to its formula."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.merge import METHODS
from simo_build.merge.disentangle import disentangling, inner_products, redundancy
from tests.merging import delta, vectors


def test_awd_by_hand() -> None:
    # Unit vectors with cos 0.6: the slope's weight of each is (2 / 2) * (0.6 - 1) = -0.4, so a step
    # of 0.5 takes 0.2 of both. From each, 0.2 * (first + second) goes; 0.6 of the sum is left.
    merged = METHODS["awd"](vectors([1.0, 0.0], [0.6, 0.8]), alpha=1.0, steps=1, lr=0.5)
    assert_close(merged["w"], torch.tensor([0.96, 0.48]))


def test_orthogonal_deltas_are_left_as_they_are() -> None:
    merged = METHODS["awd"](vectors([3.0, 0.0], [0.0, -2.0]), alpha=0.5)
    assert merged["w"].tolist() == [1.5, -1.0]


def objective(vectors_Td: Tensor, redundant_d: Tensor, penalty: float) -> Tensor:
    """Equations 9 to 11, over ordered pairs."""
    left_Td = vectors_Td - redundant_d
    pairs = itertools.permutations(range(len(left_Td)), 2)
    cosines = [torch.cosine_similarity(left_Td[i], left_Td[j], dim=0).abs() for i, j in pairs]
    return torch.stack(cosines).mean() + penalty * redundant_d.norm()


def flat_double(seeds: range, shared: float) -> Tensor:
    """Whole vectors (T, d) in float64 that have something in common."""
    whole = [torch.cat([t.flatten() for t in delta(seed).values()]).double() for seed in seeds]
    return torch.stack(whole) + shared * whole[0]


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_awd_is_its_formula(tasks: int) -> None:
    # gradient descent on the redundant vector itself, by autograd in float64
    tau = flat_double(range(tasks), 0.5).float()
    redundant = torch.zeros(tau.shape[1], dtype=torch.float64, requires_grad=True)
    for step in range(40):
        # the norm has no gradient at zero
        loss = objective(tau.double(), redundant, penalty=0.1 if step else 0.0)
        (slope,) = torch.autograd.grad(loss, redundant)
        redundant = (redundant - 0.5 * slope).detach().requires_grad_()
    expected = 0.3 * (tau.double() - redundant.detach()).sum(dim=0)
    merged = METHODS["awd"]([{"w": one} for one in tau], alpha=0.3, steps=40, lr=0.5)["w"]
    assert_close(merged.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_mean_cosine_away_from_zero() -> None:
    tau = flat_double(range(4), 0.5)
    shares = torch.tensor([0.2, -0.3, 0.1, 0.4], dtype=torch.float64)
    redundant = (shares @ tau).requires_grad_()
    (slope,) = torch.autograd.grad(objective(tau, redundant, penalty=0.0), redundant)
    found = disentangling(tau @ tau.T, shares) @ (tau - redundant.detach())
    assert_close(found, slope, rtol=1e-10, atol=1e-12)


def test_the_steps_make_the_objective_smaller() -> None:
    tau = flat_double(range(3), 1.0) / 20  # norms near 1, where the penalty does not rule
    losses = []
    for steps in (0, 30, 300):
        shares = redundancy(tau @ tau.T, penalty=0.1, lr=0.01, steps=steps)
        losses.append(float(objective(tau, shares @ tau, penalty=0.1)))
    assert losses[0] > losses[1] > losses[2]


def test_a_large_penalty_leaves_the_deltas_almost_as_they_are() -> None:
    tau = flat_double(range(3), 1.0)
    shares = redundancy(tau @ tau.T, penalty=10.0, lr=1e-4, steps=300)
    assert float((shares @ tau).norm()) < 1e-2 * float(tau[0].norm())


def test_inner_products_run_over_all_tensors() -> None:
    # 1 * 3 + 2 * -1 = 1, and the norms 1 + 4 and 9 + 1
    given = [
        {"a": torch.tensor([1.0]), "b": torch.tensor([[2.0]])},
        {"a": torch.tensor([3.0]), "b": torch.tensor([[-1.0]])},
    ]
    assert inner_products(given).tolist() == [[5.0, 1.0], [1.0, 10.0]]


def test_an_expert_that_did_not_move_takes_no_part() -> None:
    still = {name: torch.zeros_like(tensor) for name, tensor in delta(0).items()}
    without = METHODS["awd"]([delta(0), delta(1)], alpha=1.0, lr=1.0)
    merged = METHODS["awd"]([delta(0), still, delta(1)], alpha=1.0, lr=1.0)
    for name, tensor in without.items():
        assert_close(merged[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_redundant_vector_that_is_a_delta_leaves_that_one_out() -> None:
    # nothing is left of the first delta: its pairs have no cosine, the other pair has one
    tau = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    shares = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    found = disentangling(tau @ tau.T, shares)
    assert found[0] == 0
    assert bool(found[1:].isfinite().all())
    assert bool((found[1:] != 0).all())
