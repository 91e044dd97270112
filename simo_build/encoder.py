"""The shared encoder: a vision transformer of timm at a fixed image size, tapped after some blocks.

Shapes: B images, H x W pixels, N patches, P tokens before them (CLS first, then registers),
D width.  pixels uint8 (B, H, W, 3) RGB  ->  one (B, P + N, D) tensor a tap.
"""

import difflib
import inspect
import math
from collections.abc import Mapping
from typing import cast

import timm
import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from simo_build.adapters import VARIANTS, AnyAdapter, found_in
from simo_build.recipe import EncoderPart, ImagePart
from simo_build.statedict import StateDict, misfits
from simo_export.geometry import Geometry
from simo_runtime.errors import CheckpointError, RecipeError, listing, unknown

# Tensors of published checkpoints that an encoder of features has no use for.
CLASSIFIER = ("head.", "head_dist.", "fc_norm.", "head_drop.")
# What a recipe may say in `encoder.options`: the architecture. The image's size and colours have
# keys of their own, and weights come from `base` alone (timm's other options would load some).
ELSEWHERE = {"self", "img_size", "in_chans", "num_classes", "device", "dtype", "weight_init"}
# These draw from torch's own generator, which nothing seeds: two trainings would differ.
DRAWN = {
    "drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
}
REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError, LookupError)
DINOV2_OFFSET = 0.1  # patches; its `interpolate_offset`, against rounding of the scale
OPTIONS = set(inspect.signature(VisionTransformer.__init__).parameters) - ELSEWHERE - DRAWN


def _beside(block: nn.Module, given: tuple[Tensor, ...], out_BSD: Tensor) -> Tensor:
    """Let the adapter of a block change its output."""
    changed_BSD: Tensor = cast("AnyAdapter", block.adapter)(given[0], out_BSD)
    return changed_BSD


class Encoder(nn.Module):
    """A timm ViT that takes raw pixels and gives the tokens after each tapped block.

    The position embedding is resampled once, when weights are loaded, and blocks after the last
    tap are left out: they would cost time and give nothing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, part: EncoderPart, image: ImagePart) -> None:
        super().__init__()
        self.part, self.image = part, image
        self.vit = make_vit(part)
        patch = self.vit.patch_embed.patch_size
        self.geometry = Geometry(image_size=image.size, patch=(patch[0], patch[1]))
        self.vit.set_input_size(img_size=self.geometry.padded_size)
        self.depth = len(self.vit.blocks)  # before those after the last tap are left out
        self.vit.blocks = self.vit.blocks[: part.taps[-1]]
        self._adapting: list[RemovableHandle] = []
        self.register_buffer("mean", torch.tensor(image.mean), persistent=False)
        self.register_buffer("std", torch.tensor(image.std), persistent=False)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.vit.embed_dim)

    @property
    def prefix(self) -> int:
        """Tokens before the patches: CLS and registers."""
        return int(self.vit.num_prefix_tokens)

    def forward(self, pixels_BHW3: Tensor) -> list[Tensor]:
        unit_BHW3 = (pixels_BHW3.to(self.mean.dtype) / 255.0 - self.mean) / self.std
        padded = F.pad(unit_BHW3.permute(0, 3, 1, 2), self.geometry.pads)
        taps = self.vit.forward_intermediates(
            padded,
            indices=[tap - 1 for tap in self.part.taps],
            return_prefix_tokens=True,
            norm=self.part.norm,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if not self.prefix:
            return cast("list[Tensor]", taps)
        pairs = cast("list[tuple[Tensor, Tensor]]", taps)
        return [torch.cat((prefix, patches), dim=1) for patches, prefix in pairs]

    def weights(self) -> StateDict:
        """Give the encoder's tensors under timm's own names."""
        return dict(self.vit.state_dict())

    def load(self, state: Mapping[str, Tensor], *, source: str, adapters: bool = False) -> None:
        """Take weights whose names and shapes must be exactly the encoder's.

        Only if the caller says so may they bring adapters beside the blocks.
        """
        self.adapt(found_in(state) if adapters else None)
        faults = list(misfits(state, self.vit.state_dict()))
        if faults:
            raise CheckpointError(
                f"{source}: {len(faults)} encoder tensors do not fit {self.part.model}\n"
                f"{listing(faults)}"
            )
        self.vit.load_state_dict(dict(state))

    def adapt(self, form: tuple[str, int] | None) -> None:
        """Put an adapter of a variant and a rank beside every block, or take all away.

        The numbers in one are not set.
        """
        while self._adapting:
            self._adapting.pop().remove()
        for block in self.vit.blocks:
            if hasattr(block, "adapter"):
                del block.adapter
            if form is not None:
                variant, rank = form
                like = next(block.parameters())
                block.adapter = VARIANTS[variant](self.width, rank).to(like.device, like.dtype)
                self._adapting.append(block.register_forward_hook(_beside))


def make_vit(part: EncoderPart) -> VisionTransformer:
    """Make a timm ViT by name without weights, or say what is wrong with the recipe's key."""
    if not timm.is_model(part.model):
        close = difflib.get_close_matches(part.model, timm.list_models("*vit*"), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"encoder.model: timm has no {part.model!r}{hint}")
    for name in part.options:
        if name in DRAWN:
            raise RecipeError(
                f"encoder.options.{name}: it would draw at random, and two trainings would differ; "
                "leave it out"
            )
        if name not in OPTIONS:
            raise unknown("encoder.options", name, OPTIONS)
    try:
        vit = timm.create_model(part.model, pretrained=False, num_classes=0, **part.options)
    except REFUSALS as error:
        told = str(error) or type(error).__name__
        raise RecipeError(
            f"encoder: timm refuses {part.model} with options {part.options}: {told}"
        ) from error
    if not isinstance(vit, VisionTransformer):
        kind = type(vit).__name__
        raise RecipeError(f"encoder.model: {part.model} is a {kind}, not a plain ViT")
    if part.taps[-1] > len(vit.blocks):
        raise RecipeError(
            f"encoder.taps: {part.taps[-1]} is past the last block; "
            f"{part.model} has {len(vit.blocks)}"
        )
    return vit


