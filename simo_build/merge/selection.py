"""Exact order statistics of vectors too long to lay end to end: two passes over their parts.

A float32 seen as an integer keeps its order, so a histogram of the upper 16 bits finds the bin of
a rank, and one of the lower 16 bits within that bin finds the value, bit for bit as a full sort.

Shapes: T tasks, n weights of a part, d weights in all, R ranks, B = 65536 bins.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

BINS = 1 << 16


def order_statistics(
    parts: Callable[[], Iterable[Tensor]], ranks: Callable[[int], Sequence[int]]
) -> Tensor:
    """Find the values that would stand at some ranks if every task's weights were sorted.

    `parts` is called twice and gives (T, n) float32 tensors; `ranks` gets d and gives R ranks, 0
    being the smallest. The result is (R, T), all zeros if there are no weights.
    """
    upper_TB = upper_counts(parts())
    size = int(upper_TB[0].sum())
    if size == 0:
        return torch.zeros(len(ranks(1)), len(upper_TB))
    rank_RT = torch.tensor(ranks(size)).unsqueeze(1).expand(-1, len(upper_TB))
    bin_RT, left_RT = locate(upper_TB.expand(len(rank_RT), -1, -1), rank_RT)
    lower_RTB = lower_counts(parts(), bin_RT)
    low_RT, _ = locate(lower_RTB, left_RT)
    keys_RT = ((bin_RT - BINS // 2) * BINS + low_RT).int()
    return monotone(keys_RT).view(torch.float32)


def monotone(bits: Tensor) -> Tensor:
    """Turn the bits of floats into integers of the same order; it is its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def split(part_Tn: Tensor) -> tuple[Tensor, Tensor]:
    """Give the upper and the lower 16 bits of the ordered integers, both in [0, B)."""
    keys_Tn = monotone(part_Tn.contiguous().view(torch.int32))
    return (keys_Tn >> 16) + BINS // 2, keys_Tn & (BINS - 1)


def upper_counts(parts: Iterable[Tensor]) -> Tensor:
    """Count the upper halves of every task's weights."""
    counts_TB = torch.zeros(1, BINS, dtype=torch.int64)
    for part_Tn in parts:
        upper_Tn, _ = split(part_Tn)
        counts_TB = counts_TB + torch.stack([count(row) for row in upper_Tn])
    return counts_TB


def lower_counts(parts: Iterable[Tensor], bin_RT: Tensor) -> Tensor:
    """Count the lower halves of the weights whose upper half is a wanted one."""
    counts_RTB = torch.zeros(*bin_RT.shape, BINS, dtype=torch.int64)
    for part_Tn in parts:
        upper_Tn, lower_Tn = split(part_Tn)
        for rank, bins in enumerate(bin_RT.tolist()):
            for task, wanted in enumerate(bins):
                counts_RTB[rank, task] += count(lower_Tn[task][upper_Tn[task] == wanted])
    return counts_RTB


def count(row_n: Tensor) -> Tensor:
    """Count how often each of the B integers occurs."""
    return torch.bincount(row_n, minlength=BINS).cpu()


def locate(counts: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Find the bin that a rank falls into, and its rank within that bin."""
    upto = counts.cumsum(dim=-1)
    index = torch.searchsorted(upto, rank.unsqueeze(-1).contiguous(), right=True)
    before = upto.gather(-1, index) - counts.gather(-1, index)
    return index.squeeze(-1), rank - before.squeeze(-1)
