"""Where a tensor lies in the depth of a vision transformer, and parameters that follow it.

A parameter is one number for all tensors; a list, interpolated over the depth; or a map from the
number of a block, or a pattern of names, to a number.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from simo_build.merge.parameters import number
from simo_runtime.errors import RecipeError, listing

ByLayer = float | Sequence[float] | Mapping[str | int, float]

# blocks.3.mlp.fc1.weight, and blocks.0.3.mlp.fc1.weight of checkpoints that keep blocks in chunks
BLOCK = re.compile(r"(?:^|\.)blocks\.(?:\d+\.)?(\d+)\.")
AFTER = re.compile(r"(?:^|\.)(?:fc_norm|norm|head_norm)\.(?:weight|bias)$")


def block_of(name: str) -> int | None:
    """Give the number of the block that a tensor belongs to, from 0; None outside of blocks."""
    match = BLOCK.search(name)
    return int(match.group(1)) if match else None


def depths(names: Iterable[str]) -> dict[str, float]:
    """Give the depth of every tensor: 0 before and in the first block, 1 in the last and after."""
    blocks = {name: block_of(name) for name in names}
    last = max((block for block in blocks.values() if block is not None), default=0)
    return {
        name: (1.0 if AFTER.search(name) else 0.0) if block is None else block / max(1, last)
        for name, block in blocks.items()
    }


def by_layer(
    name: str,
    value: object,
    names: Iterable[str],
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> dict[str, float]:
    """Give a parameter's value for every tensor, each within the bounds.

    A list is laid out evenly over the depth and interpolated. Of a map, the last key that fits a
    tensor counts: a block's number, or a pattern in the manner of a shell (`*.mlp.*`); every key
    must fit a tensor, and every tensor a key.
    """
    bounds = {"above": above, "least": least, "below": below, "most": most}
    names = list(names)
    if isinstance(value, Mapping):
        checked = {str(k): number(f"{name}.{k}", one, **bounds) for k, one in value.items()}
        return _mapped(name, checked, names)
    if isinstance(value, Sequence) and not isinstance(value, str):
        knots = [number(f"{name}[{i}]", one, **bounds) for i, one in enumerate(value)]
        if not knots:
            raise RecipeError(f"merge.{name} is an empty list; give at least one number")
        return {tensor: _interpolated(knots, depth) for tensor, depth in depths(names).items()}
    return dict.fromkeys(names, number(name, value, **bounds))


def _interpolated(knots: Sequence[float], depth: float) -> float:
    place = depth * (len(knots) - 1)
    left = min(int(place), len(knots) - 1)
    right = min(left + 1, len(knots) - 1)
    share = place - left
    return knots[left] * (1 - share) + knots[right] * share if share else knots[left]


def _mapped(name: str, values: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in values.items():
        fitting = [tensor for tensor in names if _fits(key, tensor)]
        if not fitting:
            blocks = [block for block in map(block_of, names) if block is not None]
            there = f"blocks 0 to {max(blocks)}" if blocks else "no blocks"
            raise RecipeError(
                f"merge.{name}: {key!r} fits no tensor; a key is the number of a block, or a "
                f"pattern of names such as '*.mlp.*' (there are {there}, and {names[0]} ...)"
            )
        found |= dict.fromkeys(fitting, value)
    left = [tensor for tensor in names if tensor not in found]
    if left:
        raise RecipeError(
            f"merge.{name}: {len(left)} tensors are fitted by no key; put '*' first for all the "
            f"others\n{listing(left)}"
        )
    return found


def _fits(key: str, tensor: str) -> bool:
    return block_of(tensor) == int(key) if key.isdigit() else fnmatchcase(tensor, key)
