"""Merging methods: what every one of them promises, and the shipped ones worked by hand."""

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from simo_build.merge import (
    METHODS,
    MergeMethod,
    balanced_alpha,
    candidates,
    method_named,
    scaled_by_layer,
)
from simo_build.merge.iterative import adam
from simo_build.merge.matrices import polar, svd
from simo_build.merge.ranked import relative_rank
from simo_build.merge.reading import ordering
from simo_build.merge.selection import order_statistics
from simo_runtime.errors import RecipeError, UnknownNameError

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Parameters under which a method may be called; a new method with required ones adds a line.
PARAMS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"alpha": 0.3},
    "consensus": {"alpha": 0.3, "threshold": 0.4},
    "dare": {"alpha": 0.3, "drop": 0.5},
    "della": {"density": 0.5},
    "lines": {"beta": 0.5},
    "iso_c": {"alpha": 1.0},
    "iso_cts": {"alpha": 1.0},
    "wudi": {"steps": 20},
    "doge": {"steps": 20},
}
# Parameters under which the merge of one delta is that delta; other methods change it by design.
IDENTITY: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"alpha": 1.0},
    "average": {},
    "magmax": {"alpha": 1.0},
    "breadcrumbs": {"alpha": 1.0, "beta": 1.0, "gamma": 0.0},
    "consensus": {"alpha": 1.0, "threshold": 0.4, "min_tasks": 1},
    "dare": {"alpha": 1.0, "drop": 0.0},
    "della": {"density": 1.0, "epsilon": 0.0},
    "lines": {"alpha": 1.0, "beta": 0.0},
    "ties": {"density": 1.0},
    "tsv_m": {},
    "wudi": {"rest": "mean", "steps": 20},
}
SHAPES: dict[str, tuple[int, ...]] = {
    "cls_token": (1, 1, 6),
    "mask_token": (1, 6),
    "pos_embed": (1, 5, 6),
    "patch_embed.proj.weight": (6, 3, 2, 2),
    "blocks.0.attn.qkv.weight": (18, 6),
    "blocks.0.attn.qkv.bias": (18,),
    "blocks.1.mlp.fc1.weight": (12, 6),
    "blocks.1.mlp.fc2.weight": (6, 12),
    "blocks.1.ls2.gamma": (1,),
    "scalar": (),
    "empty": (0, 5),
}


def delta(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(s, generator=generator).to(dtype) for name, s in SHAPES.items()}


