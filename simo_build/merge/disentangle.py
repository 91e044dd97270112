"""AWD: take what the tasks share out of every delta, so that the rest is nearer to orthogonal.

Shapes: T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from simo_build.merge.depth import ByLayer, by_layer
from simo_build.merge.iterative import lr_of
from simo_build.merge.parameters import number, whole
from simo_build.merge.reading import Delta, each, flat, stacked
from simo_build.merge.registry import method
from simo_build.statedict import StateDict

ROUNDING = 1e-12  # a squared norm below this share of its delta's own is rounding


@method(paper="https://arxiv.org/abs/2411.18729")
def awd(
    deltas: Sequence[Delta],
    *,
    alpha: ByLayer,
    penalty: float = 0.1,
    steps: float = 300,
    lr: float = 0.01,
) -> StateDict:
    """Subtract one redundant vector from every delta, add up, and scale.

    The redundant vector r minimises, by gradient descent from zero, the mean over pairs of tasks
    of |cos(delta_i - r, delta_j - r)|, plus penalty * |r| (equations 9 to 11), over whole vectors.
    Every gradient lies in the span of the deltas, so r = sum of a_t * delta_t, and the T numbers a
    follow exactly from the deltas' T x T inner products. The paper's code is not published: the
    start and the plain descent are a reconstruction. A delta of zeros takes no part: nothing is
    subtracted from it.
    """
    scale, weight = by_layer("alpha", alpha, deltas[0]), number("penalty", penalty, least=0)
    count, rate = whole("steps", steps, least=1), lr_of(lr)
    gram_TT = inner_products(deltas)
    moved_T = gram_TT.diagonal() > 0
    shares_T = redundancy(gram_TT, penalty=weight, lr=rate, steps=count)
    kept_T = torch.where(moved_T, 1 - moved_T.sum() * shares_T, 0.0)

    def merged(name: str) -> Tensor:
        stack = stacked(deltas, name)
        return scale[name] * (stack * each(kept_T.to(stack.device), stack)).sum(dim=0).float()

    return {name: merged(name) for name in deltas[0]}


def inner_products(deltas: Sequence[Delta]) -> Tensor:
    """Multiply whole deltas with one another, in float64: (T, T), on the CPU."""
    gram_TT = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for name in deltas[0]:
        values_Tn = flat(stacked(deltas, name)).double()
        gram_TT += (values_Tn @ values_Tn.T).cpu()
    return gram_TT


def redundancy(gram_TT: Tensor, *, penalty: float, lr: float, steps: int) -> Tensor:
    """Follow AWD's gradient; give the redundant vector as a share of every delta."""
    shares_T = gram_TT.new_zeros(len(gram_TT))
    for _ in range(steps):
        pulls_T, length = disentangling(gram_TT, shares_T), norm(gram_TT, shares_T)
        slope_T = pulls_T - pulls_T.sum() * shares_T
        if length > 0:  # the norm has no gradient at zero; zero is its subgradient of least norm
            slope_T = slope_T + penalty / length * shares_T
        shares_T = shares_T - lr * slope_T
    return shares_T


def norm(gram_TT: Tensor, shares_T: Tensor) -> float:
    """Give the norm of the redundant vector."""
    return float((shares_T @ gram_TT @ shares_T).clamp(min=0).sqrt())


def disentangling(gram_TT: Tensor, shares_T: Tensor) -> Tensor:
    """Give the gradient of the mean of |cos| as a weight for every delta_t - r.

    For v_t = delta_t - r of norm n_t, the weight of v_i is the sum over j of
    2 * sign(cos_ij) * (cos_ij / n_i^2 - 1 / (n_i * n_j)), divided by the number of ordered pairs.
    """
    pulled_T = gram_TT @ shares_T
    inner_TT = gram_TT - pulled_T - pulled_T.unsqueeze(1) + shares_T @ pulled_T
    squares_T = inner_TT.diagonal()
    moved_T = gram_TT.diagonal() > 0
    there_T = moved_T & (squares_T > ROUNDING * gram_TT.diagonal())
    inverse_T = torch.where(there_T, squares_T, 1.0).rsqrt() * there_T  # 1 / n, or 0
    both_TT = inverse_T.outer(inverse_T)
    cosine_TT = (inner_TT * both_TT).fill_diagonal_(0.0)
    terms_TT = cosine_TT.sign() * (cosine_TT * inverse_T.square().unsqueeze(1) - both_TT)
    moved = int(moved_T.sum())
    return 2 * terms_TT.sum(dim=1) / max(1, moved * (moved - 1))
