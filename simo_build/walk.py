"""Merge block after block, each by what it gets from the merged blocks before it.

Experts' own blocks give other inputs to the next one than merged blocks do. Here every expert's
block gets what the merged blocks before it put out; the method merges the block by that, and the
merged block is passed before the next one's turn.

Shapes: n images, S tokens, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simo_build.data import Samples
from simo_build.devices import device
from simo_build.encoder import Encoder
from simo_build.features import BATCH
from simo_build.merge import Delta, MergeMethod, Moved
from simo_build.moments import grams_of, hooked, observed_layers
from simo_build.statedict import StateDict, part, prefixed
from simo_build.workshop import Workshop


def walked(
    work: Workshop, method: MergeMethod, deltas: Sequence[Delta], params: Mapping[str, Any]
) -> StateDict:
    """Merge the deltas of the workshop's experts by a method that walks; give the merged delta."""
    evidence: list[StateDict] = [{} for _ in deltas]
    given = [Moved(one, device()) if method.heavy else one for one in evidence]
    lazy, delta = method.lazily(deltas, given, **params), dict[str, Tensor]()
    blocks = {f"blocks.{i}.": block for i, block in enumerate(work.encoder.vit.blocks)}

    def merge(names: Sequence[str]) -> StateDict:
        with torch.inference_mode():
            new = {name: lazy[name].cpu() for name in names}
        delta.update(new)
        return {name: work.base[name].float() + new[name] for name in names}

    outside = merge([name for name in work.base if not name.startswith(tuple(blocks))])
    work.encoder.load({**work.base, **outside}, source="the merged embedding")
    x_nSD = first_inputs(work.encoder, work.unlabelled(work.recipe.merge.images))
    for prefix, block in work.stages.progress.track(blocks.items(), "merging blocks", len(blocks)):
        for one, expert in zip(evidence, work.experts.values(), strict=True):
            block.load_state_dict(part(expert.encoder, prefix))
            one.clear()
            one.update(prefixed(block_grams(block, x_nSD), prefix))
        merged = merge([name for name in work.base if name.startswith(prefix)])
        block.load_state_dict(part(merged, prefix))
        x_nSD = passed(block, x_nSD)
    return {name: delta[name] for name in work.base}


@torch.inference_mode()
def first_inputs(encoder: Encoder, samples: Samples) -> Tensor:
    """Give what goes into the first block for every image, on the CPU."""
    seen: list[Tensor] = []
    encoder.eval()
    layers = {"the first block": encoder.vit.blocks[0]}
    with hooked(layers, lambda _, __, inputs, ___: seen.append(inputs[0].cpu())):
        for start in range(0, len(samples), BATCH):
            pixels = torch.from_numpy(samples.images[start : start + BATCH])
            encoder(pixels.to(encoder.mean.device))
    return torch.cat(seen)


@torch.inference_mode()
def passed(block: nn.Module, x_nSD: Tensor) -> Tensor:
    """Pass tokens through a block, some images at a time; they stay on the CPU."""
    place = next(block.parameters()).device
    return torch.cat([block(x_BSD.to(place)).cpu() for x_BSD in x_nSD.split(BATCH)])


def block_grams(block: nn.Module, x_nSD: Tensor) -> StateDict:
    """Give the second moments of the inputs of a block's layers (`moments.grams_of`)."""

    def forward() -> None:
        passed(block, x_nSD)

    return grams_of(observed_layers(block), forward)
