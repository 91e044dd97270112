"""Merging methods: what every one of them promises, and the shipped ones worked by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from simo_build.merge import METHODS, MergeMethod, candidates, method_named
from simo_runtime.errors import RecipeError, UnknownNameError

# Parameters under which a method may be called; a new method with required ones adds a line.
PARAMS: dict[str, dict[str, Any]] = {"task_arithmetic": {"alpha": 0.3}}
# Parameters under which the merge of one delta is that delta.
IDENTITY: dict[str, dict[str, Any]] = {"task_arithmetic": {"alpha": 1.0}}


def delta(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"w": (3, 4), "b": (4,), "scalar": (), "empty": (0, 5)}
    return {name: torch.randn(s, generator=generator).to(dtype) for name, s in shapes.items()}


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
class TestEveryMethod:
    def merge(self, method: MergeMethod, deltas: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return method(deltas, **PARAMS.get(method.name, {}))

    def test_keeps_names_and_shapes(self, method: MergeMethod) -> None:
        merged = self.merge(method, [delta(0), delta(1)])
        shapes = {name: tensor.shape for name, tensor in merged.items()}
        assert shapes == {name: tensor.shape for name, tensor in delta(0).items()}

    def test_leaves_its_inputs_alone(self, method: MergeMethod) -> None:
        deltas = [delta(0), delta(1), delta(2)]
        self.merge(method, deltas)
        for seed, given in enumerate(deltas):
            assert all(torch.equal(given[name], tensor) for name, tensor in delta(seed).items())

    def test_does_not_share_memory_with_its_inputs(self, method: MergeMethod) -> None:
        given = delta(0)
        merged = method([given], **IDENTITY.get(method.name, {}))
        assert merged["w"].data_ptr() != given["w"].data_ptr()

    def test_does_not_depend_on_the_order_of_tasks(self, method: MergeMethod) -> None:
        one = self.merge(method, [delta(0), delta(1), delta(2)])
        other = self.merge(method, [delta(2), delta(0), delta(1)])
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_gives_float32(self, method: MergeMethod, dtype: torch.dtype) -> None:
        merged = self.merge(method, [delta(0, dtype), delta(1, dtype)])
        assert {tensor.dtype for tensor in merged.values()} == {torch.float32}

    def test_gives_a_single_expert_back(self, method: MergeMethod) -> None:
        merged = method([delta(0)], **IDENTITY.get(method.name, {}))
        for name, tensor in delta(0).items():
            assert torch.equal(merged[name], tensor)

    def test_gives_zero_for_experts_that_did_not_move(self, method: MergeMethod) -> None:
        still = {name: torch.zeros_like(tensor) for name, tensor in delta(0).items()}
        merged = self.merge(method, [still, still])
        assert all(torch.equal(merged[name], tensor) for name, tensor in still.items())

    def test_gives_the_same_twice(self, method: MergeMethod) -> None:
        one, other = (self.merge(method, [delta(0), delta(1)]) for _ in range(2))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    def test_names_its_paper(self, method: MergeMethod) -> None:
        assert method.paper.startswith("https://")


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


def test_a_whole_number_is_a_number() -> None:
    assert METHODS["task_arithmetic"]([{"w": torch.ones(1)}], alpha=2)["w"].tolist() == [2.0]


@pytest.mark.parametrize("alpha", [True, "0.3", None, [0.3]])
def test_alpha_must_be_a_number(alpha: object) -> None:
    with pytest.raises(RecipeError, match=r"merge\.alpha is .*; it must be a number"):
        METHODS["task_arithmetic"]([delta(0)], alpha=alpha)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_alpha_must_be_finite(alpha: float) -> None:
    with pytest.raises(RecipeError, match=r"merge\.alpha is .*; it must be a finite number"):
        METHODS["task_arithmetic"]([delta(0)], alpha=alpha)


def test_an_unknown_method_gives_the_closest_one() -> None:
    with pytest.raises(
        UnknownNameError, match=r"merge\.method 'task_aritmetic'; did you mean 'task_arithmetic'\?"
    ):
        method_named("task_aritmetic")


def test_an_unknown_parameter_gives_the_closest_one() -> None:
    with pytest.raises(
        UnknownNameError, match=r"parameter of merge\.method task_arithmetic 'alhpa'.*'alpha'"
    ):
        METHODS["task_arithmetic"]([delta(0)], alhpa=0.3)


def test_a_missing_parameter_is_asked_for() -> None:
    with pytest.raises(RecipeError, match="task_arithmetic needs alpha; give it in `params`"):
        METHODS["task_arithmetic"].check([])


def test_a_method_without_parameters_refuses_any() -> None:
    with pytest.raises(UnknownNameError, match=r"parameter of merge\.method average 'alpha'"):
        METHODS["average"].check(["alpha"])


def test_candidates_are_every_combination_in_order_the_last_parameter_fastest() -> None:
    found = candidates({"c": 9}, {"a": [1.0, 2.0], "b": [5.0, 6.0]})
    assert found == [
        {"c": 9, "a": 1.0, "b": 5.0},
        {"c": 9, "a": 1.0, "b": 6.0},
        {"c": 9, "a": 2.0, "b": 5.0},
        {"c": 9, "a": 2.0, "b": 6.0},
    ]


def test_nothing_to_choose_leaves_one_candidate() -> None:
    assert candidates({"alpha": 0.3}, {}) == [{"alpha": 0.3}]
