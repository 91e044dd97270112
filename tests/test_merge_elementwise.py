"""Methods that look at every weight by itself, worked by hand."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from simo_build.merge import METHODS
from simo_runtime.errors import RecipeError
from tests.merging import PARAMS, delta, vectors


def test_task_arithmetic_by_hand() -> None:
    # 0.5 * ([2, -1, 0] + [4, 1, -6]) = 0.5 * [6, 0, -6]
    first, second = {"w": torch.tensor([2.0, -1.0, 0.0])}, {"w": torch.tensor([4.0, 1.0, -6.0])}
    merged = METHODS["task_arithmetic"]([first, second], alpha=0.5)
    assert merged["w"].tolist() == [3.0, 0.0, -3.0]


def test_average_by_hand() -> None:
    # ([3, 0] + [0, 3] + [3, 3]) / 3
    values = ([3.0, 0.0], [0.0, 3.0], [3.0, 3.0])
    merged = METHODS["average"]([{"w": torch.tensor(value)} for value in values])
    assert merged["w"].tolist() == [2.0, 2.0]


def test_the_sum_over_tasks_loses_no_small_delta_beside_a_large_one() -> None:
    # in float32, 2^24 + 1 - 2^24 is 0
    deltas = [{"w": torch.tensor([value])} for value in (2.0**24, 1.0, -(2.0**24))]
    assert METHODS["task_arithmetic"](deltas, alpha=1.0)["w"].tolist() == [1.0]


def test_a_sum_that_float64_rounds_does_not_depend_on_the_order_of_tasks() -> None:
    # 1e20 + 1 - 1e20 is 0, 1e20 - 1e20 + 1 is 1
    orders = itertools.permutations(vectors([1e20], [1.0], [-1e20]))
    found = {float(METHODS["task_arithmetic"](order, alpha=1.0)["w"]) for order in orders}
    assert len(found) == 1


def test_magmax_by_hand() -> None:
    # the larger of |1| and |-2|, of |-3| and |1|; of +2 and -2 the positive one; halved
    merged = METHODS["magmax"](vectors([1.0, -3.0, -2.0, 2.0], [-2.0, 1.0, 2.0, -2.0]))
    assert merged["w"].tolist() == [-1.0, -1.5, 1.0, 1.0]


def test_breadcrumbs_by_hand() -> None:
    # of ten, int(0.1 * 10) = 1 goes (-10), the next int(0.2 * 10) = 2 stay (9 and -8); halved
    row = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0, 9.0, -10.0]
    merged = METHODS["breadcrumbs"](vectors(row), alpha=0.5, beta=0.2, gamma=0.1)
    assert merged["w"].tolist() == [0.0] * 7 + [-4.0, 4.5, 0.0]


def test_breadcrumbs_drops_nothing_if_the_share_is_less_than_one_weight() -> None:
    merged = METHODS["breadcrumbs"](vectors([1.0, 2.0, 3.0, 4.0]), alpha=1, beta=0.5, gamma=0.1)
    assert merged["w"].tolist() == [0.0, 0.0, 3.0, 4.0]


def test_consensus_by_hand() -> None:
    # sum [2, 2, 0.5]; the first task needs all: 1 > 0.5 * 1, 2 > 0.5 * 0, 1 > 0.5 * 0.5;
    # the second only the first weight: 1 > 0.5 * 1, not 0 > 0.5 * 2, not 0.5 > 0.5 * 1
    deltas = vectors([1.0, 2.0, 1.0], [1.0, 0.0, -0.5])
    merged = METHODS["consensus"](deltas, alpha=0.5, threshold=0.5)
    assert merged["w"].tolist() == [1.0, 0.0, 0.0]


def test_consensus_refuses_more_tasks_than_there_are() -> None:
    with pytest.raises(RecipeError, match=r"merge\.min_tasks is 2, but there are 1 tasks"):
        METHODS["consensus"]([delta(0)], alpha=1.0, threshold=0.4)


def test_dare_by_hand() -> None:
    # a weight of 1 is dropped or divided by 1 - 0.75; of 4000 about a quarter stays (5 sigma: 137)
    found = METHODS["dare"]([{"w": torch.ones(4000)}], alpha=1.0, drop=0.75)["w"]
    assert set(found.tolist()) == {0.0, 4.0}
    assert abs(int((found > 0).sum()) - 1000) < 137


@pytest.mark.parametrize("name", ["dare", "della"])
def test_another_seed_drops_other_weights(name: str) -> None:
    one, other = (METHODS[name]([delta(0)], **PARAMS[name], seed=seed) for seed in (0, 1))
    assert not torch.equal(one["pos_embed"], other["pos_embed"])


def test_what_dare_drops_of_a_task_does_not_depend_on_the_others() -> None:
    both = METHODS["dare"]([delta(0), delta(1)], alpha=1.0, drop=0.5)
    alone = [METHODS["dare"]([delta(seed)], alpha=1.0, drop=0.5) for seed in (0, 1)]
    for name, tensor in both.items():
        assert_close(tensor, alone[0][name] + alone[1][name])


def test_two_tensors_that_are_equal_lose_different_weights() -> None:
    merged = METHODS["dare"]([{"a": torch.ones(100), "b": torch.ones(100)}], alpha=1.0, drop=0.5)
    assert not torch.equal(merged["a"], merged["b"])