def adapt(
    state: Mapping[str, Tensor],
    encoder: Encoder,
    *,
    source: str,
    image_size: tuple[int, int] | None = None,
) -> StateDict:
    """Bring a plain timm or DINOv2 state dict to the encoder's names and grid.

    Dropped on purpose: the classifier, DINOv2's unused `mask_token` and the model's blocks after
    the last tap. The position embedding is resampled to the encoder's grid, from that of
    `image_size` pixels where this is known. Every other tensor must fit; CheckpointError lists
    those that do not.
    """
    unused = range(len(encoder.vit.blocks), encoder.depth)
    kept = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(CLASSIFIER) and _block(name) not in unused
    }
    if "patch_embed.proj.weight" not in kept:
        raise CheckpointError(
            f"{source}: not a ViT of timm or DINOv2, it has no patch_embed.proj.weight\n"
            f"{listing(sorted(state))}"
        )
    patch = kept["patch_embed.proj.weight"].shape[-2:]
    if patch != encoder.geometry.patch:
        raise CheckpointError(
            f"{source}: its patches are {tuple(patch)} pixels, "
            f"those of {encoder.part.model} are {encoder.geometry.patch}"
        )
    adapted = resampled(_from_dinov2(kept), encoder, image_size)
    faults = list(misfits(adapted, encoder.weights()))
    if faults:
        raise CheckpointError(
            f"{source}: {len(faults)} tensors do not fit {encoder.part.model}\n{listing(faults)}"
        )
    return adapted


def _from_dinov2(state: Mapping[str, Tensor]) -> StateDict:
    """Rename what DINOv2 names otherwise than timm; a state dict of timm's stays as it is."""
    renamed = {
        name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): tensor
        for name, tensor in state.items()
        if name != "mask_token"
    }
    if {"register_tokens", "cls_token", "pos_embed"} <= set(renamed):
        # timm gives patches a position, but neither CLS nor registers
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    return renamed


def resampled(state: StateDict, encoder: Encoder, image_size: tuple[int, int] | None) -> StateDict:
    """Resample the position embedding to the encoder's grid; one of an unknown grid stays."""
    vit, old, new = encoder.vit, state.get("pos_embed"), encoder.geometry.grid
    if old is None or vit.pos_embed is None or old.ndim != 3 or len(old) != 1:
        return state
    prefix = 0 if vit.no_embed_class else encoder.prefix
    grid = _grid(old.shape[1] - prefix, encoder, image_size)
    if grid in (None, new):
        return state
    if encoder.part.positions == "dinov2":
        moved = torch.cat((old[:, :prefix], as_dinov2(old[:, prefix:], grid, new)), dim=1)
    else:
        moved = resample_abs_pos_embed(old, new_size=new, old_size=grid, num_prefix_tokens=prefix)
    return {**state, "pos_embed": moved}


def as_dinov2(old_1ND: Tensor, grid: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample a position embedding as DINOv2's published code does in every forward pass.

    It is bicubic, not smoothed, and its scale is that of a grid larger by a tenth of a patch.
    """
    maps_1Dhw = old_1ND.unflatten(1, grid).permute(0, 3, 1, 2)
    scale = tuple((to + DINOV2_OFFSET) / side for to, side in zip(new, grid, strict=True))
    moved_1Dhw = F.interpolate(maps_1Dhw.float(), scale_factor=scale, mode="bicubic")
    return moved_1Dhw.flatten(2).transpose(1, 2).to(old_1ND.dtype)


def _grid(
    patches: int, encoder: Encoder, image_size: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Find the grid of a position embedding: known, timm's own, the encoder's, or a square."""
    patch, side = encoder.geometry.patch, math.isqrt(max(patches, 0))
    grids = []
    if image_size is not None:
        grids.append(Geometry(image_size=image_size, patch=patch).grid)
    trained = getattr(encoder.vit, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    grids.append((trained[1] // patch[0], trained[2] // patch[1]))  # timm cuts, it does not pad
    every = [*grids, encoder.geometry.grid, (side, side)]
    return next((grid for grid in every if 0 < grid[0] * grid[1] == patches), None)


def _block(name: str) -> int:
    """Give the number of the block that a tensor belongs to, -1 if it belongs to none."""
    head, _, rest = name.partition(".")
    return int(rest.split(".")[0]) if head == "blocks" and rest.split(".")[0].isdigit() else -1


def randomise(encoder: Encoder, seed: int) -> None:
    """Give the encoder random weights of the usual scale; for measuring speed only."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in encoder.vit.named_parameters():
            if tensor.ndim > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)
            elif name.endswith("bias"):
                tensor.zero_()
