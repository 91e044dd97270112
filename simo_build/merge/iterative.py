"""Methods that look for a merged matrix by a fixed number of steps of Adam; no random numbers.

What is not a matrix stays as in the base, as in the sources, or takes the mean (`rest: mean`).

Shapes: T tasks, M x N a matrix.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simo_build.merge.depth import ByLayer, by_layer
from simo_build.merge.matrices import Parts, by_matrix, every_matrix, svd
from simo_build.merge.parameters import number, one_of, whole
from simo_build.merge.ranked import kept_of
from simo_build.merge.reading import Delta, each, flat
from simo_build.merge.registry import method
from simo_build.merge.selection import order_statistics
from simo_build.statedict import StateDict


def adam(start: Tensor, gradient: Callable[[Tensor], Tensor], *, lr: float, steps: int) -> Tensor:
    """Follow a gradient with Adam (beta 0.9 and 0.999, epsilon 1e-8, no decay)."""
    point = start.clone()
    first, second = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        slope = gradient(point)
        first.lerp_(slope, 0.1)
        second.mul_(0.999).addcmul_(slope, slope, value=0.001)
        spread = (second.sqrt() / math.sqrt(1 - 0.999**step)).add_(1e-8)
        point.addcdiv_(first, spread, value=-lr / (1 - 0.9**step))
    return point


def rest_of(rule: str) -> Callable[[Tensor], Tensor]:
    """Say what becomes of tensors that are no matrices."""
    one_of("rest", rule, ("base", "mean"))
    if rule == "mean":
        return lambda stack: stack.mean(dim=0, dtype=torch.float64)
    return lambda stack: torch.zeros_like(stack[0])


@method(paper="https://arxiv.org/abs/2503.08099", heavy=True)
def wudi(
    deltas: Sequence[Delta],
    *,
    alpha: ByLayer = 1.0,
    steps: float = 300,
    lr: float = 1e-5,
    rest: str = "base",
    conv: str = "rest",
    split_qkv: bool = False,
) -> StateDict:
    """Move the sum to where it disturbs the tasks less: the sum of |(M - delta_t) delta_t'|^2.

    Each task's term is divided by |delta_t|^2. With the Gram matrices G_t = delta_t' delta_t /
    |delta_t|^2 the gradient is 2 * (M * sum of G_t - sum of delta_t G_t).
    """
    scale = by_layer("alpha", alpha, deltas[0])
    count, rate = whole("steps", steps, least=1), lr_of(lr)
    others = rest_of(rest)

    def matrix(name: str, stack_TMN: Tensor) -> Tensor:
        width = stack_TMN.shape[2]
        grams_NN, pull_MN = stack_TMN.new_zeros(width, width), torch.zeros_like(stack_TMN[0])
        for delta_MN in stack_TMN:
            square = delta_MN.double().square().sum().float()
            if square > 0:
                gram_NN = delta_MN.T @ delta_MN / square
                grams_NN += gram_NN
                pull_MN += delta_MN @ gram_NN
        start_MN = stack_TMN.sum(dim=0, dtype=torch.float64).float()
        return scale[name] * adam(
            start_MN, lambda m_MN: 2 * (m_MN @ grams_NN - pull_MN), lr=rate, steps=count
        )

    return by_matrix(
        deltas,
        Parts(conv, split_qkv),
        matrix=matrix,
        rest=lambda name, stack: scale[name] * others(stack),
    )


def lr_of(lr: object) -> float:
    """Check a step size."""
    return number("lr", lr, above=0, most=1)


@method(paper="https://arxiv.org/abs/2501.01230", heavy=True)
def doge(
    deltas: Sequence[Delta],
    *,
    alpha: ByLayer = 0.07,
    density: float = 0.3,
    subspace: float = 6,
    steps: float = 400,
    lr: float = 1e-4,
    rest: str = "base",
    conv: str = "rest",
    split_qkv: bool = True,
) -> StateDict:
    """Add to every delta one shared matrix that eases their conflicts; trim, scale and add up.

    A delta's scale is alpha / |delta| within each matrix. The shared matrix is found outside the
    space of the r / subspace directions that the tasks have in common; trimming ranks the original
    deltas over all matrices and keeps `density` of them.
    """
    scale = by_layer("alpha", alpha, deltas[0])
    share = number("density", density, above=0, most=1)
    common, rate = number("subspace", subspace, least=1), lr_of(lr)
    count, others, parts = whole("steps", steps, least=1), rest_of(rest), Parts(conv, split_qkv)
    bounds_T = order_statistics(
        lambda: (flat(stack_TMN).abs() for stack_TMN in every_matrix(deltas, parts)),
        lambda size: [size - kept_of(size, share)],
    )[0]

    def matrix(name: str, stack_TMN: Tensor) -> Tensor:
        norms_T = flat(stack_TMN).double().square().sum(dim=1).sqrt().float()
        weights_T = torch.where(norms_T > 0, scale[name] / norms_T, 0.0)
        basis_MK = common_space(stack_TMN, min(stack_TMN.shape[1:]) / common)
        gradient = conflict(stack_TMN, weights_T, basis_MK)
        shared_MN = adam(torch.zeros_like(stack_TMN[0]), gradient, lr=rate, steps=count)
        kept = stack_TMN.abs() >= each(bounds_T.to(stack_TMN.device), stack_TMN)
        moved = (stack_TMN + shared_MN) * kept * each(weights_T, stack_TMN)
        return moved.sum(dim=0, dtype=torch.float64)

    return by_matrix(deltas, parts, matrix=matrix, rest=lambda _, stack: others(stack))


def common_space(stack_TMN: Tensor, size: float) -> Tensor:
    """Find the left directions that the tasks' top directions have most in common."""
    keep = min(stack_TMN.shape[1:]) // len(stack_TMN)
    tops_MJ = torch.cat([svd(delta_MN)[0][:, :keep] for delta_MN in stack_TMN], dim=1)
    if 0 in tops_MJ.shape:
        return tops_MJ.float()
    return svd(tops_MJ)[0][:, : int(size)].float()


def conflict(stack_TMN: Tensor, weights_T: Tensor, basis_MK: Tensor) -> Callable[[Tensor], Tensor]:
    """Give the gradient of DOGE's loss, without its part in a space.

    The loss is the sum over tasks and rows of (row sum of delta_t * (delta_t - sum of weighted
    deltas - shared * sum of weights))^2.
    """
    strength = weights_T.double().sum().float()
    summed_MN = (stack_TMN * each(weights_T, stack_TMN)).sum(dim=0, dtype=torch.float64).float()

    def gradient(shared_MN: Tensor) -> Tensor:
        target_MN = summed_MN + strength * shared_MN
        slope_MN = torch.zeros_like(shared_MN)
        for delta_MN in stack_TMN:
            error_M1 = (delta_MN * (delta_MN - target_MN)).sum(dim=1, keepdim=True)
            slope_MN -= 2 * strength * error_M1 * delta_MN
        return slope_MN - basis_MK @ (basis_MK.T @ slope_MN)

    return gradient
