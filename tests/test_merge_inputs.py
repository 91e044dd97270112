"""Methods of the inputs' second moments, held to least squares on inputs, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.merge import METHODS
from simo_runtime.errors import RecipeError
from tests.merging import Matrix

WEIGHT, BIAS = "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias"
TASKS, ROWS, OUT, IN = 3, 30, 4, 6


def inputs(rows: int = ROWS) -> Matrix:
    """Inputs of the layer in every expert (T, R, N), with means, and of very different sizes."""
    draw = np.random.default_rng(0)
    sizes = 10.0 ** np.arange(-2, IN - 2)
    return (draw.normal(size=(TASKS, rows, IN)) + 0.5) * sizes


def evidence(x_TRN: Matrix) -> list[dict[str, Tensor]]:
    ones = np.ones((*x_TRN.shape[:2], 1))
    augmented = np.concatenate([x_TRN, ones], axis=2)
    means = np.einsum("trn,trm->tnm", augmented, augmented) / x_TRN.shape[1]
    return [{WEIGHT: torch.from_numpy(one)} for one in means]


def deltas() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        {BIAS: torch.randn(OUT, generator=draw), WEIGHT: torch.randn(OUT, IN, generator=draw)}
        for _ in range(TASKS)
    ]


def squares(x_TRN: Matrix, targets_TRM: Matrix) -> Matrix:
    """The matrix whose outputs are nearest to all targets, (M, N), by least squares on the rows."""
    width = x_TRN.shape[2]
    found, *_ = np.linalg.lstsq(x_TRN.reshape(-1, width), targets_TRM.reshape(-1, OUT))
    return np.asarray(found.T)


def targets(x_TRN: Matrix, given: list[dict[str, Tensor]], *, bias: bool = False) -> Matrix:
    one = [x @ d[WEIGHT].double().numpy().T for x, d in zip(x_TRN, given, strict=True)]
    return np.stack(one) + (np.stack([[d[BIAS].double().numpy()] for d in given]) if bias else 0)


def test_regmean_is_least_squares_on_the_inputs_of_all_experts() -> None:
    x, given = inputs(), deltas()
    merged = METHODS["regmean"](given, evidence(x), off_diagonal=1.0)
    expected = squares(x, targets(x, given))
    assert_close(merged[WEIGHT].double().numpy(), expected, rtol=1e-5, atol=1e-6)
    mean = torch.stack([one[BIAS] for one in given]).mean(dim=0)
    assert_close(merged[BIAS], mean)


def test_regmean_can_solve_for_the_bias_too() -> None:
    x, given = inputs(), deltas()
    merged = METHODS["regmean"](given, evidence(x), off_diagonal=1.0, bias="joint")
    augmented = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
    expected = squares(augmented, targets(x, given, bias=True))
    assert_close(merged[WEIGHT].double().numpy(), expected[:, :-1], rtol=1e-5, atol=1e-5)
    assert_close(merged[BIAS].double().numpy(), expected[:, -1], rtol=1e-5, atol=1e-5)
    assert list(merged) == [BIAS, WEIGHT]


def test_regmean_scales_what_is_off_the_diagonal() -> None:
    x, given = inputs(), deltas()
    merged = METHODS["regmean"](given, evidence(x), off_diagonal=0.3)
    grams = np.einsum("trn,trm->tnm", x, x)
    grams = np.where(np.eye(IN, dtype=bool), grams, 0.3 * grams)
    pull = sum(d[WEIGHT].double().numpy() @ g for d, g in zip(given, grams, strict=True))
    expected = pull @ np.linalg.inv(grams.sum(axis=0))
    assert_close(merged[WEIGHT].double().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_regmean_of_the_diagonal_alone_weighs_every_channel_by_its_size() -> None:
    x, given = inputs(), deltas()
    merged = METHODS["regmean"](given, evidence(x), off_diagonal=0.0, alpha=2.0)
    weights = (x**2).sum(axis=1)
    stack = np.stack([d[WEIGHT].double().numpy() for d in given])
    expected = 2 * np.einsum("tmn,tn->mn", stack, weights) / weights.sum(axis=0)
    assert_close(merged[WEIGHT].double().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_regmean_on_the_same_inputs_is_the_mean() -> None:
    given, same = deltas(), np.broadcast_to(inputs()[:1], (TASKS, ROWS, IN))
    merged = METHODS["regmean"](given, evidence(same))
    assert_close(merged[WEIGHT], torch.stack([one[WEIGHT] for one in given]).mean(dim=0))


def test_regmean_refuses_inputs_that_do_not_tell_channels_apart() -> None:
    # three tasks of one row each: rank 3 of 6 channels
    x, given = inputs(rows=1), deltas()
    with pytest.raises(RecipeError, match=r"inputs of blocks\.0\.mlp\.fc1\.weight do not tell"):
        METHODS["regmean"](given, evidence(x), off_diagonal=1.0)
    merged = METHODS["regmean"](given, evidence(x), off_diagonal=0.9)
    assert merged[WEIGHT].isfinite().all()


def test_a_channel_that_is_zero_everywhere_takes_the_mean_and_changes_no_other() -> None:
    x, given = inputs(), deltas()
    x[..., 2] = 0.0
    merged = METHODS["regmean"](given, evidence(x), off_diagonal=1.0)[WEIGHT]
    alive = [0, 1, 3, 4, 5]
    mean = torch.stack([one[WEIGHT] for one in given]).mean(dim=0)
    assert_close(merged[:, 2], mean[:, 2])
    expected = squares(x[..., alive], targets(x, given))
    assert_close(merged[:, alive].double().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_channel_that_one_expert_alone_feeds_is_that_experts() -> None:
    x, given = inputs(), deltas()
    x[1:, :, 2] = 0.0
    merged = METHODS["regmean"](given, evidence(x), off_diagonal=0.0)[WEIGHT]
    assert_close(merged[:, 2], given[0][WEIGHT][:, 2])
