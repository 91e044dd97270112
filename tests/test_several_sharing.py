"""FlexMerge, and what sharing units of an encoder saves, worked by hand."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from simo_build.merge import METHODS
from simo_build.several import SEVERAL
from simo_build.several.flexmerge import cosines, merges, partitions
from simo_build.several.sharing import passes, unit_of, units
from simo_runtime.errors import RecipeError
from tests.merging import delta
from tests.several import sight

SINGLE = [(0,), (1,), (2,)]
TOGETHER = [(0, 1, 2)]


def blocks(*rows: dict[int, list[float]]) -> list[dict[str, torch.Tensor]]:
    """Deltas of the blocks given, a vector a block and task."""
    return [{f"blocks.{k}.w": torch.tensor(v) for k, v in row.items()} for row in rows]


# Units


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("cls_token", "stem"),
        ("patch_embed.proj.weight", "stem"),
        ("norm_pre.weight", "stem"),
        ("blocks.3.norm1.weight", "blocks.3"),
        ("blocks.0.11.mlp.fc1.bias", "blocks.11"),
        ("norm.weight", "after"),
    ],
)
def test_the_unit_of_a_tensor(name: str, unit: str) -> None:
    assert unit_of(name) == unit


def test_units_are_in_the_order_of_the_computation() -> None:
    names = ["norm.bias", "blocks.10.w", "blocks.2.b", "pos_embed", "blocks.2.a"]
    found = {"stem": ["pos_embed"], "blocks.2": ["blocks.2.b", "blocks.2.a"]}
    found |= {"blocks.10": ["blocks.10.w"], "after": ["norm.bias"]}
    assert list(units(names).items()) == list(found.items())


# Passes


def test_passes_are_those_of_the_blocks_that_differ_or_come_after_one_that_does() -> None:
    shared = {"stem": TOGETHER, "blocks.0": TOGETHER, "blocks.1": [(0, 1), (2,)]}
    shared |= {"blocks.2": TOGETHER, "blocks.3": [(0,), (1, 2)], "after": TOGETHER}
    # 1, 2, 2 (its inputs differ), 3 of four blocks
    assert passes(shared) == (1 + 2 + 2 + 3) / 4


def test_passes_count_nothing_as_shared_behind_a_stem_that_is_not() -> None:
    assert passes({"stem": SINGLE, "blocks.0": TOGETHER}) == 3.0
    assert passes({"stem": TOGETHER, "blocks.0": TOGETHER}) == 1.0


def test_norms_after_the_blocks_cost_nothing() -> None:
    assert passes({"blocks.0": TOGETHER, "after": SINGLE}) == 1.0


def test_an_encoder_without_blocks_is_one_unit() -> None:
    assert passes({"stem": SINGLE}) == 3.0


# FlexMerge


def test_cosines_run_over_all_tensors_of_a_block() -> None:
    # (3, 4) and (4, 3) in two tensors: 24 / 25
    given = [
        {"blocks.0.a": torch.tensor([3.0]), "blocks.0.b": torch.tensor([[4.0]])},
        {"blocks.0.a": torch.tensor([4.0]), "blocks.0.b": torch.tensor([[3.0]])},
    ]
    found = cosines(given)["blocks.0"]
    assert_close(found, torch.tensor([[1.0, 0.96], [0.96, 1.0]], dtype=torch.float64))


def test_two_deltas_of_zeros_are_alike_and_like_no_other() -> None:
    given = blocks({0: [0.0, 0.0]}, {0: [0.0, 0.0]}, {0: [1.0, 0.0]})
    assert cosines(given)["blocks.0"].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_the_order_of_merges_by_hand() -> None:
    # block 0: cosines 0.9 (0, 1), 0.8 (0, 2), 0.1 (1, 2); block 1: 0.5, 0.7, 0.6.
    # 0.9 first; then 2 joins (0, 1) only with its lowest, 0.1. So block 1's 0.7 (0, 2) is next,
    # then 1 joins (0, 2) with min(0.5, 0.6), and block 0 is the last
    found = merges(
        {
            "blocks.0": torch.tensor([[1.0, 0.9, 0.8], [0.9, 1.0, 0.1], [0.8, 0.1, 1.0]]),
            "blocks.1": torch.tensor([[1.0, 0.5, 0.7], [0.5, 1.0, 0.6], [0.7, 0.6, 1.0]]),
        }
    )
    assert list(found) == [
        ("blocks.0", (0, 1)),
        ("blocks.1", (0, 2)),
        ("blocks.1", (0, 1, 2)),
        ("blocks.0", (0, 1, 2)),
    ]


def test_merging_stops_at_the_size_that_is_asked_for() -> None:
    # blocks of 2 and 4 weights: 12 are stored for two tasks, 6 for one
    # the second block is the more similar one: 12, 8, 6
    given = [
        {"blocks.0.w": torch.tensor([1.0, 0.0]), "blocks.1.w": torch.ones(4)},
        {"blocks.0.w": torch.tensor([0.0, 1.0]), "blocks.1.w": 2 * torch.ones(4)},
    ]
    single, both = [(0,), (1,)], [(0, 1)]
    wanted = {2.0: (single, single), 1.9: (single, both), 1.34: (single, both), 1.3: (both, both)}
    for size, groups in wanted.items():
        found = partitions(given, size)
        assert (found["blocks.0"], found["blocks.1"]) == groups
    result = SEVERAL["flexmerge"](given, size=1.5)
    assert result.bytes == 4 * (2 + 2 + 4)
    assert result.passes == 2.0  # the block that is shared comes after one that is not
    assert result.deltas[0]["blocks.0.w"].tolist() == [1.0, 0.0]
    assert result.deltas[1]["blocks.1.w"].tolist() == [1.5] * 4


def test_flexmerge_of_size_one_is_the_mean_of_all_deltas() -> None:
    deltas = [delta(seed) for seed in range(3)]
    result = SEVERAL["flexmerge"](deltas, size=1)
    merged = METHODS["average"](deltas)
    assert result.passes == 1.0
    for one in result.deltas:
        for name, tensor in merged.items():
            assert_close(one[name], tensor, rtol=1e-6, atol=0.0)


def test_flexmerge_of_size_t_gives_the_experts() -> None:
    deltas = [delta(seed) for seed in range(3)]
    result = SEVERAL["flexmerge"](deltas, size=3, scale=2.0)
    assert result.passes == 3.0
    assert result.bytes == 3 * 4 * sum(tensor.numel() for tensor in delta(0).values())
    for given, one in zip(deltas, result.deltas, strict=True):
        assert all(torch.equal(given[name], one[name]) for name in given)


def test_the_scale_is_of_groups_alone() -> None:
    given = blocks({0: [1.0], 1: [1.0]}, {0: [3.0], 1: [-1.0]})
    found = SEVERAL["flexmerge"](given, size=1.5, scale=1.2).deltas
    assert_close(found[0]["blocks.0.w"], torch.tensor([2.4]))
    assert [one["blocks.1.w"].item() for one in found] == [1.0, -1.0]


def test_flexmerge_in_between_does_not_depend_on_the_order_of_tasks() -> None:
    deltas = [delta(seed) for seed in range(3)]
    one = SEVERAL["flexmerge"](deltas, size=2)
    assert 1 < one.passes <= 3
    for order in itertools.permutations(range(3)):
        other = SEVERAL["flexmerge"]([deltas[i] for i in order], size=2)
        for place, i in enumerate(order):
            assert all(torch.equal(one.deltas[i][n], other.deltas[place][n]) for n in deltas[0])


def test_a_larger_size_never_stores_less() -> None:
    deltas = [delta(seed) for seed in range(3)]
    sizes = [1.0, 1.3, 1.7, 2.0, 2.5, 3.0]
    stored = [SEVERAL["flexmerge"](deltas, size=size).bytes for size in sizes]
    assert stored == sorted(stored)
    one = stored[0]
    assert all(found <= size * one for size, found in zip(sizes, stored, strict=True))


@pytest.mark.parametrize("size", [0.5, 2.5])
def test_flexmerge_refuses_a_size_that_cannot_be(size: float) -> None:
    message = rf"merge\.size is {size}; it must be at least 1 and at most 2"
    with pytest.raises(RecipeError, match=message):
        SEVERAL["flexmerge"].rehearse(sight(), tasks=2, size=size)
