"""Masks: one vector for all tasks, and for every task one bit a weight that says what it takes.

Shapes: T tasks, ... the shape of one tensor.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from simo_build.merge import ByLayer, Delta, by_layer, total
from simo_build.merge.reading import Lazily, flat, stacked
from simo_build.several.registry import FLOAT32, SeveralPass, several, weights


@several(
    paper="https://arxiv.org/abs/2405.07813",
    keeps="a mask over the encoder's weights",
    instead="`consensus`, which keeps the weights that several of these masks have in common",
)
def tall_mask(deltas: Sequence[Delta], *, threshold: ByLayer) -> SeveralPass:
    """Give every task the weights of the sum that it needs, the others as in the base.

    A task needs a weight if |delta_t| > threshold * |sum - delta_t|. The paper chooses threshold
    in 0.2, 0.3, ..., 0.6 for each task; here one serves all, as in `consensus`.
    """
    share = by_layer("threshold", threshold, deltas[0], least=0)

    def masked(delta: Delta, name: str) -> Tensor:
        own, whole = delta[name].float(), total(deltas, name)
        needed = own.abs() > share[name] * (whole - own).abs()
        return torch.where(needed, whole, 0.0)

    return _masked(deltas, [Lazily(delta, partial(masked, delta)) for delta in deltas], extra=0)


@several(
    paper="https://arxiv.org/abs/2405.17461",
    keeps="a mask over the encoder's weights",
    instead="`ties`, which elects signs in the same way and gives one encoder",
)
def emr(deltas: Sequence[Delta]) -> SeveralPass:
    """Elect one vector, mask it for every task, and rescale it to the length of the task's delta.

    The elected weight has the sign of the sum, and the largest magnitude of the tasks with that
    sign; a task takes it if its own weight has the same sign. Lengths are L1 norms.
    """
    scales = rescalers(deltas)

    def rescaled(task: int, name: str) -> Tensor:
        return scales[task] * _taken(stacked(deltas, name))[task]

    tasks = range(len(deltas))
    found = [Lazily(deltas[0], partial(rescaled, task)) for task in tasks]
    return _masked(deltas, found, extra=FLOAT32)


def elected(stack: Tensor) -> Tensor:
    """Elect one tensor of (T, ...): the sum's sign, the largest magnitude that has it."""
    sign = stack.double().sum(dim=0).sign().float()
    return sign * (stack * sign).clamp(min=0).amax(dim=0)


def rescalers(deltas: Sequence[Delta]) -> list[float]:
    """Give, for every task, |delta|_1 / |what it takes of the elected vector|_1."""
    own = torch.zeros(len(deltas), dtype=torch.float64)
    taken = torch.zeros_like(own)
    for name in deltas[0]:
        stack = stacked(deltas, name).cpu()
        own += flat(stack).double().abs().sum(dim=1)
        taken += flat(_taken(stack)).double().abs().sum(dim=1)
    return torch.where(taken > 0, own / taken, 0.0).tolist()


def _taken(stack: Tensor) -> Tensor:
    """Mask the elected tensor of (T, ...) for every task: where the task has the same sign."""
    unified = elected(stack)
    return torch.where(stack.sign() == unified.sign(), unified, 0.0)


def _masked(deltas: Sequence[Delta], found: Sequence[Delta], *, extra: int) -> SeveralPass:
    """Count the base, the common vector, and for every task its bits and `extra` bytes."""
    count, tasks = weights(deltas[0]), len(deltas)
    stored = 2 * FLOAT32 * count + tasks * (-(-count // 8) + extra)
    return SeveralPass(deltas=found, bytes=stored, passes=float(tasks))
