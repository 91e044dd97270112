"""TALL masks and EMR, worked by hand."""

import pytest
import torch
from torch.testing import assert_close

from simo_build.merge import METHODS
from simo_build.several import SEVERAL
from simo_build.several.masks import elected, rescalers
from tests.merging import delta, vectors

COUNT = sum(tensor.numel() for tensor in delta(0).values())


def test_tall_mask_by_hand() -> None:
    # sum [2, 2, 0.5]; the first task needs all: 1 > 0.5 * 1, 2 > 0.5 * 0, 1 > 0.5 * 0.5;
    # the second only the first weight: 1 > 0.5 * 1, not 0 > 0.5 * 2, not 0.5 > 0.5 * 1
    result = SEVERAL["tall_mask"](vectors([1.0, 2.0, 1.0], [1.0, 0.0, -0.5]), threshold=0.5)
    assert [one["w"].tolist() for one in result.deltas] == [[2.0, 2.0, 0.5], [2.0, 0.0, 0.0]]


def test_a_larger_threshold_of_tall_mask_keeps_fewer_weights() -> None:
    deltas = [delta(seed) for seed in range(3)]
    kept = []
    for threshold in (0.0, 0.5, 1.0, 2.0):
        one = SEVERAL["tall_mask"](deltas, threshold=threshold).deltas[0]
        kept.append(sum(int((one[name] != 0).sum()) for name in one))
    assert kept[0] == COUNT
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4


def test_the_threshold_of_tall_mask_may_follow_the_depth() -> None:
    given = [
        {"blocks.0.w": torch.tensor([value]), "blocks.1.w": torch.tensor([value])}
        for value in (1.0, 2.0)
    ]
    found = SEVERAL["tall_mask"](given, threshold=[0.4, 0.6]).deltas[0]
    assert (found["blocks.0.w"].item(), found["blocks.1.w"].item()) == (3.0, 0.0)


def test_consensus_of_one_task_is_where_any_mask_of_tall_mask_is() -> None:
    deltas = [delta(seed) for seed in range(3)]
    masked = SEVERAL["tall_mask"](deltas, threshold=0.6).deltas
    merged = METHODS["consensus"](deltas, alpha=1.0, threshold=0.6, min_tasks=1)
    for name, tensor in merged.items():
        assert torch.equal(tensor != 0, torch.stack([one[name] != 0 for one in masked]).any(dim=0))


def test_tall_mask_refuses_a_negative_threshold() -> None:
    with pytest.raises(Exception, match=r"merge\.threshold is -1; it must be at least 0"):
        SEVERAL["tall_mask"](vectors([1.0]), threshold=-1)


def test_the_elected_vector_by_hand() -> None:
    # sums 2, -4, 0, 1: the largest that has the sum's sign; nothing is elected for a sum of zero
    stack = torch.tensor([[3.0, -1.0, 2.0, 0.0], [-1.0, -3.0, -2.0, 1.0]])
    assert elected(stack).tolist() == [3.0, -3.0, 0.0, 1.0]


def test_the_sign_is_elected_in_float64() -> None:
    assert elected(torch.tensor([[2.0**24], [1.0], [-(2.0**24)]])).tolist() == [2.0**24]


def test_emr_by_hand() -> None:
    # elected [3, -3, 0, 1]; the first task takes [3, -3, 0, 0] of it, its own L1 norm is 6, so it
    # stays; the second takes [0, -3, 0, 1], and its own norm is 7: times 7 / 4
    result = SEVERAL["emr"](vectors([3.0, -1.0, 2.0, 0.0], [-1.0, -3.0, -2.0, 1.0]))
    assert result.deltas[0]["w"].tolist() == [3.0, -3.0, 0.0, 0.0]
    assert result.deltas[1]["w"].tolist() == [0.0, -5.25, 0.0, 1.75]


def test_emr_keeps_the_l1_norm_of_every_delta_over_all_tensors() -> None:
    deltas = [delta(seed) for seed in range(3)]
    for given, one in zip(deltas, SEVERAL["emr"](deltas).deltas, strict=True):
        norms = [sum(d[name].double().abs().sum() for name in d) for d in (given, one)]
        assert_close(norms[1], norms[0], rtol=1e-6, atol=0.0)
        # one scale for all of them, so that single tensors have other norms
        assert abs(float(one["pos_embed"].abs().sum() / given["pos_embed"].abs().sum()) - 1) > 1e-3


def test_emr_gives_no_weight_the_other_sign() -> None:
    deltas = [delta(seed) for seed in range(3)]
    for given, one in zip(deltas, SEVERAL["emr"](deltas).deltas, strict=True):
        assert all(bool((given[name] * one[name] >= 0).all()) for name in given)


def test_a_task_that_takes_nothing_of_the_elected_vector_has_scale_zero() -> None:
    assert rescalers(vectors([3.0, 3.0], [-1.0, -1.0])) == [1.0, 0.0]


@pytest.mark.parametrize(("name", "extra"), [("tall_mask", 0), ("emr", 4)])
def test_stored_are_base_and_common_vector_and_a_bit_a_weight_and_task(
    name: str, extra: int
) -> None:
    params = {"threshold": 0.4} if name == "tall_mask" else {}
    result = SEVERAL[name]([delta(seed) for seed in range(3)], **params)
    assert result.bytes == 8 * COUNT + 3 * ((COUNT + 7) // 8 + extra)
    assert result.passes == 3.0
