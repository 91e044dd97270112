"""What a head's output says is likely, by kind of task: outcomes drawn of it, and how likely.

Fisher information is what the log likelihood of an outcome says of the weights, over the outcomes
that the model itself holds likely; no truth is needed. Every pixel is an outcome of its own.

    classes   the softmax of the logits
    values    Laplace of scale 1 about the output: what the absolute error is the likelihood of.
              Whichever value is drawn, the derivative is +1 or -1, so that signs are drawn instead.
              A Gaussian of variance 1 has the same information: the squares of the output's
              derivatives, which random signs give without bias (Hutchinson).
    vectors   the same of each component of the unit vector

Shapes: B images, K channels, H x W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How outcomes of a raw output are drawn, and their log likelihood up to a constant.

    An outcome is drawn on the CPU, so that a seed gives the same on every machine.
    """

    draw: Callable[[Tensor, torch.Generator], Tensor]
    likelihood: Callable[[Tensor, Tensor], Tensor]  # summed over all pixels


def drawn_classes(raw_BKHW: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a class (B, H, W) for every pixel from its softmax."""
    upto_BKHW = raw_BKHW.detach().double().softmax(dim=1).cumsum(dim=1)
    size = (len(raw_BKHW), 1, *raw_BKHW.shape[2:])
    place_B1HW = torch.rand(size, generator=generator, dtype=torch.float64).to(raw_BKHW.device)
    # the last class takes what rounding leaves above the last sum
    return (upto_BKHW[:, :-1] <= place_B1HW).sum(dim=1)


def class_likelihood(raw_BKHW: Tensor, drawn_BHW: Tensor) -> Tensor:
    """Give the log probability of all pixels' classes."""
    return -F.cross_entropy(raw_BKHW, drawn_BHW, reduction="sum")


def drawn_signs(raw_BKHW: Tensor, generator: torch.Generator) -> Tensor:
    """Draw +1 or -1 for every number."""
    bits = torch.randint(0, 2, raw_BKHW.shape, generator=generator)
    return (2 * bits - 1).to(raw_BKHW)


def value_likelihood(raw_BKHW: Tensor, drawn_BKHW: Tensor) -> Tensor:
    """Give what has the derivatives of a Laplace's log likelihood where its signs were drawn."""
    return (raw_BKHW * drawn_BKHW).sum()


def vector_likelihood(raw_B3HW: Tensor, drawn_B3HW: Tensor) -> Tensor:
    """Give the same for the components of unit vectors."""
    return value_likelihood(F.normalize(raw_B3HW, dim=1, eps=1e-6), drawn_B3HW)


OF_CLASSES = Sampling(drawn_classes, class_likelihood)
OF_VALUES = Sampling(drawn_signs, value_likelihood)
OF_VECTORS = Sampling(drawn_signs, vector_likelihood)
