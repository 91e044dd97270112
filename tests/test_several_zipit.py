"""ZipIt: which units are zipped, worked by hand, and what becomes of an encoder's function."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.merge import METHODS
from simo_build.several import SEVERAL, Sight
from simo_build.several.zipit import matched, plain, zipped_delta
from simo_build.several.zipping import Values, correlation, zipped
from simo_build.statedict import StateDict, add, subtract
from simo_runtime.errors import RecipeError
from tests.several import features, moved, sight

UNITS = 32  # of the MLP of the tiny encoder


def permuted(weights: StateDict, block: int, order: Tensor) -> StateDict:
    """The same function, with the hidden units of a block in another order."""
    mlp = f"blocks.{block}.mlp."
    change = {f"{mlp}fc1.weight": 0, f"{mlp}fc1.bias": 0, f"{mlp}fc2.weight": 1}
    return {n: t.index_select(change[n], order) if n in change else t for n, t in weights.items()}


def orders(blocks: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(UNITS, generator=generator) for _ in range(blocks)]


# Correlations


def test_correlations_are_those_of_numpy_whatever_the_parts() -> None:
    values = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    values[:, 4] = values[:, 1] * -3 + 100
    found = correlation(values.split([7, 1, 42]), 2)
    np.testing.assert_allclose(found, np.corrcoef(values.double().numpy().T), atol=1e-10)
    assert found[4, 1] == pytest.approx(-1.0)


def test_a_unit_that_never_varies_is_only_like_its_namesake() -> None:
    # units 0 of both models, and unit 1 of the second, do not vary
    draw = torch.randn(20, generator=torch.Generator().manual_seed(0))
    found = correlation([torch.stack([0 * draw, draw, 0 * draw + 0.1, 0 * draw + 5], dim=1)], 2)
    assert found.tolist() == [[1, 0, 1, 0], [0, pytest.approx(1), 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


# Zipping


def test_the_closest_units_are_zipped_first() -> None:
    # units a0 a1 b0 b1. a0 b1 at 0.9 first; a1 b0 at 0.2 is what is left, though a0 b0 have 0.8
    linked = np.array(
        [[1, 0.1, 0.8, 0.9], [0.1, 1, 0.2, 0.3], [0.8, 0.2, 1, 0.1], [0.9, 0.3, 0.1, 1]]
    )
    assert zipped(linked, 2, within=0.0, repeat=0.0).tolist() == [[0, 1], [1, 0]]


def test_units_of_one_model_are_zipped_within_their_share_of_all_that_are() -> None:
    # a0 and a1 are the same, and somewhat like b0; b1 is like no other
    linked = np.eye(4)
    linked[0, 1] = linked[1, 0] = 1.0
    linked[2, 0] = linked[0, 2] = 0.5
    linked[2, 1] = linked[1, 2] = 0.5
    # of two joins one is each task's share. a0 a1 takes it; b0 is of another task, so that its 0.5
    # counts in full. Without such a join, a0 b0 is the first of two pairs at 0.5
    assert zipped(linked, 2, within=1.0, repeat=0.3).tolist() == [[0, 0], [0, 1]]
    assert zipped(linked, 2, within=0.9, repeat=0.3).tolist() == [[0, 1], [0, 1]]


def test_a_task_that_is_in_a_group_already_counts_less() -> None:
    # three units a model: a0 b0 at 0.9 first. Then a1 to both of them at 0.7, the lowest of 0.8 and
    # 0.7, counts 0.3 * 0.7 since a0 is there, and a1 b1 at 0.6 comes before it
    linked = np.eye(6)

    def put(one: int, other: int, value: float) -> None:
        linked[one, other] = linked[other, one] = value

    put(0, 3, 0.9)
    put(1, 3, 0.8)
    put(1, 0, 0.7)
    put(1, 4, 0.6)
    put(2, 5, 0.5)
    assert zipped(linked, 2, within=1.0, repeat=0.3).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert zipped(linked, 2, within=1.0, repeat=1.0).tolist() == [[0, 0, 1], [0, 2, 1]]


def test_nothing_is_left_over_where_no_pair_may_be_joined() -> None:
    # ab, ac, bc fill up pairwise, so that no two of the three groups are of different tasks
    linked = np.full((6, 6), -0.5)
    for one, other in ((0, 2), (1, 4), (3, 5)):
        linked[one, other] = linked[other, one] = 0.9
    labels = zipped(linked, 3, within=0.0, repeat=0.3)
    assert sorted(set(labels.flatten().tolist())) == [0, 1]
    assert labels[0, 0] == labels[1, 0]
    assert labels[0, 1] == labels[2, 0]
    assert labels[1, 1] == labels[2, 1]


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_every_number_of_a_group_is_used_and_no_other(tasks: int) -> None:
    draw = np.random.default_rng(tasks)
    linked = np.corrcoef(draw.normal(size=(tasks * 9, 5)))
    labels = zipped(linked, tasks, within=0.5, repeat=0.3)
    assert labels.shape == (tasks, 9)
    assert set(labels.flatten().tolist()) == set(range(9))
    first = [labels.flatten().tolist().index(number) for number in range(9)]
    assert first == sorted(first)


def greedy(linked: Values, tasks: int, within: float, repeat: float) -> list[set[int]]:
    """The rule of `zipped`, read literally: all pairs of groups anew for every join."""
    count = len(linked)
    per = count // tasks
    groups, left = [{unit} for unit in range(count)], [int(within * (count - per) // tasks)] * tasks

    def both(one: set[int], other: set[int]) -> set[int]:
        return {unit // per for unit in one} & {unit // per for unit in other}

    def value(one: set[int], other: set[int]) -> float:
        lowest = float(min(linked[u, v] for u in one for v in other))
        again = both(one, other) and len(one) + len(other) > 2
        return min(lowest, repeat * lowest) if again else lowest

    while len(groups) > per:
        pairs = [
            (one, other)
            for one, other in itertools.combinations(groups, 2)
            if all(left[task] > 0 for task in both(one, other))
        ]
        if not pairs:
            left = [count] * tasks
            continue
        one, other = max(pairs, key=lambda pair: value(*pair))
        for task in both(one, other):
            left[task] -= 1
        groups.remove(other)
        one |= other
    return groups


@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize(("within", "repeat"), [(0.0, 0.3), (0.4, 0.3), (1.0, 1.0), (0.5, 0.0)])
def test_zipping_is_its_rule(tasks: int, within: float, repeat: float) -> None:
    for seed in range(5):
        draw = np.random.default_rng(seed)
        linked = np.corrcoef(draw.normal(size=(tasks * 7, 6)))
        labels = zipped(linked, tasks, within=within, repeat=repeat).flatten().numpy()
        found = [set(np.flatnonzero(labels == group).tolist()) for group in range(7)]
        wanted = greedy(linked, tasks, within, repeat)
        assert sorted(map(sorted, found)) == sorted(map(sorted, wanted))


# Weights


def test_the_weights_of_zipped_units_by_hand() -> None:
    # two experts of three units: a0 b1 | a1 a2 | b0 b2, as groups 0, 1, 2
    labels = torch.tensor([[0, 1, 1], [2, 0, 2]])
    one, other = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([10.0, 20.0, 40.0])
    into = [{"blocks.0.mlp.fc1.bias": one}, {"blocks.0.mlp.fc1.bias": other}]
    base = {"blocks.0.mlp.fc1.bias": torch.zeros(3), "blocks.0.mlp.fc2.weight": torch.ones(1, 3)}
    # means of units: (1 + 20) / 2, (2 + 4) / 2, (10 + 40) / 2
    found = zipped_delta("blocks.0.mlp.fc1.bias", into, base, labels)
    assert found.tolist() == [10.5, 3.0, 25.0]
    # what uses them: sums of a group's columns, each 1 more by the base, halved for two tasks:
    # (2 + 21) / 2, (3 + 5) / 2, (11 + 41) / 2, less the base
    out = [{"blocks.0.mlp.fc2.weight": delta.unsqueeze(0)} for delta in (one, other)]
    found = zipped_delta("blocks.0.mlp.fc2.weight", out, base, labels)
    assert found.tolist() == [[10.5, 3.0, 25.0]]


# Encoders


def weights_of(seen: Sight, deltas: list[StateDict], task: int, **params: float) -> StateDict:
    return add(seen.base, SEVERAL["zipit"](deltas, seen, **params).deltas[task])


@pytest.mark.parametrize("tasks", [2, 3])
def test_identical_experts_are_zipped_to_the_same_function(tasks: int) -> None:
    seen = sight()
    deltas = [moved(seen, 1) for _ in range(tasks)]
    wanted = features(seen, add(seen.base, deltas[0]))
    for depth in (0, 2, 3):
        found = features(seen, weights_of(seen, deltas, 0, depth=depth))
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tasks", [2, 3])
def test_permuted_hidden_units_are_found_again(tasks: int) -> None:
    seen = sight()
    expert = add(seen.base, moved(seen, 1))
    others = [expert]
    for seed in range(1, tasks):
        other = expert
        for block, order in enumerate(orders(3, seed)):
            other = permuted(other, block, order)
        others.append(other)
    labels = matched(seen, others, 3, within=0.125, repeat=0.3)
    for block in range(3):
        found = labels[block]
        assert found is not None
        for seed in range(1, tasks):
            # unit i of the other is unit order[i] of the expert
            assert torch.equal(found[seed], orders(3, seed)[block])
    deltas = [subtract(one, seen.base) for one in others]
    wanted = features(seen, expert)
    for one, other in zip(
        features(seen, weights_of(seen, deltas, tasks - 1, depth=3)), wanted, strict=True
    ):
        assert_close(one, other, rtol=1e-5, atol=1e-5)
    mean = METHODS["average"](deltas)
    assert float((features(seen, add(seen.base, mean))[1] - wanted[1]).abs().max()) > 0.01


def test_blocks_after_the_depth_are_the_experts_own() -> None:
    seen = sight()
    deltas = [moved(seen, 1), moved(seen, 2)]
    result = SEVERAL["zipit"](deltas, seen, depth=1)
    average = METHODS["average"](deltas)
    for given, one in zip(deltas, result.deltas, strict=True):
        for name in given:
            if name.startswith(("blocks.1.", "blocks.2.", "norm.")):
                assert torch.equal(one[name], given[name])
            elif ".mlp." not in name:
                assert torch.equal(one[name], average[name])
    shared = "blocks.0.mlp.fc1.weight"
    assert torch.equal(*(one[shared] for one in result.deltas))
    assert result.passes == (1 + 2 + 2) / 3


def test_stored_are_the_shared_blocks_once_and_the_others_for_every_task() -> None:
    seen = sight()
    deltas = [moved(seen, 1), moved(seen, 2)]
    own = sum(t.numel() for n, t in seen.base.items() if n.startswith(("blocks.2.", "norm.")))
    every = sum(t.numel() for t in seen.base.values())
    assert SEVERAL["zipit"](deltas, seen, depth=2).bytes == 4 * (every + own)
    assert SEVERAL["zipit"](deltas, seen, depth=3).bytes == 4 * every
    assert SEVERAL["zipit"](deltas, seen, depth=0).bytes == 4 * 2 * every
    assert SEVERAL["zipit"](deltas, seen, depth=3).passes == 1.0
    assert SEVERAL["zipit"](deltas, seen, depth=0).passes == 2.0


def test_no_block_shared_gives_the_experts() -> None:
    seen = sight()
    deltas = [moved(seen, 1), moved(seen, 2)]
    for given, one in zip(deltas, SEVERAL["zipit"](deltas, seen, depth=0).deltas, strict=True):
        assert all(torch.equal(given[name], one[name]) for name in given)


def test_an_mlp_of_another_form_keeps_its_units_in_place() -> None:
    # a gated MLP multiplies halves of fc1, so that its units are not fc1's
    seen = sight(model="vit_giant_patch14_dinov2")
    assert not plain(seen.encoder.vit.blocks[0].mlp)
    deltas = [moved(seen, 1), moved(seen, 2)]
    found, mean = SEVERAL["zipit"](deltas, seen, depth=3).deltas[0], METHODS["average"](deltas)
    assert all(torch.equal(found[name], mean[name]) for name in mean)


def test_zipit_leaves_the_encoder_it_is_given_as_it_is() -> None:
    seen = sight()
    result = SEVERAL["zipit"]([moved(seen, 1), moved(seen, 2)], seen, depth=1)
    assert result.deltas[0]["blocks.0.mlp.fc1.weight"].isfinite().all()
    assert all(torch.equal(t, seen.base[n]) for n, t in seen.encoder.weights().items())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"depth": 4}, r"merge\.depth is 4; it must be at least 0 and at most 3"),
        ({"depth": 1.5}, r"merge\.depth is 1\.5; it must be a whole number"),
        ({"depth": 1, "within": 2}, r"merge\.within is 2; it must be at least 0 and at most 1"),
        ({"depth": 1, "repeat": -1}, r"merge\.repeat is -1; it must be at least 0 and at most 1"),
    ],
)
def test_wrong_parameters_are_refused_in_rehearsal(params: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SEVERAL["zipit"].rehearse(sight(images=0), tasks=2, **params)
