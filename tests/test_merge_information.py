"""Fisher-weighted averages, worked by hand."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.merge import METHODS

FIRST, SECOND = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([5.0, 4.0])}


def merged(name: str, *information: list[float], **params: object) -> Tensor:
    evidence = [{"w": torch.tensor(one)} for one in information]
    return METHODS[name]([FIRST, SECOND], evidence, **params)["w"]


@pytest.mark.parametrize("name", ["fisher", "fisher_labelled"])
def test_every_weight_is_averaged_by_its_information(name: str) -> None:
    # (3 * 1 + 1 * 5) / 4 = 2 and (1 * 2 + 3 * 4) / 4 = 3.5, with lengths that are alike
    assert_close(merged(name, [3.0, 1.0], [1.0, 3.0]), torch.tensor([2.0, 3.5]))
    doubled = merged(name, [3.0, 1.0], [1.0, 3.0], alpha=2)
    assert_close(doubled, torch.tensor([4.0, 7.0]))


def test_information_is_brought_to_one_length_unless_told_otherwise() -> None:
    # of lengths 5 and 10: (0.6 * 1 + 0 * 5) / 0.6 = 1 and (0.8 * 2 + 1 * 4) / 1.8
    given = [3.0, 4.0], [0.0, 10.0]
    assert_close(merged("fisher", *given, floor=0), torch.tensor([1.0, 5.6 / 1.8]))
    plain = merged("fisher", *given, floor=0, normalise=False)
    assert_close(plain, torch.tensor([1.0, 48 / 14]))


def test_the_length_is_that_of_all_tensors_together() -> None:
    deltas = [{"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.zeros(1), "b": torch.ones(1)}]
    evidence = [
        {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])},
        {"a": torch.tensor([5.0]), "b": torch.tensor([0.0])},
    ]
    # 0.6 / (0.6 + 1)
    assert_close(METHODS["fisher"](deltas, evidence)["a"], torch.tensor([0.375]))


def test_a_weight_that_tells_nothing_takes_the_mean() -> None:
    for floor in (0, 1e-6):
        found = merged("fisher", [1.0, 0.0], [1.0, 0.0], floor=floor)
        assert_close(found, torch.tensor([3.0, 3.0]))
    assert_close(merged("fisher", [0.0, 0.0], [0.0, 0.0]), torch.tensor([3.0, 3.0]))


def test_the_floor_is_the_least_that_a_weight_counts() -> None:
    # 0.6, 0.8 and 0, 1 become 0.6, 0.8 and 0.2, 1
    found = merged("fisher", [3.0, 4.0], [0.0, 1.0], floor=0.2)
    assert_close(found, torch.tensor([(0.6 + 0.2 * 5) / 0.8, 5.6 / 1.8]))
