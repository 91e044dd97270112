"""Methods that rank weights by magnitude, or elect a sign for every weight.

Shapes: T tasks, d weights of a task, n weights of one tensor, ... the shape of one tensor.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from simo_build.merge.depth import ByLayer, by_layer
from simo_build.merge.elementwise import sparse
from simo_build.merge.parameters import number, one_of, whole
from simo_build.merge.reading import Delta, Lazily, each, flat, pieces, stacked, uniform
from simo_build.merge.registry import method
from simo_build.merge.selection import order_statistics
from simo_runtime.errors import RecipeError

TAIL = 1e-4  # the share of weights at either end whose magnitude PCB clamps


def _over_the_vector(*, trim: str = "vector", **_: object) -> bool:
    """Whether `ties` looks at every weight by itself once the bounds are known."""
    return trim == "vector"


@method(paper="https://arxiv.org/abs/2306.01708", elementwise=_over_the_vector)
def ties(
    deltas: Sequence[Delta],
    *,
    density: ByLayer = 0.2,
    alpha: ByLayer = 1.0,
    trim: str = "vector",
    zero_sum: str = "majority",
    merge: str = "mean",
) -> Delta:
    """Trim each delta, elect one sign per weight, take the mean of the deltas that agree, scale.

    Trimming keeps the round(density * d) weights of largest magnitude, at least one, and those
    equal to the smallest of them; ranks run over a task's whole vector, as in the paper, or over
    each tensor. Where the sum is zero, the majority of all elected signs decides, or plus does.
    """
    scale = by_layer("alpha", alpha, deltas[0])
    one_of("trim", trim, ("vector", "tensor"))
    one_of("zero_sum", zero_sum, ("majority", "positive"))
    one_of("merge", merge, ("mean", "sum"))
    if trim == "vector" and not isinstance(density, (int, float)):
        raise RecipeError(
            "merge.density: ranks run over the whole vector, so it is one number; with "
            "`trim: tensor` it may be one by layer"
        )
    share = by_layer("density", density, deltas[0], above=0, most=1)
    bounds_T = whole_vector_bounds(deltas, share) if trim == "vector" else None

    @cache
    def default() -> float:
        """Give the sign of weights whose sum is zero; most merges have none, and never ask."""
        return 1.0 if zero_sum == "positive" else majority(deltas, bounds_T, share)

    def merged(name: str) -> Tensor:
        kept = trimmed(stacked(deltas, name), bounds_T, share[name])
        sign = elected(kept)
        if bool(((sign == 0) & (kept != 0).any(dim=0)).any()):
            sign = sign.where(sign != 0, default())
        return scale[name] * agreeing(kept, sign, merge=merge)

    return Lazily(deltas[0], merged)


def whole_vector_bounds(deltas: Sequence[Delta], share: Mapping[str, float]) -> Tensor:
    """Find the smallest magnitude that each task keeps, over its whole vector of equal shares."""
    density = next(iter(share.values()))
    bounds_1T = order_statistics(
        lambda: (piece.abs() for name in deltas[0] for piece in pieces(deltas, name)),
        lambda size: [size - kept_of(size, density)],
    )
    return bounds_1T[0]


def majority(deltas: Sequence[Delta], bounds_T: Tensor | None, share: Mapping[str, float]) -> float:
    """Give the sign that was elected for more weights than the other, or 0."""
    votes = 0.0
    for name in deltas[0]:
        parts = [stacked(deltas, name)] if bounds_T is None else pieces(deltas, name)
        votes += sum(float(elected(trimmed(cut, bounds_T, share[name])).sum()) for cut in parts)
    return 1.0 if votes > 0 else -1.0 if votes < 0 else 0.0


def trimmed(stack: Tensor, bounds_T: Tensor | None, density: float) -> Tensor:
    """Zero what is below each task's bound, or below that of the tensor's own ranks."""
    if bounds_T is None:
        values_Tn = flat(stack).abs()
        size = values_Tn.shape[1]
        if size == 0:
            return stack
        bounds_T = values_Tn.kthvalue(size - kept_of(size, density) + 1, dim=1).values
    return stack.where(stack.abs() >= each(bounds_T.to(stack.device), stack), 0.0)


def kept_of(size: int, density: float) -> int:
    """Give how many of some weights a density keeps; never none of them."""
    return max(1, round(density * size))


def elected(stack: Tensor) -> Tensor:
    """Elect the sign of the sum over the tasks for every weight; 0 where it is zero."""
    return stack.sum(dim=0, dtype=torch.float64).sign()


def agreeing(stack: Tensor, sign: Tensor, *, merge: str) -> Tensor:
    """Add up, or average, the nonzero values that have the elected sign."""
    agree = (stack.sign() == sign) & (sign != 0)
    chosen = (stack * agree).sum(dim=0, dtype=torch.float64)
    if merge == "mean":
        chosen = chosen / agree.sum(dim=0).clamp(min=1)
    return chosen.float()


@method(paper="https://arxiv.org/abs/2311.03099")
def dare_ties(
    deltas: Sequence[Delta],
    *,
    drop: ByLayer,
    alpha: ByLayer = 1.0,
    merge: str = "mean",
    seed: float = 0,
) -> Delta:
    """Drop and rescale as `dare` does, then elect signs and take those that agree, as `ties` does.

    Nothing is trimmed. Where the sum over tasks is zero, nothing is elected.
    """
    scale = by_layer("alpha", alpha, deltas[0])
    rate = by_layer("drop", drop, deltas[0], least=0, below=1)
    salt = whole("seed", seed, least=0)
    one_of("merge", merge, ("mean", "sum"))

    def merged(name: str) -> Tensor:
        kept = [sparse(d[name].float(), rate[name], seed=salt, name=name) for d in deltas]
        stack = torch.stack(kept)
        return scale[name] * agreeing(stack, elected(stack), merge=merge)

    return Lazily(deltas[0], merged)


@method(paper="https://arxiv.org/abs/2406.11617")
def della(
    deltas: Sequence[Delta],
    *,
    density: ByLayer,
    epsilon: ByLayer = 0.05,
    alpha: ByLayer = 1.0,
    seed: float = 0,
) -> Delta:
    """Drop weights at random, small ones more often; rescale; elect signs; average; scale.

    The probability to stay runs, by the rank of the magnitude in its row, from density - epsilon
    to density + epsilon; a weight that stays is divided by it. A row is what one output sees: all
    dimensions but the first; a row of one weight stays with the probability `density`. Where the
    sum over tasks is zero, nothing is elected. `reading.uniform` says what a draw depends on.
    """
    middle = by_layer("density", density, deltas[0], above=0, most=1)
    spread = by_layer("epsilon", epsilon, deltas[0])
    scale, salt = by_layer("alpha", alpha, deltas[0]), whole("seed", seed, least=0)
    for name in deltas[0]:
        if not 0 <= spread[name] < middle[name] or middle[name] + spread[name] > 1:
            raise RecipeError(
                f"merge.epsilon is {spread[name]}; with density {middle[name]}, density - epsilon "
                "must be above 0 and density + epsilon at most 1"
            )

    def merged(name: str) -> Tensor:
        low, high = middle[name] - spread[name], middle[name] + spread[name]
        kept = [pruned(d[name].float(), low, high, seed=salt, name=name) for d in deltas]
        stack = torch.stack(kept)
        return scale[name] * agreeing(stack, elected(stack), merge="mean")

    return Lazily(deltas[0], merged)


def pruned(tensor: Tensor, low: float, high: float, *, seed: int, name: str) -> Tensor:
    """Keep each weight with a probability that grows with its rank in its row, and rescale it."""
    stay = low + (high - low) * relative_rank(tensor)
    return torch.where(uniform(tensor, seed=seed, name=name) < stay, tensor / stay, 0.0)


def relative_rank(tensor: Tensor) -> Tensor:
    """Rank magnitudes within their rows: 0 for the smallest, 1 for the largest."""
    rows = tensor if tensor.dim() > 1 else tensor.unsqueeze(0)
    rows = flat(rows) if len(rows) else rows
    ranks = rows.abs().argsort(dim=-1, stable=True).argsort(dim=-1)
    length = rows.shape[-1]
    share = ranks / (length - 1) if length > 1 else torch.full_like(rows, 0.5)
    return share.reshape(tensor.shape)


@method(paper="https://arxiv.org/abs/2410.02396", elementwise=True)
def pcb(deltas: Sequence[Delta], *, ratio: float = 0.1, alpha: ByLayer = 1.2) -> Delta:
    """Weigh every weight by its balance: its size in its task times its agreement with the sum.

    balance = exp(T * unit(|delta|)^2) * tanh(delta * sum); the top `ratio` of each task's balances,
    scaled to [0, 1], weigh a mean of the deltas. `unit` scales to [0, 1]; magnitudes are clamped
    at both ends; ranks run over a task's whole vector.
    """
    share, scale = number("ratio", ratio, above=0, most=1), by_layer("alpha", alpha, deltas[0])
    ends_2T = order_statistics(
        lambda: (piece.abs() for name in deltas[0] for piece in pieces(deltas, name)),
        lambda size: [int(size * TAIL), int(size * (1 - TAIL) - 1)],
    )

    def balances() -> Iterator[Tensor]:
        for name in deltas[0]:
            for stack in pieces(deltas, name):
                yield balance(stack, clamped(stack, ends_2T), ends_2T)

    top_2T = order_statistics(
        balances, lambda size: [min(int(size * (1 - share)), size - 1), size - 1]
    )

    def merged(name: str) -> Tensor:
        stack = stacked(deltas, name)
        values = clamped(stack, ends_2T)
        weight = unit(balance(stack, values, ends_2T), top_2T).clamp(0, 1)
        weighed = (values * weight).sum(dim=0, dtype=torch.float64)
        mean = weighed / weight.sum(dim=0, dtype=torch.float64).clamp(min=1e-12)
        return scale[name] * mean.float()

    return Lazily(deltas[0], merged)


def clamped(stack: Tensor, ends_2T: Tensor) -> Tensor:
    """Clamp magnitudes to the ends of each task; the sign stays, and so does zero."""
    low, high = (each(end_T.to(stack.device), stack) for end_T in ends_2T)
    return stack.sign() * stack.abs().clamp(low, high)


def balance(stack: Tensor, values: Tensor, ends_2T: Tensor) -> Tensor:
    """Multiply how much a weight matters within its task by how it agrees with the others."""
    within = torch.exp(len(stack) * unit(values.abs(), ends_2T) ** 2)
    summed = stack.sum(dim=0, dtype=torch.float64).float()
    return within * torch.tanh(stack * summed)


def unit(stack: Tensor, ends_2T: Tensor) -> Tensor:
    """Scale so that the ends become 0 and 1; all is 0 where the ends are the same."""
    low, high = (each(end_T.to(stack.device), stack) for end_T in ends_2T)
    width = high - low
    return torch.where(width > 0, (stack - low) / width.where(width > 0, 1.0), 0.0)
