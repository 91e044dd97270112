"""Losses and last steps: worked by hand, and what happens where there is no truth."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from simo_build.losses import (
    TORCH_KINDS,
    TorchKind,
    absolute_error,
    as_measured,
    component_error,
    cross_entropy,
    cross_entropy_of_all,
    known_error,
    one_minus_cosine,
    torch_kind,
)
from simo_build.recipe import TaskPart
from simo_runtime.metrics import IGNORE
from simo_runtime.tasks import KINDS

CHANNELS = {name: kind.channels or 4 for name, kind in KINDS.items()}


def raw_output(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, CHANNELS[kind], 5, 6, generator=generator, requires_grad=True)


def no_truth(kind: str) -> Tensor:
    empty, channels = KINDS[kind].empty, KINDS[kind].channels
    if channels is None:
        return torch.full((2, 5, 6), int(empty), dtype=torch.uint8)
    if channels == 3:
        return torch.full((2, 5, 6, 3), empty, dtype=torch.float16)
    return torch.full((2, 5, 6), empty)


def test_every_kind_of_the_runtime_has_a_torch_half() -> None:
    assert set(TORCH_KINDS) == set(KINDS)


@pytest.mark.parametrize(("name", "kind"), TORCH_KINDS.items(), ids=list(TORCH_KINDS))
class TestEveryKind:
    def test_an_image_without_truth_costs_nothing(self, name: str, kind: TorchKind) -> None:
        assert kind.loss(raw_output(name), no_truth(name)).item() == 0.0

    def test_an_image_without_truth_teaches_nothing(self, name: str, kind: TorchKind) -> None:
        raw = raw_output(name)
        kind.loss(raw, no_truth(name)).backward()
        assert raw.grad is not None
        assert torch.count_nonzero(raw.grad) == 0

    def test_a_raw_output_of_zero_has_a_finite_gradient(self, name: str, kind: TorchKind) -> None:
        raw = torch.zeros(1, CHANNELS[name], 2, 2, requires_grad=True)
        truth = torch.ones(1, 2, 2, 3) if CHANNELS[name] == 3 else torch.ones(1, 2, 2)
        kind.loss(raw, truth).backward()
        assert raw.grad is not None
        assert raw.grad.isfinite().all()


def test_cross_entropy_by_hand() -> None:
    # two classes with equal scores: -log(1/2) at every pixel that counts
    raw = torch.zeros(1, 2, 1, 3)
    truth = torch.tensor([[[0, 1, IGNORE]]], dtype=torch.uint8)
    assert cross_entropy(raw, truth).item() == pytest.approx(math.log(2), rel=1e-6)


def test_cross_entropy_of_all_by_hand() -> None:
    # the same two pixels, but three divide; it is 0 where no pixel counts
    raw = torch.zeros(1, 2, 1, 3)
    truth = torch.tensor([[[0, 1, IGNORE]]], dtype=torch.uint8)
    assert cross_entropy_of_all(raw, truth).item() == pytest.approx(2 * math.log(2) / 3, rel=1e-6)
    assert cross_entropy_of_all(raw, torch.full_like(truth, IGNORE)).item() == 0.0
    known = torch.tensor([[[0, 1, 1]]], dtype=torch.uint8)
    assert torch.equal(cross_entropy_of_all(raw, known), cross_entropy(raw, known))


def test_component_error_by_hand() -> None:
    # pixel 1: (1 + 0 + 2) / 3 = 1, whose length counts; pixel 2: (0 + 0 + 0.5) / 3; 3 is invalid
    raw = torch.tensor([[1.0, 0, 3], [0, 0, 0.5], [9, 9, 9]]).T.reshape(1, 3, 1, 3)
    truth = torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 0]]).reshape(1, 1, 3, 3).half()
    assert component_error(raw, truth).item() == pytest.approx((1 + 0.5 / 3) / 2, rel=1e-6)
    assert component_error(raw, torch.zeros_like(truth)).item() == 0.0


@pytest.mark.parametrize(
    ("keys", "loss"),
    [
        ({"kind": "normals"}, one_minus_cosine),
        ({"kind": "normals", "loss": "cosine"}, one_minus_cosine),
        ({"kind": "normals", "loss": "l1"}, component_error),
        ({"kind": "segmentation", "labels": ["a", "b"]}, cross_entropy),
        ({"kind": "parts", "labels": ["a", "b"], "denominator": "all"}, cross_entropy_of_all),
        ({"kind": "depth"}, absolute_error),
    ],
)
def test_a_task_says_its_loss(keys: dict[str, object], loss: object) -> None:
    part = TaskPart.model_validate(keys)
    assert torch_kind(part).loss is loss
    assert torch_kind(part).finish is TORCH_KINDS[part.kind].finish


def test_cross_entropy_does_not_see_ignored_pixels() -> None:
    raw = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([[[0, 1], [2, IGNORE]]], dtype=torch.uint8)
    other = raw.clone()
    other[..., 1, 1] = 100.0
    assert torch.equal(cross_entropy(raw, truth), cross_entropy(other, truth))


def test_absolute_error_by_hand() -> None:
    # |1 - 2| and |5 - 2| over two valid pixels; the third has no truth
    raw, truth = torch.tensor([[[[1.0, 5.0, 9.0]]]]), torch.tensor([[[2.0, 2.0, 0.0]]])
    assert absolute_error(raw, truth).item() == 2.0


def test_known_error_by_hand() -> None:
    # |1 - 0| and |5 + 1| over two known pixels, of which one is 0; the third has no truth
    raw, truth = torch.tensor([[[[1.0, 5.0, 9.0]]]]), torch.tensor([[[0.0, -1.0, math.nan]]])
    assert known_error(raw, truth).item() == 3.5


def test_known_error_of_colours_by_hand() -> None:
    # pixel 1: (1 + 0 + 2) / 3 = 1; pixel 2 lacks one component of its truth
    raw = torch.tensor([[1.0, 0, 0], [5, 5, 5]]).T.reshape(1, 3, 1, 2)
    truth = torch.tensor([[0.0, 0, 2], [0, math.nan, 0]]).reshape(1, 1, 2, 3).half()
    assert known_error(raw, truth).item() == 1.0


def test_an_unknown_pixel_gets_no_gradient_from_known_error() -> None:
    raw = torch.ones(1, 1, 1, 2, requires_grad=True)
    known_error(raw, torch.tensor([[[0.0, math.nan]]])).backward()
    assert raw.grad is not None
    assert raw.grad.flatten().tolist() == [1.0, 0.0]


def test_one_minus_cosine_by_hand() -> None:
    # along the truth 1 - 1, across it 1 - 0, against it 1 + 1; the fourth has no truth
    raw = torch.tensor([[3.0, 0, 0], [0, 5, 0], [-2, 0, 0], [1, 1, 1]]).T.reshape(1, 3, 1, 4)
    truth = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]).reshape(1, 1, 4, 3)
    assert one_minus_cosine(raw, truth).item() == pytest.approx(1.0, abs=1e-6)


def test_one_minus_cosine_does_not_reward_length() -> None:
    raw, truth = torch.ones(1, 3, 2, 2), torch.ones(1, 2, 2, 3) / math.sqrt(3)
    assert torch.allclose(one_minus_cosine(raw, truth), one_minus_cosine(7 * raw, truth), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [
        ("segmentation", (2, 5, 6), torch.uint8),
        ("depth", (2, 5, 6), torch.float32),
        ("normals", (2, 3, 5, 6), torch.float32),
        ("parts", (2, 5, 6), torch.uint8),
        ("log_depth", (2, 5, 6), torch.float32),
        ("disparity", (2, 5, 6), torch.float32),
        ("edges", (2, 5, 6), torch.float32),
        ("keypoints", (2, 5, 6), torch.float32),
        ("autoencoding", (2, 3, 5, 6), torch.float32),
    ],
)
def test_the_last_step_gives_the_shape_and_type_of_a_prediction(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    finished = TORCH_KINDS[kind].finish(raw_output(kind))
    assert (finished.shape, finished.dtype) == (shape, dtype)


def test_the_highest_of_255_classes_survives_the_last_step() -> None:
    raw = torch.zeros(1, 255, 1, 1)
    raw[0, 254] = 1.0
    assert TORCH_KINDS["segmentation"].finish(raw).item() == 254


def test_finished_normals_have_length_one() -> None:
    length = TORCH_KINDS["normals"].finish(raw_output("normals")).norm(dim=1)
    torch.testing.assert_close(length, torch.ones_like(length))


def test_a_finished_normal_of_length_zero_is_not_nan() -> None:
    assert TORCH_KINDS["normals"].finish(torch.zeros(1, 3, 1, 1)).isfinite().all()


def test_metrics_take_channels_last() -> None:
    finished = torch.arange(6.0).reshape(1, 3, 1, 2)
    assert np.array_equal(as_measured(finished)[0, 0], [[0, 2, 4], [1, 3, 5]])


def test_maps_without_channels_are_measured_as_they_are() -> None:
    assert as_measured(torch.zeros(2, 5, 6)).shape == (2, 5, 6)
