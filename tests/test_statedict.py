"""Weights as dictionaries: differences, sums, hashes and prefixes."""

import torch
from torch import Tensor

from simo_build.statedict import add, misfits, part, prefixed, state_hash, subtract


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.w": torch.randn(2, 3, generator=generator),
        "b": torch.randn((), generator=generator),
    }


def test_a_delta_by_hand() -> None:
    delta = subtract({"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 1.0])})
    assert delta["w"].tolist() == [2.0, 0.0]


def test_a_delta_of_half_precision_weights_is_float32() -> None:
    half = {name: tensor.half() for name, tensor in weights().items()}
    assert {tensor.dtype for tensor in subtract(half, half).values()} == {torch.float32}


def test_the_base_and_its_delta_give_the_expert_back() -> None:
    tuned, base = weights(1), weights(2)
    back = add(base, subtract(tuned, base))
    for name, tensor in tuned.items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-6, atol=1e-6)


def test_adding_leaves_the_base_alone() -> None:
    base = weights()
    add(base, weights(1))
    assert all(torch.equal(base[name], tensor) for name, tensor in weights().items())


def test_the_hash_does_not_depend_on_the_order_of_names() -> None:
    assert state_hash(weights()) == state_hash(dict(reversed(weights().items())))


def test_the_hash_does_not_depend_on_how_equal_values_are_stored() -> None:
    exact = {"w": torch.tensor([[0.5, 1.0], [2.0, -4.0]])}
    stored = {"w": exact["w"].half().t().contiguous().t()}
    assert state_hash(exact) == state_hash(stored)


def test_the_hash_changes_with_a_value() -> None:
    changed = weights()
    changed["a.w"][1, 2] += 1e-6
    assert state_hash(changed) != state_hash(weights())


def test_the_hash_changes_with_a_name() -> None:
    tensor = torch.ones(2)
    assert state_hash({"a": tensor}) != state_hash({"b": tensor})


def test_the_hash_changes_with_a_shape() -> None:
    assert state_hash({"w": torch.ones(2, 3)}) != state_hash({"w": torch.ones(3, 2)})


def test_a_prefix_comes_off_again() -> None:
    both = prefixed(weights(), "head.") | prefixed(weights(1), "encoder.")
    assert set(part(both, "head.")) == set(weights())
    assert torch.equal(part(both, "head.")["a.w"], weights()["a.w"])


def test_only_the_first_prefix_comes_off() -> None:
    assert set(part({"head.head.w": torch.ones(1)}, "head.")) == {"head.w"}


def test_misfits_name_what_is_missing_foreign_and_of_another_shape() -> None:
    like = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(4)}
    state = {"b": torch.ones(3), "c": torch.ones(5), "d": torch.ones(1)}
    assert list(misfits(state, like)) == [
        "a: missing, (2,) is needed",
        "c: (5,) here, (4,) in the model",
        "d: (1,), the model has no such tensor",
    ]


def test_equal_names_and_shapes_fit() -> None:
    assert not list(misfits(weights(0), weights(1)))
