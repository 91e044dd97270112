"""Methods that weigh every weight by how much it tells an expert's outputs: Fisher information."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simo_build.merge.depth import ByLayer, by_layer
from simo_build.merge.parameters import flag, number
from simo_build.merge.reading import Delta, Lazily, each, stacked
from simo_build.merge.registry import Evidence, method


@method(paper="https://arxiv.org/abs/2111.09832", needs="fisher")
def fisher(
    deltas: Sequence[Delta],
    evidence: Sequence[Evidence],
    *,
    alpha: ByLayer = 1.0,
    floor: float = 1e-6,
    normalise: bool = True,
) -> Delta:
    """Average every weight by the experts' Fisher information of it, and scale.

    The information is that of the experts' own predictions, without labels. `normalise` brings the
    information of every expert to length 1, as the source does; `floor` is the least that a weight
    then counts, so that one which tells nothing takes the mean.
    """
    return weighted(deltas, evidence, alpha=alpha, floor=floor, normalise=normalise)


@method(paper="https://arxiv.org/abs/2111.09832", needs="fisher_labels")
def fisher_labelled(
    deltas: Sequence[Delta],
    evidence: Sequence[Evidence],
    *,
    alpha: ByLayer = 1.0,
    floor: float = 1e-6,
    normalise: bool = True,
) -> Delta:
    """Do the same with squared gradients of the loss on labelled images (empirical information)."""
    return weighted(deltas, evidence, alpha=alpha, floor=floor, normalise=normalise)


def weighted(
    deltas: Sequence[Delta],
    evidence: Sequence[Evidence],
    *,
    alpha: ByLayer,
    floor: float,
    normalise: bool,
) -> Delta:
    """Average every weight with weights of its own, (sum of f_t * delta_t) / (sum of f_t)."""
    scale = by_layer("alpha", alpha, deltas[0])
    least = number("floor", floor, least=0, most=1)
    lengths_T = [length(one) if flag("normalise", normalise) else 1.0 for one in evidence]

    def merged(name: str) -> Tensor:
        stack = stacked(deltas, name).double()
        counts = torch.stack([_information(one, name, stack[0]) for one in evidence])
        counts = (counts / each(counts.new_tensor(lengths_T), counts)).clamp(min=least)
        total = counts.sum(dim=0)
        mean = torch.where(total > 0, (counts * stack).sum(dim=0) / total, stack.mean(dim=0))
        return (scale[name] * mean).float()

    return Lazily(deltas[0], merged)


def _information(evidence: Evidence, name: str, like: Tensor) -> Tensor:
    """Give the information of one tensor's weights; of one that was not looked at it is zero."""
    return evidence[name].double() if name in evidence else torch.zeros_like(like)


def length(evidence: Evidence) -> float:
    """Give the L2 norm over all weights; 1 if all are zero."""
    return math.sqrt(math.fsum(float(evidence[n].double().square().sum()) for n in evidence)) or 1.0
