"""Methods that look at one tensor name at a time and at every weight by itself, or by its row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from simo_build.merge.depth import ByLayer, by_layer
from simo_build.merge.parameters import whole
from simo_build.merge.reading import Delta, Lazily, stacked, summed, total, uniform
from simo_build.merge.registry import method
from simo_runtime.errors import RecipeError


@method(paper="https://arxiv.org/abs/2212.04089", elementwise=True)
def task_arithmetic(deltas: Sequence[Delta], *, alpha: ByLayer) -> Delta:
    """Add the deltas up and scale the sum: alpha * (delta_1 + ... + delta_T)."""
    scale = by_layer("alpha", alpha, deltas[0])
    return Lazily(deltas[0], lambda name: scale[name] * total(deltas, name))


@method(paper="https://arxiv.org/abs/2203.05482", elementwise=True)
def average(deltas: Sequence[Delta]) -> Delta:
    """Take the mean of the deltas, which is task arithmetic with alpha = 1 / T."""
    return Lazily(deltas[0], lambda name: total(deltas, name) / len(deltas))


@method(paper="https://arxiv.org/abs/2407.06322", elementwise=True)
def magmax(deltas: Sequence[Delta], *, alpha: ByLayer = 0.5) -> Delta:
    """Take, for every weight, the delta of largest magnitude, and scale.

    Of +x and -x the positive one is taken; the source takes the task that comes last.
    """
    scale = by_layer("alpha", alpha, deltas[0])
    return Lazily(deltas[0], lambda name: scale[name] * largest(deltas, name))


def largest(deltas: Sequence[Delta], name: str) -> Tensor:
    """Find, for every weight, the value of largest magnitude over the tasks."""
    best = deltas[0][name].float()
    for delta in deltas[1:]:
        other = delta[name].float()
        either = torch.where(other.abs() > best.abs(), other, best)
        best = torch.where(other.abs() == best.abs(), torch.maximum(other, best), either)
    return best


@method(paper="https://arxiv.org/abs/2312.06795")
def breadcrumbs(
    deltas: Sequence[Delta], *, alpha: ByLayer = 0.2, beta: ByLayer = 0.15, gamma: ByLayer = 0.006
) -> Delta:
    """Drop each row's largest weights, keep the largest of the rest, add up and scale.

    A row lies along the last dimension; of its n weights the int(gamma * n) largest go first,
    then the int(beta * n) largest of the rest stay. As in the source, no weight stays of a row
    with fewer than 1 / beta of them, and a scalar stays as it is.
    """
    scale = by_layer("alpha", alpha, deltas[0])
    drop = by_layer("gamma", gamma, deltas[0], least=0, below=1)
    keep = by_layer("beta", beta, deltas[0], above=0, most=1)

    def merged(name: str) -> Tensor:
        rows = (middle(d[name].float(), drop=drop[name], keep=keep[name]) for d in deltas)
        return scale[name] * summed(rows)

    return Lazily(deltas[0], merged)


def middle(tensor: Tensor, *, drop: float, keep: float) -> Tensor:
    """Keep, in every row, the weights that come after the largest ones, and zero the others."""
    if tensor.dim() == 0:
        return tensor
    length = tensor.shape[-1]
    order = tensor.abs().argsort(dim=-1, descending=True, stable=True)
    first = int(length * drop)
    kept = order[..., first : first + int(length * keep)]
    return tensor * torch.zeros_like(tensor).scatter_(-1, kept, 1.0)


@method(paper="https://arxiv.org/abs/2405.07813", elementwise=True)
def consensus(
    deltas: Sequence[Delta], *, alpha: ByLayer, threshold: ByLayer, min_tasks: float = 2
) -> Delta:
    """Keep the weights of the sum that enough tasks need, and scale.

    A task needs a weight if |delta_t| > threshold * |sum - delta_t|: its TALL mask. The paper
    chooses threshold in 0.2, 0.3, ..., 0.6 for each task; here one serves all.
    """
    scale = by_layer("alpha", alpha, deltas[0])
    share = by_layer("threshold", threshold, deltas[0], least=0)
    least = whole("min_tasks", min_tasks, least=1)
    if least > len(deltas):
        raise RecipeError(
            f"merge.min_tasks is {least}, but there are {len(deltas)} tasks: no weight would stay"
        )

    def merged(name: str) -> Tensor:
        stack, whole_sum = stacked(deltas, name), total(deltas, name)
        needed = (stack.abs() > share[name] * (whole_sum - stack).abs()).sum(dim=0) >= least
        return scale[name] * whole_sum * needed

    return Lazily(deltas[0], merged)


@method(paper="https://arxiv.org/abs/2311.03099")
def dare(deltas: Sequence[Delta], *, alpha: ByLayer, drop: ByLayer, seed: float = 0) -> Delta:
    """Drop weights of every delta at random, rescale the others by 1 / (1 - drop), add up, scale.

    `reading.uniform` says what a draw depends on.
    """
    scale = by_layer("alpha", alpha, deltas[0])
    rate = by_layer("drop", drop, deltas[0], least=0, below=1)
    salt = whole("seed", seed, least=0)

    def merged(name: str) -> Tensor:
        kept = (sparse(d[name].float(), rate[name], seed=salt, name=name) for d in deltas)
        return scale[name] * summed(kept)

    return Lazily(deltas[0], merged)


def sparse(tensor: Tensor, drop: float, *, seed: int, name: str) -> Tensor:
    """Drop weights with a probability; rescale the others, so that the expectation is the same."""
    kept = uniform(tensor, seed=seed, name=name) >= drop
    return torch.where(kept, tensor / (1 - drop), 0.0)
