"""FlexMerge: whole blocks are merged, the most similar ones first, until the size asked for.

Shapes: T tasks.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from simo_build.merge import Delta, number
from simo_build.merge.reading import flat, stacked, summed
from simo_build.several.registry import SeveralPass, several
from simo_build.several.sharing import Partition, sharing, stored, unit_of, unit_sizes


@several(
    paper="https://arxiv.org/abs/2505.23209",
    keeps="blocks of its own",
    instead="`average` or `task_arithmetic`, which it comes to at `size: 1`",
)
def flexmerge(deltas: Sequence[Delta], *, size: float, scale: float = 1.0) -> SeveralPass:
    """Merge blocks until all encoders together are no larger than `size` encoders.

    Of all blocks and all pairs of groups of tasks, the pair with the highest cosine between its
    deltas is merged first; that of two groups is the lowest between their tasks. A group of two
    tasks or more gets `scale` times the mean of its deltas. What lies before the blocks counts as
    a block, and so do the norms after them.
    """
    wanted = number("size", size, least=1, most=len(deltas))
    factor = number("scale", scale, above=0)

    def merged(name: str, group: tuple[int, ...]) -> Tensor:
        return factor * summed(deltas[task][name] for task in group) / len(group)

    return sharing(deltas, partitions(deltas, wanted), merged)


def partitions(deltas: Sequence[Delta], wanted: float) -> dict[str, Partition]:
    """Give every unit's groups of tasks once no more than `wanted` encoders are stored."""
    sizes = unit_sizes(deltas[0])
    groups: dict[str, Partition] = {u: [(task,) for task in range(len(deltas))] for u in sizes}
    steps = merges(cosines(deltas))
    while stored(sizes, groups) > wanted * sum(sizes.values()):
        unit, joined = next(steps)
        groups[unit] = [*(g for g in groups[unit] if not set(g) <= set(joined)), joined]
    return groups


def merges(cosines_TT: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give the units and the groups in the order in which they are merged, to the very end.

    Of equal cosines the first unit's comes first, then that of the tasks of smaller numbers.
    """
    groups: dict[str, Partition] = {u: [(t,) for t in range(len(c))] for u, c in cosines_TT.items()}
    while any(len(own) > 1 for own in groups.values()):
        pairs = [
            (unit, *pair) for unit, own in groups.items() for pair in itertools.combinations(own, 2)
        ]
        unit, one, other = max(pairs, key=lambda pair: _linked(cosines_TT[pair[0]], *pair[1:]))
        joined = tuple(sorted(one + other))
        left = [group for group in groups[unit] if group not in (one, other)]
        groups[unit] = sorted([*left, joined])
        yield unit, joined


def _linked(cosines_TT: Tensor, one: tuple[int, ...], other: tuple[int, ...]) -> float:
    return min(float(cosines_TT[i, j]) for i in one for j in other)


def cosines(deltas: Sequence[Delta]) -> dict[str, Tensor]:
    """Give the cosines (T, T) between the tasks' deltas of every unit.

    Two deltas of zeros are the same, so that their cosine is 1; to any other it is 0.
    """
    sizes, tasks = unit_sizes(deltas[0]), len(deltas)
    inner = {unit: torch.zeros(tasks, tasks, dtype=torch.float64) for unit in sizes}
    for name in deltas[0]:
        vectors_Td = flat(stacked(deltas, name)).double()
        inner[unit_of(name)] += (vectors_Td @ vectors_Td.T).cpu()
    return {unit: _normed(inner_TT) for unit, inner_TT in inner.items()}


def _normed(inner_TT: Tensor) -> Tensor:
    norms_T = inner_TT.diagonal().sqrt()
    still_T = norms_T == 0
    units_T = torch.where(still_T, 1.0, norms_T)
    both_TT = still_T.unsqueeze(0) & still_T.unsqueeze(1)
    return torch.where(both_TT, 1.0, inner_TT / torch.outer(units_T, units_T))
