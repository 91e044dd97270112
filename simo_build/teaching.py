"""What a teacher's raw output teaches a student's: a distance at every pixel, without labels.

Teacher and student are raw outputs of the same head on the same images, mostly an expert's and the
shared encoder's. Which pixels count is told by how sure the teacher is of them.

Shapes: B images, K channels, H x W pixels.  A raw output is (B, K, H, W).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How a kind of task is taught by raw outputs alone; every function gives (B, H, W).

    distance   of a student's raw output from its teacher's; 0 where both say the same
    pseudo     the same against the teacher's prediction, taken for the truth
    sure       how sure a teacher is, from its raw output and the one on the mirrored image, which
               is turned back; the larger, the surer
    trusted    whether a pixel's pseudo-target counts, from student and teacher; None: all do
    entropy    of the student's own output; None: this kind has no distribution to take it of
    turned     undo the mirroring in a raw output
    mean       one raw output for two, of what they say together
    """

    distance: Callable[[Tensor, Tensor], Tensor]
    pseudo: Callable[[Tensor, Tensor], Tensor]
    sure: Callable[[Tensor, Tensor], Tensor]
    turned: Callable[[Tensor], Tensor]
    mean: Callable[[Tensor, Tensor], Tensor]
    trusted: Callable[[Tensor, Tensor], Tensor] | None = None
    entropy: Callable[[Tensor], Tensor] | None = None


def divergence(student_BKHW: Tensor, teacher_BKHW: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student's classes from the teacher's, in nats.

    This is cross entropy with soft labels, less what no student can change.
    """
    log_teacher = F.log_softmax(teacher_BKHW, dim=1)
    log_student = F.log_softmax(student_BKHW, dim=1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)


def against_most_likely(student_BKHW: Tensor, teacher_BKHW: Tensor) -> Tensor:
    """Cross entropy with the teacher's most likely class."""
    return F.cross_entropy(student_BKHW, teacher_BKHW.argmax(dim=1), reduction="none")


def absolute(student_BKHW: Tensor, teacher_BKHW: Tensor) -> Tensor:
    """Mean absolute difference over the channels."""
    return (student_BKHW - teacher_BKHW).abs().mean(dim=1)


def turn(student_B3HW: Tensor, teacher_B3HW: Tensor) -> Tensor:
    """1 - cosine of the vectors, whatever their lengths."""
    student_B3HW = F.normalize(student_B3HW, dim=1, eps=EPSILON)
    teacher_B3HW = F.normalize(teacher_B3HW, dim=1, eps=EPSILON)
    return 1 - (student_B3HW * teacher_B3HW).sum(dim=1)


def highest(teacher_BKHW: Tensor, _: Tensor) -> Tensor:
    """Probability of the most likely class."""
    return teacher_BKHW.softmax(dim=1).amax(dim=1)


def consistent(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a measure of certainty: how little mirroring the image changes what a teacher says."""
    return lambda teacher, turned_back: -distance(turned_back, teacher)


def agreed_or_surer(student_BKHW: Tensor, teacher_BKHW: Tensor) -> Tensor:
    """Trust the teacher where both name one class, or where it is at least as sure as the student.

    This is the filter of Model Tinting (arXiv 2412.19098), pixel by pixel.
    """
    same_BHW = student_BKHW.argmax(dim=1) == teacher_BKHW.argmax(dim=1)
    return same_BHW | (highest(teacher_BKHW, teacher_BKHW) >= highest(student_BKHW, student_BKHW))


def uncertainty(student_BKHW: Tensor) -> Tensor:
    """Entropy of the classes, in nats."""
    log_student = F.log_softmax(student_BKHW, dim=1)
    return -(log_student.exp() * log_student).sum(dim=1)


def back(raw_BKHW: Tensor) -> Tensor:
    """Mirror left and right."""
    return raw_BKHW.flip(3)


def back_vectors(raw_B3HW: Tensor) -> Tensor:
    """Mirror left and right; vectors turn in x."""
    return raw_B3HW.flip(3) * raw_B3HW.new_tensor([-1.0, 1.0, 1.0]).reshape(3, 1, 1)


def mean_of_classes(one_BKHW: Tensor, other_BKHW: Tensor) -> Tensor:
    """Give logits of the mean of two outputs' probabilities."""
    logs = F.log_softmax(one_BKHW, dim=1), F.log_softmax(other_BKHW, dim=1)
    return torch.logaddexp(*logs) - math.log(2)


def mean_of_values(one_BKHW: Tensor, other_BKHW: Tensor) -> Tensor:
    """Give the mean of two outputs."""
    return (one_BKHW + other_BKHW) / 2


def mean_of_vectors(one_B3HW: Tensor, other_B3HW: Tensor) -> Tensor:
    """Give the mean of two directions, each of length 1."""
    pair = (F.normalize(raw, dim=1, eps=EPSILON) for raw in (one_B3HW, other_B3HW))
    return mean_of_values(*pair)


CLASSES = Teaching(
    distance=divergence,
    pseudo=against_most_likely,
    sure=highest,
    turned=back,
    mean=mean_of_classes,
    trusted=agreed_or_surer,
    entropy=uncertainty,
)
VALUES = Teaching(
    distance=absolute,
    pseudo=absolute,
    sure=consistent(absolute),
    turned=back,
    mean=mean_of_values,
)
VECTORS = Teaching(
    distance=turn,
    pseudo=turn,
    sure=consistent(turn),
    turned=back_vectors,
    mean=mean_of_vectors,
)


def surest(sure_BHW: Tensor, share: float) -> Tensor:
    """Keep a share of every image's pixels, the surest ones; all that are as sure as the last."""
    flat_BP = sure_BHW.flatten(1)
    keep = max(1, round(share * flat_BP.shape[1]))
    least_B1 = flat_BP.kthvalue(flat_BP.shape[1] - keep + 1, dim=1, keepdim=True).values
    return (flat_BP >= least_B1).view_as(sure_BHW)


def mean_where(values_BHW: Tensor, counts_BHW: Tensor) -> Tensor:
    """Average over the pixels that count; 0 if none does."""
    total = torch.where(counts_BHW, values_BHW, 0.0).sum()
    return total / counts_BHW.sum().clamp(min=1)
