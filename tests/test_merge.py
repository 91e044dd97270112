"""Merging methods: what every one of them promises, and how their parameters are checked."""

import inspect
import itertools
import json
import os
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.merge import METHODS, MergeMethod, candidates, method_named
from simo_build.merge.reading import ordering
from simo_runtime.errors import RecipeError, UnknownNameError
from tests.merging import PARAMS, SHAPES, delta, merge

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Parameters under which the merge of one delta is that delta; other methods change it by design.
IDENTITY: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"alpha": 1.0},
    "average": {},
    "awd": {"alpha": 1.0},
    "magmax": {"alpha": 1.0},
    "breadcrumbs": {"alpha": 1.0, "beta": 1.0, "gamma": 0.0},
    "consensus": {"alpha": 1.0, "threshold": 0.4, "min_tasks": 1},
    "dare": {"alpha": 1.0, "drop": 0.0},
    "dare_ties": {"drop": 0.0},
    "della": {"density": 1.0, "epsilon": 0.0},
    "lines": {"alpha": 1.0, "beta": 0.0},
    "regmean": {"bias": "joint"},
    "regmean_plusplus": {},
    "lot": {},
    "fisher": {},
    "fisher_labelled": {"normalise": False},
    "ties": {"density": 1.0},
    "tsv_m": {},
    "wudi": {"rest": "mean", "steps": 20},
}


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
        return merge(method, deltas)

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
        merged = merge(method, [given], **IDENTITY.get(method.name, {"alpha": 1.0}))
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

    def test_can_be_rehearsed(self, method: MergeMethod) -> None:
        method.rehearse(SHAPES, tasks=3, **PARAMS.get(method.name, {}))

    def test_refuses_an_unknown_parameter_when_rehearsed(self, method: MergeMethod) -> None:
        with pytest.raises(UnknownNameError, match=f"parameter of merge.method {method.name}"):
            method.rehearse(SHAPES, tasks=3, **PARAMS.get(method.name, {}), nonsense=1)

    def test_refuses_a_wrong_value_of_any_parameter_when_rehearsed(
        self, method: MergeMethod
    ) -> None:
        for name in inspect.signature(method.function).parameters:
            if name not in ("deltas", "evidence"):
                params = {**PARAMS.get(method.name, {}), name: object()}
                with pytest.raises(RecipeError, match=rf"merge\.{name}"):
                    method.rehearse(SHAPES, tasks=3, **params)

    def test_names_its_paper(self, method: MergeMethod) -> None:
        assert method.paper.startswith("https://")

    def test_has_a_row_in_the_documentation(self, method: MergeMethod) -> None:
        rows = (DOCS / "merging.md").read_text(encoding="utf-8").splitlines()
        own = [row for row in rows if row.startswith(f"| `{method.name}` |")]
        assert sum(method.paper in row for row in own) == 1


@pytest.mark.parametrize("name", IDENTITY)
def test_a_single_expert_comes_back(name: str) -> None:
    merged = merge(METHODS[name], [delta(0)], **IDENTITY[name])
    exact = name not in ("tsv_m", "regmean", "regmean_plusplus", "lot")  # vectors, or solutions
    for tensor_name, tensor in delta(0).items():
        tolerance = 0.0 if exact else 1e-6
        assert_close(merged[tensor_name], tensor, rtol=tolerance, atol=tolerance)


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


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("ties", {"density": 0}, r"merge\.density is 0; it must be above 0 and at most 1"),
        ("ties", {"density": 20}, r"merge\.density is 20; it must be above 0 and at most 1"),
        ("ties", {"trim": "layer"}, r"merge\.trim is 'layer'; it must be one of: vector, tensor"),
        ("ties", {"zero_sum": 1}, r"merge\.zero_sum is 1; it must be one of: majority, positive"),
        ("ties", {"merge": "max"}, r"merge\.merge is 'max'; it must be one of: mean, sum"),
        ("awd", {"alpha": 1, "penalty": -1}, r"merge\.penalty is -1; it must be at least 0"),
        ("awd", {"alpha": 1, "steps": 1.5}, r"merge\.steps is 1\.5; it must be a whole number"),
        ("awd", {"alpha": 1, "lr": 2}, r"merge\.lr is 2; it must be above 0 and at most 1"),
        ("dare_ties", {"drop": 1}, r"merge\.drop is 1; it must be at least 0 and below 1"),
        ("dare_ties", {"drop": 0, "merge": 1}, r"merge\.merge is 1; it must be one of: mean, sum"),
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
        ("regmean", {"off_diagonal": 2}, r"merge\.off_diagonal is 2; .* at least 0 and at most 1"),
        ("regmean_plusplus", {"bias": 1}, r"merge\.bias is 1; it must be one of: mean, joint"),
        ("regmean", {"bias": "base"}, r"merge\.bias is 'base'; .* one of: mean, joint"),
        ("lot", {"rcond": 0}, r"merge\.rcond is 0; it must be above 0 and below 1"),
        ("esm", {"alpha": 1, "power": -1}, r"merge\.power is -1; it must be at least 0"),
        ("fisher", {"floor": -1}, r"merge\.floor is -1; it must be at least 0 and at most 1"),
        ("fisher", {"normalise": 1}, r"merge\.normalise is 1; it must be true or false"),
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
        merge(METHODS[name], [delta(0), delta(1)], **params)


HASHES = """
import json
from simo_build.merge import METHODS
from simo_build.statedict import state_hash
from tests.merging import delta, merge

deltas = [delta(seed) for seed in range(3)]
found = {name: merge(method, deltas) for name, method in METHODS.items()}
print(json.dumps({name: state_hash(merged) for name, merged in found.items()}))
"""


def test_no_method_depends_on_pythons_hash_seed() -> None:
    # sets and the hashes of strings differ between these two processes
    found = []
    for seed in ("1", "2"):
        given = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        told = subprocess.run(
            [sys.executable, "-c", HASHES], env=given, capture_output=True, text=True, check=True
        )
        found.append(json.loads(told.stdout))
    assert set(found[0]) == set(METHODS)
    assert found[0] == found[1]
