"""ZipIt: the first blocks are zipped into one, hidden units matched, the others stay every task's.

Shapes: T tasks, n hidden units, m samples.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn

from simo_build.encoder import Encoder
from simo_build.features import BATCH
from simo_build.merge import Delta, number, total
from simo_build.merge.depth import block_of
from simo_build.merge.parameters import whole
from simo_build.several.registry import SeveralPass, Sight, several
from simo_build.several.sharing import Partition, sharing, units
from simo_build.several.zipping import correlation, zipped
from simo_build.statedict import StateDict, add

PLAIN = {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


@several(
    paper="https://arxiv.org/abs/2305.03053",
    keeps="the blocks after the first ones",
    instead="`average`, which it comes to where experts of one base keep their units in place",
    sees=True,
)
def zipit(
    deltas: Sequence[Delta],
    sight: Sight,
    *,
    depth: float,
    within: float = 0.125,
    repeat: float = 0.3,
) -> SeveralPass:
    """Share the first `depth` blocks, as the mean of the experts', and what comes before them.

    The hidden units of an MLP are first matched by the correlation of what they give on images
    without truths. Everything else keeps its place: all blocks add to one residual stream, so that
    its channels could only be permuted in all of them at once, those that are not shared included.
    """
    blocks = [unit for unit in units(deltas[0]) if unit.startswith("blocks.")]
    number("depth", depth, least=0, most=len(blocks))
    count = whole("depth", depth, least=0)
    share = number("within", within, least=0, most=1)
    factor = number("repeat", repeat, least=0, most=1)
    shared = _partitions(deltas, blocks, count)

    @cache
    def labels() -> dict[int, Tensor | None]:
        experts = [add(sight.base, delta) for delta in deltas]
        return matched(sight, experts, count, within=share, repeat=factor)

    def merged(name: str, group: tuple[int, ...]) -> Tensor:
        block = block_of(name)
        labels_Tn = None if block is None else labels()[block]
        return zipped_delta(name, deltas, sight.base, labels_Tn)

    return sharing(deltas, shared, merged)


def _partitions(deltas: Sequence[Delta], blocks: Sequence[str], count: int) -> dict[str, Partition]:
    """Put all tasks together in what is zipped, and apart in the rest."""
    tasks = range(len(deltas))
    together = {"stem": count > 0, "after": 0 < count == len(blocks)}
    together |= {block: place < count for place, block in enumerate(blocks)}
    apart: Partition = [(task,) for task in tasks]
    return {unit: [tuple(tasks)] if together[unit] else apart for unit in units(deltas[0])}


def zipped_delta(
    name: str, deltas: Sequence[Delta], base: StateDict, labels_Tn: Tensor | None
) -> Tensor:
    """Zip one tensor of all experts; give its difference from the base.

    The units of a group are averaged where they are computed (fc1), and take the group's place
    where they are used (fc2), whose outputs are averaged over the tasks.
    """
    kind = name.partition(".mlp.")[2]
    if labels_Tn is None or kind not in PLAIN - {"fc2.bias"} or _in_place(labels_Tn):
        return total(deltas, name) / len(deltas)
    before = base[name].double()
    into = torch.zeros_like(before)
    axis = 1 if kind == "fc2.weight" else 0
    for delta, labels_n in zip(deltas, labels_Tn, strict=True):
        into.index_add_(axis, labels_n, before + delta[name])
    if axis == 1:
        into /= len(deltas)
    else:
        sizes_n = torch.bincount(labels_Tn.flatten(), minlength=labels_Tn.shape[1])
        into /= sizes_n.reshape(-1, *[1] * (into.dim() - 1))
    return (into - before).float()


def _in_place(labels_Tn: Tensor) -> bool:
    return torch.equal(labels_Tn, torch.arange(labels_Tn.shape[1]).expand_as(labels_Tn))


def matched(
    sight: Sight, experts: Sequence[StateDict], count: int, *, within: float, repeat: float
) -> dict[int, Tensor | None]:
    """Match the hidden units of the first `count` blocks; give every unit's group, (T, n).

    A block whose MLP is not fc1, a function of single units, fc2 gets None: its units stay.
    """
    model = deepcopy(sight.encoder).eval()
    found: dict[int, Tensor | None] = {}
    for block in range(count):
        found[block] = None
        if plain(model.vit.get_submodule(f"blocks.{block}.mlp")):
            parts = hidden(model, sight, experts, block)
            correlated_NN = correlation(parts, len(experts))
            found[block] = zipped(correlated_NN, len(experts), within=within, repeat=repeat)
    return found


def plain(mlp: nn.Module) -> bool:
    """Tell whether the units of an MLP are its own: nothing but fc1 and fc2 has weights."""
    weights = dict(mlp.named_parameters())
    if not {"fc1.weight", "fc2.weight"} <= set(weights) <= PLAIN:
        return False
    return len(weights["fc1.weight"]) == weights["fc2.weight"].shape[1]


@torch.no_grad()
def hidden(
    model: Encoder, sight: Sight, experts: Sequence[StateDict], block: int
) -> Iterator[Tensor]:
    """Give what the hidden units of all experts in a block are on the images, as (m, T * n)."""
    pixels = torch.from_numpy(sight.images)
    used_by = model.vit.get_submodule(f"blocks.{block}.mlp.fc2")
    for rows in pixels.split(BATCH):
        found: list[Tensor] = []
        hook = used_by.register_forward_pre_hook(
            lambda _, given, found=found: found.append(given[0].flatten(0, 1))
        )
        for weights in experts:
            model.load(weights, source="an expert")
            model(rows.to(model.mean.device))
        hook.remove()
        yield torch.cat(found, dim=1)