class Lazy(Mapping[str, Tensor]):
    """Reads a fresh tensor each time; counts the reads, and how many tensors are alive at once."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.reads, self.peak = tensors, Counter[str](), 0
        self.given: list[weakref.ref[Tensor]] = []

    def __getitem__(self, name: str) -> Tensor:
        fresh = self.tensors[name].clone()
        self.reads[name] += 1
        self.given = [one for one in self.given if one() is not None] + [weakref.ref(fresh)]
        self.peak = max(self.peak, len(self.given))
        return fresh

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
class TestEveryMethod:
    def merge(
        self, method: MergeMethod, deltas: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        return method(deltas, **PARAMS.get(method.name, {}))

    def test_keeps_names_and_shapes(self, method: MergeMethod) -> None:
        merged = self.merge(method, [delta(0), delta(1)])
        shapes = {name: tuple(tensor.shape) for name, tensor in merged.items()}
        assert shapes == SHAPES

    def test_gives_finite_values(self, method: MergeMethod) -> None:
        merged = self.merge(method, [delta(0), delta(1), delta(2)])
        assert all(bool(tensor.isfinite().all()) for tensor in merged.values())

    def test_leaves_its_inputs_alone(self, method: MergeMethod) -> None:
        for dtype in (torch.float32, torch.float64):
            deltas = [delta(seed, dtype) for seed in range(3)]
            self.merge(method, deltas)
            for seed, given in enumerate(deltas):
                same = delta(seed, dtype)
                assert all(torch.equal(given[name], tensor) for name, tensor in same.items())

    def test_does_not_share_memory_with_its_inputs(self, method: MergeMethod) -> None:
        given = delta(0)
        merged = method([given], **IDENTITY.get(method.name, {"alpha": 1.0}))
        assert all(merged[n].data_ptr() != given[n].data_ptr() for n in SHAPES if given[n].numel())

    def test_does_not_depend_on_the_order_of_tasks(self, method: MergeMethod) -> None:
        one = self.merge(method, [delta(0), delta(1), delta(2)])
        other = self.merge(method, [delta(2), delta(0), delta(1)])
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    def test_does_not_depend_on_the_number_of_threads(self, method: MergeMethod) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = {"blocks.0.weight": (64, 64), "blocks.0.bias": (40_000,)}  # long enough to share
        given = [
            {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
            for _ in range(2)
        ]
        threads, found = torch.get_num_threads(), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                found.append(self.merge(method, given))
        finally:
            torch.set_num_threads(threads)
        for name in shapes:
            assert_close(found[0][name], found[1][name], rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_gives_float32(self, method: MergeMethod, dtype: torch.dtype) -> None:
        merged = self.merge(method, [delta(0, dtype), delta(1, dtype)])
        assert {tensor.dtype for tensor in merged.values()} == {torch.float32}

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_merges_halves_in_float32(self, method: MergeMethod, dtype: torch.dtype) -> None:
        halves = [delta(0, dtype), delta(1, dtype)]
        merged = self.merge(method, halves)
        wide = self.merge(method, [{n: t.float() for n, t in half.items()} for half in halves])
        assert all(torch.equal(tensor, wide[name]) for name, tensor in merged.items())

    def test_reads_one_name_at_a_time(self, method: MergeMethod) -> None:
        lazy = [Lazy(delta(seed)) for seed in range(3)]
        merged = self.merge(method, lazy)
        assert max(one.peak for one in lazy) <= 2  # the next one is read before the last one goes
        assert max(max(one.reads.values()) for one in lazy) <= 6
        eager = self.merge(method, [delta(seed) for seed in range(3)])
        assert all(torch.equal(tensor, eager[name]) for name, tensor in merged.items())

    def test_gives_zero_for_experts_that_did_not_move(self, method: MergeMethod) -> None:
        still = {name: torch.zeros_like(tensor) for name, tensor in delta(0).items()}
        merged = self.merge(method, [still, still])
        assert all(torch.equal(merged[name], tensor) for name, tensor in still.items())

    def test_bears_one_expert_that_did_not_move(self, method: MergeMethod) -> None:
        still = {name: torch.zeros_like(tensor) for name, tensor in delta(0).items()}
        merged = self.merge(method, [delta(0), still])
        assert all(bool(tensor.isfinite().all()) for tensor in merged.values())

    def test_bears_the_same_expert_twice(self, method: MergeMethod) -> None:
        merged = self.merge(method, [delta(0), delta(0)])
        assert all(bool(tensor.isfinite().all()) for tensor in merged.values())

    def test_gives_the_same_twice(self, method: MergeMethod) -> None:
        one, other = (self.merge(method, [delta(0), delta(1)]) for _ in range(2))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    def test_names_its_paper(self, method: MergeMethod) -> None:
        assert method.paper.startswith("https://")

    def test_has_a_row_in_the_documentation(self, method: MergeMethod) -> None:
        rows = (DOCS / "merging.md").read_text(encoding="utf-8").splitlines()
        own = [row for row in rows if row.startswith(f"| `{method.name}` |")]
        assert sum(method.paper in row for row in own) == 1


@pytest.mark.parametrize("name", IDENTITY)
def test_a_single_expert_comes_back(name: str) -> None:
    merged = METHODS[name]([delta(0)], **IDENTITY[name])
    exact = name != "tsv_m"  # which goes through singular vectors
    for tensor_name, tensor in delta(0).items():
        tolerance = 0.0 if exact else 1e-6
        assert_close(merged[tensor_name], tensor, rtol=tolerance, atol=tolerance)


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


def test_deltas_are_sorted_by_the_first_tensor_that_tells_them_apart() -> None:
    given = [{"a": torch.zeros(2), "b": torch.full((2,), float(value))} for value in range(4)]
    orders = [[o[i] for i in ordering(o)] for o in itertools.permutations(given)]
    assert all([id(d) for d in order] == [id(d) for d in orders[0]] for order in orders)


def test_a_whole_number_is_a_number() -> None:
    assert METHODS["task_arithmetic"]([{"w": torch.ones(1)}], alpha=2)["w"].tolist() == [2.0]


@pytest.mark.parametrize("alpha", [True, "0.3", None, ["0.3"]])
def test_alpha_must_be_a_number(alpha: object) -> None:
    with pytest.raises(RecipeError, match=r"merge\.alpha(\[0\])? is .*; it must be a number"):
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


def vectors(*values: Sequence[float]) -> list[dict[str, Tensor]]:
    return [{"w": torch.tensor(value)} for value in values]


def matrices(*values: Sequence[Sequence[float]]) -> list[dict[str, Tensor]]:
    return [{"blocks.0.w": torch.tensor(value)} for value in values]


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


def test_ties_by_hand() -> None:
    # half of four are kept: [2, 1, 0, 0] and [-3, 0, 0, 4]; the sum [-1, 1, 0, 4] elects the signs
    deltas = vectors([2.0, 1.0, 0.1, 0.0], [-3.0, 0.2, 0.1, 4.0])
    merged = METHODS["ties"](deltas, density=0.5)
    assert merged["w"].tolist() == [-3.0, 1.0, 0.0, 4.0]


def test_ties_averages_or_adds_those_that_agree_and_scales() -> None:
    # 2 and 4 agree, -1 does not
    deltas = vectors([2.0], [4.0], [-1.0])
    assert METHODS["ties"](deltas, density=1.0)["w"].tolist() == [3.0]
    assert METHODS["ties"](deltas, density=1.0, merge="sum", alpha=0.5)["w"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("zero_sum", "others", "expected"),
    [("majority", 2.0, 1.0), ("majority", -2.0, -1.0), ("positive", -2.0, 1.0)],
)
def test_ties_settles_a_sum_of_zero(zero_sum: str, others: float, expected: float) -> None:
    # 1 - 1 = 0; the other two weights make a majority of their sign
    deltas = vectors([1.0, others, others], [-1.0, others, others])
    merged = METHODS["ties"](deltas, density=1.0, zero_sum=zero_sum)
    assert merged["w"].tolist() == [expected, others, others]


def test_ties_gives_zero_where_even_the_majority_is_a_tie() -> None:
    assert METHODS["ties"](vectors([1.0], [-1.0]), density=1.0)["w"].tolist() == [0.0]


def test_ties_trims_over_the_whole_vector_or_each_tensor() -> None:
    given = {"large": torch.tensor([30.0, 10.0]), "small": torch.tensor([1.0, 3.0])}
    vector = METHODS["ties"]([given], density=0.5)
    assert [tensor.tolist() for tensor in vector.values()] == [[30.0, 10.0], [0.0, 0.0]]
    tensor = METHODS["ties"]([given], density=0.5, trim="tensor")
    assert [tensor.tolist() for tensor in tensor.values()] == [[30.0, 0.0], [0.0, 3.0]]


def test_order_statistics_are_those_of_a_full_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(3, 3000, generator=generator) * 10.0 ** torch.arange(3000).remainder(60)
    spread = spread * 1e-45 ** torch.rand(3, 3000, generator=generator)  # subnormal ones as well
    spread[:, ::7] = 0.25  # many that are equal
    spread[1, :50] = 0.0
    ranks = [0, 1, 749, 1500, 2250, 2998, 2999]
    found = order_statistics(lambda: spread.split([1, 999, 0, 2000], dim=1), lambda size: ranks)
    assert torch.equal(found, spread.sort(dim=1).values[:, ranks].T)


def test_order_statistics_know_how_many_weights_there_are() -> None:
    sizes: list[int] = []

    def ranks(size: int) -> list[int]:
        sizes.append(size)
        return [size - 1]

    parts = [torch.tensor([[1.0, -5.0]]), torch.tensor([[3.0]])]
    assert order_statistics(lambda: parts, ranks).tolist() == [[3.0]]
    assert sizes == [3]


def test_relative_ranks_by_hand() -> None:
    assert relative_rank(torch.tensor([[3.0, -1.0, 2.0]])).tolist() == [[1.0, 0.0, 0.5]]
    assert relative_rank(torch.tensor([[7.0], [8.0]])).tolist() == [[0.5], [0.5]]


def test_della_by_hand() -> None:
    # ranks 1, 0 and 0.5 stay with 0.6, 0.4 and 0.5, and are divided by it: 5, -2.5 and 4
    deltas = vectors([3.0, -1.0, 2.0])
    found = [METHODS["della"](deltas, density=0.5, epsilon=0.1, seed=i)["w"] for i in range(30)]
    for values, kept in zip(torch.stack(found).T, (5.0, -2.5, 4.0), strict=True):
        assert_close(values.unique(), torch.tensor([0.0, kept]).sort().values)


def test_della_drops_small_weights_more_often() -> None:
    # of 2000 weights the smaller half stays with 0.3 on average, the larger half with 0.7
    given = torch.linspace(1.0, 2.0, 2000)
    merged = METHODS["della"]([{"w": given}], density=0.5, epsilon=0.4)["w"]
    halves = (merged > 0).float().reshape(2, 1000).mean(dim=1)
    assert_close(halves, torch.tensor([0.3, 0.7]), rtol=0, atol=0.07)


def test_pcb_by_hand() -> None:
    # Magnitudes 1, 2, 4 are clamped at ranks int(0.0003) = 0 and int(1.9997) = 1: 1, 2, 2; to unit
    # and squared 0, 1, 1; balances 1 * tanh(1), e * tanh(4), e * tanh(16) = 0.762, 2.716, 2.718.
    # The top half begins at rank int(1.5) = 1, so scaled they are 0, 0, 1.
    merged = METHODS["pcb"](vectors([-1.0, -2.0, 4.0]), ratio=0.5, alpha=1.5)
    assert merged["w"].tolist() == [0.0, 0.0, 3.0]


def test_pcb_is_its_formula() -> None:
    deltas = [delta(seed) for seed in range(3)]
    tau = np.stack(
        [np.concatenate([t.double().numpy().ravel() for t in d.values()]) for d in deltas]
    )
    ordered = np.sort(np.abs(tau), axis=1)
    size = tau.shape[1]
    low, high = ordered[:, :1], ordered[:, [int(size * (1 - 1e-4) - 1)]]
    clipped = np.clip(np.abs(tau), low, high)
    balance = np.exp(3 * ((clipped - low) / (high - low)) ** 2) * np.tanh(tau * tau.sum(axis=0))
    edge = np.sort(balance, axis=1)[:, [int(size * 0.8)]]
    top = balance.max(axis=1, keepdims=True)
    weight = (np.clip(balance, edge, top) - edge) / (top - edge)
    expected = (np.sign(tau) * clipped * weight).sum(axis=0) / np.maximum(weight.sum(axis=0), 1e-12)
    merged = METHODS["pcb"](deltas, ratio=0.2, alpha=1.0)
    found = torch.cat([tensor.flatten() for tensor in merged.values()])
    assert_close(found.double().numpy(), expected, rtol=1e-4, atol=1e-6)


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


def test_lines_refuses_weights_without_blocks() -> None:
    with pytest.raises(RecipeError, match="no tensor is named like"):
        METHODS["lines"](vectors([1.0]), beta=0.5)


def test_balancing_a_delta_of_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match="zero everywhere"):
        balanced_alpha(vectors([1.0]), vectors([0.0])[0])


def test_tsv_m_by_hand() -> None:
    # int(2 / 2) = 1 direction each: 3 along the first axis, 5 along the second; orthogonal already
    merged = METHODS["tsv_m"](matrices([[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 5.0]]))
    assert_close(merged["blocks.0.w"], torch.diag(torch.tensor([3.0, 5.0])))


def test_iso_c_by_hand() -> None:
    # the sum diag(3, 1) has singular values 3 and 1, their mean is 2; halved
    deltas = matrices([[2.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
    assert_close(METHODS["iso_c"](deltas, alpha=0.5)["blocks.0.w"], torch.eye(2))


def test_iso_cts_by_hand() -> None:
    # nothing is common, each task brings round(2 / 2) = 1 direction: 3 and 5, the mean is 4
    deltas = matrices([[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 5.0]])
    merged = METHODS["iso_cts"](deltas, alpha=1.0, common=0.0)
    assert_close(merged["blocks.0.w"], 4 * torch.eye(2))


Matrix = NDArray[np.float64]


def tsv_formula(tau: Matrix) -> Matrix:
    keep = min(tau.shape[1:]) // len(tau)
    parts = [np.linalg.svd(one, full_matrices=False) for one in tau]
    return summed_up([(u[:, :keep], s[:keep], v[:keep]) for u, s, v in parts])


def iso_c_formula(tau: Matrix) -> Matrix:
    u, s, v = np.linalg.svd(tau.sum(axis=0), full_matrices=False)
    return np.asarray(s.mean() * u @ v)


def iso_cts_formula(tau: Matrix) -> Matrix:
    rank = min(tau.shape[1:])
    own = round((rank - int(0.6 * rank)) / len(tau))
    shared = rank - own * len(tau)
    u, s, v = np.linalg.svd(tau.sum(axis=0), full_matrices=False)
    u, s, v = u[:, :shared], s[:shared], v[:shared]
    rests = [np.linalg.svd(one - u @ u.T @ one, full_matrices=False) for one in tau]
    parts = [*((a[:, :own], b[:own], c[:own]) for a, b, c in rests), (u, s, v)]
    mean = np.concatenate([b for _, b, _ in parts]).mean()
    return summed_up([(a, np.full_like(b, mean), c) for a, b, c in parts])


def summed_up(parts: Sequence[tuple[Matrix, Matrix, Matrix]]) -> Matrix:
    a, _, b = np.linalg.svd(np.concatenate([u for u, _, _ in parts], axis=1), full_matrices=False)
    c, _, d = np.linalg.svd(np.concatenate([v for _, _, v in parts]), full_matrices=False)
    return np.asarray(a @ b @ np.diag(np.concatenate([s for _, s, _ in parts])) @ c @ d)


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (8, 8)])
@pytest.mark.parametrize(
    ("name", "params", "formula"),
    [
        ("tsv_m", {}, tsv_formula),
        ("iso_c", {"alpha": 1.0}, iso_c_formula),
        ("iso_cts", {"alpha": 1.0, "common": 0.6}, iso_cts_formula),
    ],
)
def test_a_spectral_method_is_its_formula(
    name: str, params: dict[str, Any], formula: Callable[[Matrix], Matrix], shape: tuple[int, int]
) -> None:
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    merged = METHODS[name]([{"w": one} for one in stack], **params)["w"]
    assert_close(merged.double().numpy(), formula(stack.double().numpy()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts"])
def test_a_spectral_method_takes_the_mean_of_what_is_no_matrix(name: str) -> None:
    merged = METHODS[name]([delta(0), delta(1)], alpha=1.0)
    for rest in ("cls_token", "mask_token", "pos_embed", "patch_embed.proj.weight", "scalar"):
        assert_close(merged[rest], (delta(0)[rest] + delta(1)[rest]) / 2)


@pytest.mark.parametrize("name", ["wudi", "doge"])
def test_an_iterative_method_leaves_what_is_no_matrix_or_takes_the_mean(name: str) -> None:
    left = METHODS[name]([delta(0), delta(1)], steps=2)
    mean = METHODS[name]([delta(0), delta(1)], steps=2, rest="mean")
    for rest in ("cls_token", "mask_token", "pos_embed", "patch_embed.proj.weight", "scalar"):
        assert not left[rest].any()
        assert_close(mean[rest], (delta(0)[rest] + delta(1)[rest]) / 2)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "wudi"])
def test_a_patch_embedding_can_be_a_matrix(name: str) -> None:
    # the same weights laid out as (6, 12) give the same result
    params, conv = PARAMS.get(name, {}), "patch_embed.proj.weight"
    merged = METHODS[name]([delta(0), delta(1)], conv="flatten", **params)[conv]
    plain = METHODS[name]([{"w": delta(seed)[conv].flatten(1)} for seed in (0, 1)], **params)["w"]
    assert torch.equal(merged.flatten(1), plain)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "wudi"])
def test_q_k_and_v_can_be_matrices_of_their_own(name: str) -> None:
    params, qkv = PARAMS.get(name, {}), "blocks.0.attn.qkv.weight"
    merged = METHODS[name]([delta(0), delta(1)], split_qkv=True, **params)[qkv]
    parts = [delta(seed)[qkv].chunk(3) for seed in (0, 1)]
    alone = METHODS[name]([dict(zip("qkv", part, strict=True)) for part in parts], **params)
    assert_close(merged, torch.cat([alone[part] for part in "qkv"]))


def test_an_expert_that_did_not_move_adds_no_direction() -> None:
    # two of four directions of the first expert stay as they are
    given = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    merged = METHODS["tsv_m"]([{"w": given}, {"w": torch.zeros(4, 4)}])["w"]
    assert_close(merged, torch.diag(torch.tensor([4.0, 3.0, 0.0, 0.0])))


@pytest.mark.parametrize("smallest", [1e-1, 1e-5, 1e-8, 0.0])
def test_singular_values_come_without_null_directions(smallest: float) -> None:
    # by eigenvectors where that is exact enough, else directly
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(7, 4, generator=generator).double()).Q
    strengths = torch.tensor([2.0, 1.0, 0.5, smallest], dtype=torch.float64)
    matrix = frame * strengths @ torch.linalg.qr(torch.randn(4, 4, generator=generator).double()).Q
    for given in (matrix, matrix.T):
        u, s, v = svd(given)
        assert_close(s, strengths[strengths > 1e-6], rtol=1e-8, atol=0)
        assert_close(u * s @ v, given, rtol=0, atol=1e-8)
        assert_close(u.T @ u, torch.eye(len(s), dtype=torch.float64), rtol=0, atol=1e-8)


def test_tasks_without_directions_of_their_own_add_none() -> None:
    # rank 1 each, so the sum's two directions hold both; their strength is the mean of all six
    generator = torch.Generator().manual_seed(0)
    columns, rows = (
        torch.randn(2, 6, 1, generator=generator),
        torch.randn(2, 1, 6, generator=generator),
    )
    deltas = [{"w": column @ row} for column, row in zip(columns, rows, strict=True)]
    merged = METHODS["iso_cts"](deltas, alpha=1.0)["w"]
    assert_close(merged, METHODS["iso_c"](deltas, alpha=1.0)["w"])
    assert int(torch.linalg.matrix_rank(merged)) == 2


def test_two_directions_that_are_alike_are_one() -> None:
    # the nearest orthogonal vectors to e, e are the partial isometry e, e / sqrt(2)
    twice = torch.tensor([[1.0, 1.0], [0.0, 1e-9], [0.0, 0.0]])
    expected = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]).sqrt()
    assert_close(polar(twice).float(), expected)


def test_adam_is_that_of_torch() -> None:
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    point = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.Adam([point], lr=0.01)
    for _ in range(30):
        point.grad = point.detach() ** 3 - 0.1
        optimiser.step()
    found = adam(start, lambda x: x**3 - 0.1, lr=0.01, steps=30)
    assert_close(found, point.detach(), rtol=1e-12, atol=0)


def numpy_adam(start: Matrix, slope: Callable[[Matrix], Matrix], lr: float, steps: int) -> Matrix:
    point, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(1, steps + 1):
        gradient = slope(point)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        spread = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        point = point - lr * (first / (1 - 0.9**step)) / spread
    return point


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


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("ties", {"density": 0}, r"merge\.density is 0; it must be above 0 and at most 1"),
        ("ties", {"density": 20}, r"merge\.density is 20; it must be above 0 and at most 1"),
        ("ties", {"trim": "layer"}, r"merge\.trim is 'layer'; it must be one of: vector, tensor"),
        ("ties", {"zero_sum": 1}, r"merge\.zero_sum is 1; it must be one of: majority, positive"),
        ("ties", {"merge": "max"}, r"merge\.merge is 'max'; it must be one of: mean, sum"),
        ("dare", {"alpha": 1, "drop": 1}, r"merge\.drop is 1; it must be at least 0 and below 1"),
        ("dare", {"alpha": 1, "drop": 0, "seed": 0.5}, r"merge\.seed is 0\.5; .* a whole number"),
        ("dare", {"alpha": 1, "drop": 0, "seed": -1}, r"merge\.seed is -1; .* at least 0"),
        ("della", {"density": 1.0}, r"merge\.epsilon is 0\.05; with density 1\.0, density - eps"),
        ("della", {"density": 0.05}, r"merge\.epsilon is 0\.05; with density 0\.05"),
        ("della", {"density": 0.5, "epsilon": -0.1}, r"merge\.epsilon is -0\.1; with density"),
        ("breadcrumbs", {"gamma": 1}, r"merge\.gamma is 1; it must be at least 0 and below 1"),
        ("breadcrumbs", {"beta": 0}, r"merge\.beta is 0; it must be above 0 and at most 1"),
        ("consensus", {"alpha": 1, "threshold": -1}, r"merge\.threshold is -1; .* at least 0"),
        ("pcb", {"ratio": 0}, r"merge\.ratio is 0; it must be above 0 and at most 1"),
        ("lines", {"beta": "1"}, r"merge\.beta is '1'; it must be a number"),
        ("tsv_m", {"conv": "mean"}, r"merge\.conv is 'mean'; it must be one of: rest, flatten"),
        ("iso_c", {"alpha": 1, "split_qkv": 1}, r"merge\.split_qkv is 1; .* true or false"),
        ("iso_cts", {"alpha": 1, "common": 1.1}, r"merge\.common is 1\.1; .* at most 1"),
        ("wudi", {"steps": 0}, r"merge\.steps is 0; it must be at least 1"),
        ("wudi", {"lr": 0}, r"merge\.lr is 0; it must be above 0"),
        ("wudi", {"rest": "zero"}, r"merge\.rest is 'zero'; it must be one of: base, mean"),
        ("doge", {"subspace": 0.5}, r"merge\.subspace is 0\.5; it must be at least 1"),
    ],
)
def test_a_parameter_out_of_range_is_refused(
    name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        METHODS[name]([delta(0), delta(1)], **params)
