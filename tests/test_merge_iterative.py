"""Methods that follow a gradient, worked by hand and held to their formulas."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from simo_build.merge import METHODS
from simo_build.merge.iterative import adam
from tests.merging import Matrix, delta, matrices, numpy_adam


@pytest.mark.parametrize("name", ["wudi", "doge"])
def test_an_iterative_method_leaves_what_is_no_matrix_or_takes_the_mean(name: str) -> None:
    left = METHODS[name]([delta(0), delta(1)], steps=2)
    mean = METHODS[name]([delta(0), delta(1)], steps=2, rest="mean")
    for rest in ("cls_token", "mask_token", "pos_embed", "patch_embed.proj.weight", "scalar"):
        assert not left[rest].any()
        assert_close(mean[rest], (delta(0)[rest] + delta(1)[rest]) / 2)


def test_adam_is_that_of_torch() -> None:
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    point = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.Adam([point], lr=0.01)
    for _ in range(30):
        point.grad = point.detach() ** 3 - 0.1
        optimiser.step()
    found = adam(start, lambda x: x**3 - 0.1, lr=0.01, steps=30)
    assert_close(found, point.detach(), rtol=1e-12, atol=0)


def test_wudi_by_hand() -> None:
    # Each task uses an input of its own, so the sum disturbs none: the gradient is zero.
    deltas = matrices([[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [0.0, 4.0]])
    merged = METHODS["wudi"](deltas)
    assert merged["blocks.0.w"].tolist() == [[1.0, 3.0], [2.0, 4.0]]


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_wudi_is_its_formula(shape: tuple[int, int]) -> None:
    # gradient of the sum of |(M - tau) tau'|^2 / |tau|^2, from the paper's form
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    tau = stack.double().numpy()

    def slope(point: Matrix) -> Matrix:
        return np.asarray(sum(2 * ((point - t) @ t.T) @ t / (t**2).sum() for t in tau))

    expected = numpy_adam(tau.sum(axis=0), slope, 1e-3, 50)
    merged = METHODS["wudi"]([{"w": one} for one in stack], steps=50, lr=1e-3)["w"]
    assert_close(merged.double().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_doge_by_hand() -> None:
    # The common space is everything, so nothing is shared; what is left is 0.1 * delta / |delta|.
    deltas = matrices([[3.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 5.0]])
    merged = METHODS["doge"](deltas, alpha=0.1, density=1.0, subspace=1)
    assert_close(merged["blocks.0.w"], 0.1 * torch.eye(2))


def test_doge_is_its_formula() -> None:
    # the loss is the sum over tasks and rows of e^2, e = row sum of tau * (tau - sum(w tau) - D W)
    stack = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    tau = stack.double().numpy()
    weights = 0.07 / np.sqrt((tau**2).sum(axis=(1, 2)))
    tops = [np.linalg.svd(one, full_matrices=False)[0][:, :4] for one in tau]
    basis = np.linalg.svd(np.concatenate(tops, axis=1), full_matrices=False)[0][:, :4]

    def slope(shared: Matrix) -> Matrix:
        target = np.einsum("t,tmn->mn", weights, tau) + weights.sum() * shared
        errors = (tau * (tau - target)).sum(axis=2, keepdims=True)
        gradient = (-2 * weights.sum() * errors * tau).sum(axis=0)
        return np.asarray(gradient - basis @ basis.T @ gradient)

    shared = numpy_adam(np.zeros((12, 8)), slope, 1e-3, 50)
    bound = np.sort(np.abs(tau).reshape(2, -1), axis=1)[:, 96 - round(0.3 * 96)]
    kept = np.abs(tau) >= bound[:, None, None]
    expected = np.einsum("t,tmn->mn", weights, (tau + shared) * kept)
    deltas = [{"w": one} for one in stack]
    merged = METHODS["doge"](deltas, subspace=2, steps=50, lr=1e-3)["w"]
    assert_close(merged.double().numpy(), expected, rtol=1e-4, atol=1e-6)
