"""Teaching by raw outputs: distances worked in float64, and which pixels are sure enough."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.losses import TORCH_KINDS, TorchKind
from simo_build.teaching import (
    absolute,
    against_most_likely,
    agreed_or_surer,
    consistent,
    divergence,
    highest,
    mean_where,
    surest,
    turn,
    uncertainty,
)
from simo_runtime.tasks import KINDS

CHANNELS = {name: kind.channels or 4 for name, kind in KINDS.items()}


def raw(kind: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, CHANNELS[kind], 5, 6, generator=generator)


@pytest.mark.parametrize(("name", "kind"), TORCH_KINDS.items(), ids=list(TORCH_KINDS))
class TestEveryKind:
    def test_a_student_like_its_teacher_is_at_no_distance(self, name: str, kind: TorchKind) -> None:
        found = kind.teaching.distance(raw(name), raw(name))
        assert_close(found, torch.zeros(2, 5, 6), rtol=0, atol=1e-6)

    def test_another_student_is_at_some_distance(self, name: str, kind: TorchKind) -> None:
        assert (kind.teaching.distance(raw(name, 1), raw(name)) > 0).all()

    def test_turning_back_twice_changes_nothing(self, name: str, kind: TorchKind) -> None:
        turned = kind.teaching.turned
        assert torch.equal(turned(turned(raw(name))), raw(name))

    def test_the_mean_of_an_output_with_itself_says_the_same(
        self, name: str, kind: TorchKind
    ) -> None:
        mean = kind.teaching.mean(raw(name), raw(name))
        assert_close(
            kind.teaching.distance(mean, raw(name)), torch.zeros(2, 5, 6), atol=1e-6, rtol=0
        )

    def test_the_mean_of_two_outputs_lies_between_them(self, name: str, kind: TorchKind) -> None:
        one, other, distance = raw(name), raw(name, 1), kind.teaching.distance
        mean = kind.teaching.mean(one, other)
        assert_close(mean, kind.teaching.mean(other, one))
        assert float(distance(mean, one).mean()) < float(distance(other, one).mean())
        assert float(distance(mean, other).mean()) < float(distance(one, other).mean())

    def test_a_gradient_reaches_the_student(self, name: str, kind: TorchKind) -> None:
        for distance in (kind.teaching.distance, kind.teaching.pseudo):
            student = raw(name, 1).requires_grad_()
            distance(student, raw(name)).mean().backward()
            assert student.grad is not None
            assert student.grad.abs().sum() > 0

    def test_how_sure_a_teacher_is_is_told_for_every_pixel(
        self, name: str, kind: TorchKind
    ) -> None:
        teaching = kind.teaching
        assert teaching.sure(raw(name), teaching.turned(raw(name, 1))).shape == (2, 5, 6)


def softmax64(raw_K: np.ndarray) -> np.ndarray:
    exponents = np.exp(raw_K.astype(np.float64) - raw_K.max())
    return exponents / exponents.sum()


def test_the_distance_of_classes_is_the_divergence_in_float64() -> None:
    student, teacher = raw("segmentation", 1), raw("segmentation")
    p, q = (softmax64(one[1, :, 2, 3].numpy()) for one in (teacher, student))
    expected = float((p * np.log(p / q)).sum())
    assert divergence(student, teacher)[1, 2, 3].item() == pytest.approx(expected, rel=1e-5)


def test_a_divergence_by_hand() -> None:
    # teacher (3/4, 1/4), student (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2
    teacher = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert divergence(torch.zeros(1, 2, 1, 1), teacher).item() == pytest.approx(expected, rel=1e-5)


def test_the_distance_from_pseudo_labels_by_hand() -> None:
    # the teacher's most likely class is the second; the student gives it 1/4
    student = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1)
    teacher = torch.tensor([0.0, 0.1]).reshape(1, 2, 1, 1)
    assert against_most_likely(student, teacher).item() == pytest.approx(math.log(4), rel=1e-6)


def test_the_distance_of_depths_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 5.0]]]]), torch.tensor([[[[2.5, 2.0]]]])
    assert absolute(student, teacher).tolist() == [[[1.5, 3.0]]]


def test_the_distance_of_vectors_by_hand() -> None:
    # across, along and against the teacher, at other lengths
    student = torch.tensor([[0.0, 2, 0], [3, 0, 0], [-1, 0, 0]]).T.reshape(1, 3, 1, 3)
    teacher = torch.tensor([[5.0, 0, 0], [2, 0, 0], [4, 0, 0]]).T.reshape(1, 3, 1, 3)
    assert_close(turn(student, teacher), torch.tensor([[[1.0, 0.0, 2.0]]]))


def test_entropy_by_hand() -> None:
    # (1/2, 1/2): log 2; (3/4, 1/4): -3/4 log 3/4 - 1/4 log 1/4
    classes = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]]).T.reshape(1, 2, 1, 2)
    other = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert_close(uncertainty(classes), torch.tensor([[[math.log(2), other]]]))


def test_the_entropy_of_extreme_scores_is_finite() -> None:
    classes = torch.tensor([[1e4, -1e4]]).reshape(1, 2, 1, 1).requires_grad_()
    found = uncertainty(classes)
    found.sum().backward()
    assert found.item() == 0
    assert classes.grad is not None
    assert classes.grad.isfinite().all()


def test_certainty_of_classes_is_the_highest_probability() -> None:
    classes = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1)
    assert highest(classes, classes).item() == pytest.approx(0.75)


def test_certainty_of_values_is_how_little_mirroring_changes_them() -> None:
    here, turned_back = torch.tensor([[[[2.0, 5.0]]]]), torch.tensor([[[[2.5, 5.0]]]])
    assert consistent(absolute)(here, turned_back).tolist() == [[[-0.5, 0.0]]]


def test_a_mirrored_vector_turns_in_x_when_it_is_turned_back() -> None:
    mirrored = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]).T.reshape(1, 3, 1, 2)
    expected = torch.tensor([[-0.4, 0.5, 0.6], [-0.1, 0.2, 0.3]]).T.reshape(1, 3, 1, 2)
    assert torch.equal(TORCH_KINDS["normals"].teaching.turned(mirrored), expected)


def test_a_pseudo_label_is_trusted_where_both_agree_or_the_teacher_is_surer() -> None:
    # per pixel: agree though the student is surer; differ, teacher surer; differ, student surer;
    # differ, equally sure
    student = torch.tensor([[3.0, 0], [1, 0], [3, 0], [2, 0]]).T.reshape(1, 2, 1, 4)
    teacher = torch.tensor([[1.0, 0], [0, 3], [0, 1], [0, 2]]).T.reshape(1, 2, 1, 4)
    assert agreed_or_surer(student, teacher).tolist() == [[[True, True, False, True]]]


def test_the_surest_share_of_every_image_is_kept() -> None:
    sure = torch.tensor([[[0.1, 0.9], [0.5, 0.7]], [[4.0, 3.0], [2.0, 1.0]]])
    expected = [[[False, True], [False, True]], [[True, True], [False, False]]]
    assert surest(sure, 0.5).tolist() == expected


@pytest.mark.parametrize(("share", "kept"), [(1.0, 30), (0.1, 3), (1e-9, 1)])
def test_at_least_one_pixel_is_kept(share: float, kept: int) -> None:
    sure = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(0))
    assert surest(sure, share).flatten(1).sum(dim=1).tolist() == [kept, kept]


def test_pixels_as_sure_as_the_last_one_are_kept_too() -> None:
    assert surest(torch.tensor([[[1.0, 1.0, 0.0, 1.0]]]), 0.25).sum().item() == 3


def test_the_mean_is_over_the_pixels_that_count() -> None:
    values = torch.tensor([[[1.0, 2.0, 6.0]]])
    assert mean_where(values, torch.tensor([[[True, True, False]]])).item() == 1.5


def test_where_no_pixel_counts_nothing_is_lost_or_taught() -> None:
    values = torch.full((1, 1, 2), torch.inf, requires_grad=True)
    found = mean_where(values, torch.zeros(1, 1, 2, dtype=torch.bool))
    found.backward()
    assert found.item() == 0
    assert values.grad is not None
    assert torch.count_nonzero(values.grad) == 0


def test_the_mean_of_classes_is_that_of_probabilities() -> None:
    # softmax of [ln 3, 0] is [3/4, 1/4], of [0, 0] it is [1/2, 1/2]: the mean is [5/8, 3/8]
    one = torch.tensor([math.log(3), 0.0]).reshape(1, 2, 1, 1)
    mean = TORCH_KINDS["segmentation"].teaching.mean(one, torch.zeros(1, 2, 1, 1))
    assert_close(mean.softmax(dim=1).flatten(), torch.tensor([5 / 8, 3 / 8]))


def test_the_mean_of_directions_does_not_hang_on_their_lengths() -> None:
    one = torch.tensor([3.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    other = torch.tensor([0.0, 0.5, 0.0]).reshape(1, 3, 1, 1)
    mean = TORCH_KINDS["normals"].teaching.mean(one, other)
    assert_close(mean.flatten(), torch.tensor([0.5, 0.5, 0.0]))
