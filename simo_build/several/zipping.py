"""Which hidden units of several models do the same: correlated, then zipped, the closest first.

Shapes: T tasks, n units of one model, N = T * n units of all, task by task; m samples.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]
STILL = 1e-10  # a variance below this share of the mean square is rounding


def correlation(parts: Iterable[Tensor], tasks: int) -> Values:
    """Correlate all units (N, N) over samples that come in parts (m, N).

    A unit that never varies is like no other, but for those of its own number that do not either.
    """
    count, first_N, second_NN = 0, torch.zeros(()), torch.zeros(())
    for part_mN in parts:
        values_mN = part_mN.double()
        count += len(values_mN)
        first_N = first_N + values_mN.sum(dim=0)
        second_NN = second_NN + values_mN.T @ values_mN
    mean_N, square_NN = first_N.cpu() / count, second_NN.cpu() / count
    covariance_NN = square_NN - torch.outer(mean_N, mean_N)
    variance_N = covariance_NN.diagonal()
    still_N = variance_N <= STILL * square_NN.diagonal()
    deviation_N = torch.where(still_N, 1.0, variance_N.clamp(min=0).sqrt())
    found_NN = covariance_NN / torch.outer(deviation_N, deviation_N)
    same_NN = torch.eye(len(mean_N) // tasks, dtype=torch.bool).repeat(tasks, tasks)
    either_NN, both_NN = still_N[:, None] | still_N, still_N[:, None] & still_N & same_NN
    found: Values = torch.where(either_NN, both_NN.double(), found_NN).numpy()
    return found


def zipped(correlation_NN: Values, tasks: int, *, within: float, repeat: float) -> Tensor:
    """Zip N units to n groups; give the group's number of every unit, (T, n).

    The two groups of highest correlation are joined, until n are left; that of two groups is the
    lowest between their units. Groups that hold units of the same task count `repeat` times as
    much once either was joined before, and no task may be joined with itself more often than
    `within` times its share of all that is joined, unless nothing else is left. Groups are numbered
    by their first unit.
    """
    zipper = Zipper(correlation_NN, tasks, within, repeat)
    while zipper.alive.sum() * tasks > len(correlation_NN):
        zipper.join()
    groups = sorted(zipper.members[i] for i in np.flatnonzero(zipper.alive))
    labels_N = torch.empty(len(correlation_NN), dtype=torch.int64)
    for number, group in enumerate(groups):
        labels_N[group] = number
    return labels_N.reshape(tasks, -1)


class Zipper:
    """Groups of units, named by their first unit, and how much every pair of them counts."""

    def __init__(self, linked_NN: Values, tasks: int, within: float, repeat: float) -> None:
        count = len(linked_NN)
        self.linked_NN, self.repeat = linked_NN.copy(), repeat
        self.members = [[unit] for unit in range(count)]
        self.alive = np.ones(count, dtype=bool)
        self.joined = np.zeros(count, dtype=bool)
        self.holds_NT = np.repeat(np.eye(tasks, dtype=bool), count // tasks, axis=0)
        own = (count - count // tasks) // tasks
        self.left_T = np.full(tasks, int(within * own))
        self.score_NN = np.empty_like(linked_NN)
        self.score_all()

    def row(self, group: int) -> Values:
        """Give how much a group counts with every other; -inf where they may not be joined."""
        common_NT = self.holds_NT & self.holds_NT[group]
        again_N = common_NT.any(axis=1) & (self.joined | self.joined[group])
        linked_N = self.linked_NN[group]
        row_N: Values = np.where(again_N, np.minimum(linked_N, self.repeat * linked_N), linked_N)
        row_N[(common_NT & (self.left_T <= 0)).any(axis=1) | ~self.alive] = -np.inf
        row_N[group] = -np.inf
        return row_N

    def score_all(self) -> None:
        """Count every pair anew."""
        self.score_NN[:] = -np.inf
        for group in np.flatnonzero(self.alive).tolist():
            self.score_NN[group] = self.row(group)
        self.best_N, self.value_N = self.score_NN.argmax(axis=1), self.score_NN.max(axis=1)

    def join(self) -> None:
        """Join the two groups that count most; of several such pairs, that of the first unit."""
        if np.isneginf(self.value_N.max()):
            self.left_T[:] = len(self.alive)
            self.score_all()
        one = int(self.value_N.argmax())
        one, other = sorted((one, int(self.best_N[one])))
        common_T = self.holds_NT[one] & self.holds_NT[other]
        self.left_T -= common_T
        self.linked_NN[one] = np.minimum(self.linked_NN[one], self.linked_NN[other])
        self.linked_NN[:, one] = self.linked_NN[one]
        self.members[one] = sorted(self.members[one] + self.members[other])
        self.holds_NT[one] |= self.holds_NT[other]
        self.joined[one], self.alive[other] = True, False
        if (common_T & (self.left_T <= 0)).any():
            self.score_all()
        else:
            self.rescore(one, other)

    def rescore(self, one: int, other: int) -> None:
        """Count the pairs anew of a group that has changed, and drop those of one that is gone."""
        self.score_NN[other] = self.score_NN[:, other] = -np.inf
        self.score_NN[one] = self.score_NN[:, one] = self.row(one)
        stale_N = np.isin(self.best_N, (one, other))
        stale_N[[one, other]] = True
        self.best_N[stale_N] = self.score_NN[stale_N].argmax(axis=1)
        self.value_N[stale_N] = self.score_NN[stale_N].max(axis=1)
