"""Methods that rank weights by magnitude, worked by hand and held to their formulas."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from simo_build.merge import METHODS
from simo_build.merge.ranked import relative_rank
from tests.merging import delta, vectors


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


def test_dare_ties_without_dropping_is_ties_without_trimming() -> None:
    # the sums [-1, 1.2, 0, 4] elect the signs; 1 and 0.2 agree, of 0.1 and -0.1 nothing is elected
    deltas = vectors([2.0, 1.0, 0.1, 0.0], [-3.0, 0.2, -0.1, 4.0])
    merged = METHODS["dare_ties"](deltas, drop=0.0)
    assert_close(merged["w"], torch.tensor([-3.0, 0.6, 0.0, 4.0]))
    added = METHODS["dare_ties"](deltas, drop=0.0, merge="sum", alpha=0.5)
    assert_close(added["w"], torch.tensor([-1.5, 0.6, 0.0, 2.0]))


def test_dare_ties_elects_among_what_dropping_leaves() -> None:
    # 1 and -3, dropped or divided by 1 - 0.5: both stay: -6 wins; one stays: 2 or -6; none: 0
    shape = (4000,)
    deltas = [{"w": torch.full(shape, value)} for value in (1.0, -3.0)]
    merged = METHODS["dare_ties"](deltas, drop=0.5)["w"]
    values, counts = merged.unique(return_counts=True)
    assert values.tolist() == [-6.0, 0.0, 2.0]
    # half, a quarter and a quarter of 4000, within five standard deviations
    for count, expected in zip(counts.tolist(), (2000, 1000, 1000), strict=True):
        assert abs(count - expected) < 160


def test_dare_ties_drops_what_dare_drops() -> None:
    # of one task both keep the same weights
    params = {"alpha": 1.0, "drop": 0.5, "seed": 3}
    one = {"w": torch.linspace(1.0, 2.0, 100)}
    assert torch.equal(
        METHODS["dare_ties"]([one], **params)["w"], METHODS["dare"]([one], **params)["w"]
    )


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
