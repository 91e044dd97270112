"""Units of an encoder that tasks may share, and what sharing them saves.

Units are `stem` (what comes before the blocks), every block, and `after` (the final norms). Tasks
that share a unit are a group; a partition holds every task's number in exactly one group.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from simo_build.merge import Delta
from simo_build.merge.depth import AFTER, block_of
from simo_build.merge.reading import Lazily
from simo_build.several.registry import FLOAT32, SeveralPass

Partition = Sequence[tuple[int, ...]]


def unit_of(name: str) -> str:
    """Give the unit that a tensor belongs to."""
    block = block_of(name)
    if block is None:
        return "after" if AFTER.search(name) else "stem"
    return f"blocks.{block}"


def units(names: Iterable[str]) -> dict[str, list[str]]:
    """Give the names of the tensors of every unit, units in the order of the computation."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(unit_of(name), []).append(name)
    return {unit: found[unit] for unit in sorted(found, key=_place)}


def _place(unit: str) -> int:
    outside = {"stem": -1, "after": 1 << 30}
    return outside[unit] if unit in outside else int(unit.removeprefix("blocks."))


def passes(shared: Mapping[str, Partition]) -> float:
    """Give the operations for all tasks, in passes of one encoder, from the partition of each unit.

    A group computes a block once if it also shares all that comes before. Blocks are alike, and
    what lies outside of them costs next to nothing, unless there are none.
    """
    paths: Partition = [tuple(task for group in next(iter(shared.values())) for task in group)]
    counts = {}
    for unit in sorted(shared, key=_place):
        both = [set(path) & set(group) for path in paths for group in shared[unit]]
        paths = [tuple(sorted(one)) for one in both if one]
        counts[unit] = len(paths)
    blocks = [count for unit, count in counts.items() if unit.startswith("blocks.")]
    return sum(blocks) / len(blocks) if blocks else float(max(counts.values()))


def stored(sizes: Mapping[str, int], shared: Mapping[str, Partition]) -> int:
    """Count the weights that are stored: those of a unit once a group."""
    return sum(size * len(shared[unit]) for unit, size in sizes.items())


def unit_sizes(delta: Delta) -> dict[str, int]:
    """Count the weights of every unit."""
    return {u: sum(delta[name].numel() for name in names) for u, names in units(delta).items()}


def sharing(
    deltas: Sequence[Delta],
    shared: Mapping[str, Partition],
    merged: Callable[[str, tuple[int, ...]], Tensor],
) -> SeveralPass:
    """Give every task the tensors of its groups; one that is alone in a unit keeps its own there.

    `merged` gives a tensor of a group of two tasks or more.
    """

    def of(task: int) -> Delta:
        mine = {unit: next(g for g in groups if task in g) for unit, groups in shared.items()}

        def compute(name: str) -> Tensor:
            group = mine[unit_of(name)]
            return deltas[task][name].float() if len(group) == 1 else merged(name, group)

        return Lazily(deltas[0], compute)

    return SeveralPass(
        deltas=[of(task) for task in range(len(deltas))],
        bytes=FLOAT32 * stored(unit_sizes(deltas[0]), shared),
        passes=passes(shared),
    )
