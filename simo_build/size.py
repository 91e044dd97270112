"""How large a recipe's model is: parameters and multiply-adds, told from shapes alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from simo_build.encoder import Encoder
from simo_build.heads import make_head
from simo_build.recipe import Recipe
from simo_build.train import feature_shape


@dataclass(frozen=True)
class Size:
    """A module's parameters, and the multiply-adds of its matrix products for one image."""

    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of encoder and heads, and of what goes between them."""

    encoder: Size
    heads: Mapping[str, Size]
    coarse: Mapping[str, int]  # numbers of one image's map before a head's last step
    grid: tuple[int, int]  # patches
    padded: tuple[int, int]  # pixels
    tokens: int
    width: int


@torch.no_grad()
def sizes_of(recipe: Recipe) -> Sizes:
    """Measure encoder and heads on torch's meta device, where tensors have shapes and no numbers.

    RecipeError if the model cannot be.
    """
    with torch.device("meta"):
        encoder = Encoder(recipe.encoder, recipe.image).eval()
        pixels_BHW3 = torch.zeros(1, *recipe.image.size, 3, dtype=torch.uint8)
        shape = feature_shape(encoder)
        heads = {
            task: make_head(recipe.tasks[task].head, spec, shape, seed=0).eval()
            for task, spec in recipe.specs().items()
        }
        taps = encoder(pixels_BHW3)
        return Sizes(
            encoder=_size(encoder, pixels_BHW3),
            heads={task: _size(head, taps) for task, head in heads.items()},
            coarse={task: head.coarse(taps).numel() for task, head in heads.items()},
            grid=encoder.geometry.grid,
            padded=encoder.geometry.padded_size,
            tokens=int(taps[0].shape[1]),
            width=encoder.width,
        )


def _size(module: nn.Module, given: object) -> Size:
    with FlopCounterMode(display=False) as counter:
        module(given)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Size(parameters, counter.get_total_flops() // 2)  # it counts both halves
