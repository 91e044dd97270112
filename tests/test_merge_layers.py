"""LiNeS: scaling by depth."""

from typing import Any

import pytest
import torch

from simo_build.merge import METHODS, balanced_alpha, check_lines, lines_on_top, scaled_by_layer
from simo_runtime.errors import RecipeError
from tests.merging import vectors


def test_lines_by_hand() -> None:
    # the sum is 2 everywhere; blocks 0, 1, 2 take 0.5 + 1 * (0, 1/2, 1), the rest 0.5
    names = ["blocks.0.b", "blocks.1.b", "blocks.0.2.b", "norm.weight"]
    deltas = [{name: torch.ones(1) for name in names} for _ in range(2)]
    merged = METHODS["lines"](deltas, beta=1.0)
    assert [float(merged[name]) for name in names] == [1.0, 2.0, 3.0, 1.0]
    fixed = METHODS["lines"](deltas, beta=1.0, alpha=0.0)
    assert [float(fixed[name]) for name in names] == [0.0, 1.0, 2.0, 0.0]


def test_lines_works_on_top_of_any_method() -> None:
    # |sum|_1 = 8, |merged|_1 = 2, T = 2: alpha = 8 / 2 / 2
    deltas = [{"blocks.0.b": torch.tensor([1.0]), "blocks.1.b": torch.tensor([3.0])}] * 2
    merged = {"blocks.0.b": torch.tensor([1.0]), "blocks.1.b": torch.tensor([-1.0])}
    alpha = balanced_alpha(deltas, merged)
    assert alpha == 2.0
    scaled = scaled_by_layer(merged, alpha=alpha, beta=1.0)
    assert [float(tensor) for tensor in scaled.values()] == [2.0, -3.0]


def test_lines_on_top_balances_alpha_or_takes_a_number() -> None:
    # |sum|_1 = 8, |merged|_1 = 2, T = 2: alpha = 2; the last block gets beta more
    deltas = [{"blocks.0.b": torch.tensor([1.0]), "blocks.1.b": torch.tensor([3.0])}] * 2
    merged = {"blocks.0.b": torch.tensor([1.0]), "blocks.1.b": torch.tensor([-1.0])}
    balanced = lines_on_top(merged, deltas, beta=1.0)
    assert [float(tensor) for tensor in balanced.values()] == [2.0, -3.0]
    given = lines_on_top(merged, deltas, beta=1.0, alpha=0.5)
    assert [float(tensor) for tensor in given.values()] == [0.5, -1.5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": "x"}, r"merge\.lines\.beta is 'x'; it must be a number"),
        ({"beta": 1e7}, r"merge\.lines\.beta is .*; it must be a finite number"),
        ({"beta": 1, "alpha": "balance"}, r"merge\.lines\.alpha is 'balance'; it must be a number"),
    ],
)
def test_lines_on_top_refuses_what_is_no_number(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_lines(["blocks.0.b"], **given)


def test_lines_on_top_refuses_weights_without_blocks() -> None:
    with pytest.raises(RecipeError, match="no tensor is named like"):
        check_lines(["w"], beta=0.5)


def test_lines_refuses_weights_without_blocks() -> None:
    with pytest.raises(RecipeError, match="no tensor is named like"):
        METHODS["lines"](vectors([1.0]), beta=0.5)


def test_balancing_a_delta_of_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match="zero everywhere"):
        balanced_alpha(vectors([1.0]), vectors([0.0])[0])
