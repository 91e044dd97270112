"""Methods of the inputs' second moments, held to least squares on inputs, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.merge import METHODS
from simo_runtime.errors import RecipeError
from tests.merging import Matrix

NORM = "blocks.0.norm1.weight"
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


def test_lot_is_least_squares_of_the_smallest_norm() -> None:
    # two rows a task: rank 6 of 8 channels, where numpy's lstsq takes the smallest solution too
    draw = np.random.default_rng(0)
    x, tau = draw.normal(size=(TASKS, 2, 8)), draw.normal(size=(TASKS, OUT, 8))
    given = [{WEIGHT: torch.from_numpy(one).float()} for one in tau]
    tau = np.stack([one[WEIGHT].double().numpy() for one in given])
    merged = METHODS["lot"](given, evidence(x))[WEIGHT]
    expected = squares(x, np.einsum("trn,tmn->trm", x, tau))
    assert_close(merged.double().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_lot_of_full_rank_is_regmean_with_whole_gram_matrices() -> None:
    x, given = inputs(), deltas()
    one = METHODS["lot"](given, evidence(x), rcond=1e-12)
    other = METHODS["regmean"](given, evidence(x), off_diagonal=1.0)
    assert_close(one[WEIGHT], other[WEIGHT])
    assert_close(one[BIAS], other[BIAS])


def test_lot_leaves_the_base_where_no_input_is() -> None:
    x, given = inputs(), deltas()
    x[..., 2] = 0.0
    assert float(METHODS["lot"](given, evidence(x))[WEIGHT][:, 2].abs().max()) < 1e-12
    assert not METHODS["lot"](given, evidence(0 * x))[WEIGHT].any()


def test_lot_weighs_every_channel_of_a_norm_by_its_mean_square() -> None:
    # (3 * 1 + 1 * 5) / 4 = 2; the channel that no expert uses takes the mean, 3
    given = [{NORM: torch.tensor([1.0, 2.0])}, {NORM: torch.tensor([5.0, 4.0])}]
    seen = [{NORM: torch.tensor([3.0, 0.0])}, {NORM: torch.tensor([1.0, 0.0])}]
    assert METHODS["lot"](given, seen)[NORM].tolist() == [2.0, 3.0]
    assert METHODS["regmean"](given, seen)[NORM].tolist() == [3.0, 3.0]


# ESM

OTHER = "blocks.1.mlp.fc1.weight"


def in_numpy(x_TRN: Matrix, tau_TMN: Matrix, power: float) -> Matrix:
    """ESM of one matrix by the paper's way: the outputs' shifts on every row, and their SVD."""
    bases, parts = [], []
    for x, tau in zip(x_TRN, tau_TMN, strict=True):
        shifts = x @ tau.T
        bases.append(np.linalg.svd(shifts)[2][: tau.shape[0] // len(tau_TMN)].T)
        parts.append(bases[-1].T @ tau)
    sizes = np.array([np.linalg.norm(part) for part in parts])
    scales = (sizes / sizes.mean()) ** power
    whole = np.concatenate([scale * part for scale, part in zip(scales, parts, strict=True)])
    columns = np.linalg.norm(whole, axis=0)
    whole = whole * (columns / columns.mean()) ** power
    u, s, v = np.linalg.svd(whole, full_matrices=False)
    left, _, right = np.linalg.svd(np.concatenate(bases, axis=1), full_matrices=False)
    return np.asarray(left @ right @ (u @ v) * s.mean())


@pytest.mark.parametrize(("out", "width"), [(12, 5), (6, 9)])
@pytest.mark.parametrize("power", [0.0, 2.0])
def test_esm_is_its_formula(out: int, width: int, power: float) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(TASKS, 40, width)) + 0.5
    stack = torch.from_numpy(draw.normal(size=(2, TASKS, out, width))).float()
    tau = stack.double().numpy() * np.array([1.0, 3.0])[:, None, None, None]
    given = [{WEIGHT: tau[0][t], OTHER: tau[1][t]} for t in range(TASKS)]
    seen = [one | {OTHER: one[WEIGHT]} for one in evidence(x)]
    tensors = [{name: torch.from_numpy(one) for name, one in each.items()} for each in given]
    merged = METHODS["esm"](tensors, seen, alpha=0.5, power=power)
    alone = [in_numpy(x, one, power) for one in tau]
    norms = np.array([np.linalg.norm(one) for one in alone])
    layers = (norms / norms.mean()) ** power
    for name, one, layer in zip((WEIGHT, OTHER), alone, layers, strict=True):
        found = merged[name].double().numpy()
        assert_close(found, 0.5 * layer * one, rtol=1e-4, atol=1e-5)


def test_esm_by_hand() -> None:
    # Each task shifts one output by one input, both alike in size: nothing is in anyone's way.
    given = [
        {WEIGHT: torch.tensor([[2.0, 0.0], [0.0, 0.0]])},
        {WEIGHT: torch.tensor([[0.0, 0.0], [0.0, 2.0]])},
    ]
    merged = METHODS["esm"](given, [{WEIGHT: torch.eye(3)}] * 2, alpha=0.5)[WEIGHT]
    assert_close(merged, torch.eye(2))


def test_esm_sees_only_shifts_that_inputs_make() -> None:
    # The large weight of the first task multiplies an input that is always zero. What is left is
    # the same twice, of singular values sqrt(2) and 0: their mean is sqrt(1/2).
    given = [
        {WEIGHT: torch.tensor([[100.0, 0.0], [0.0, 1.0]])},
        {WEIGHT: torch.tensor([[0.0, 0.0], [0.0, 1.0]])},
    ]
    seen = [{WEIGHT: torch.diag(torch.tensor([0.0, 1.0, 1.0]))}] * 2
    merged = METHODS["esm"](given, seen, alpha=1.0, power=0)[WEIGHT]
    expected = torch.tensor([[0.0, 0.0], [0.0, 0.5**0.5]])
    assert_close(merged, expected, rtol=0, atol=1e-6)
