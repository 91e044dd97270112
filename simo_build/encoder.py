"""The shared encoder: a vision transformer of timm at a fixed image size, tapped after some blocks.

Shapes: B images, H x W pixels, N patches, P tokens before them (CLS first, then registers),
D width.  pixels uint8 (B, H, W, 3) RGB  ->  one (B, P + N, D) tensor a tap.
"""

import difflib
from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from simo_build.recipe import EncoderPart, ImagePart
from simo_build.statedict import StateDict, misfits
from simo_export.geometry import Geometry
from simo_runtime.errors import CheckpointError, RecipeError, listing

# Tensors of published checkpoints that an encoder of features has no use for.
CLASSIFIER = ("head.", "head_dist.", "fc_norm.", "head_drop.")


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
        self.vit.blocks = self.vit.blocks[: part.taps[-1]]
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
        unit_BHW3 = (pixels_BHW3.float() / 255.0 - self.mean) / self.std
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

    def load(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Take weights whose names and shapes must be exactly the encoder's."""
        faults = list(misfits(state, self.vit.state_dict()))
        if faults:
            raise CheckpointError(
                f"{source}: {len(faults)} encoder tensors do not fit {self.part.model}\n"
                f"{listing(faults)}"
            )
        self.vit.load_state_dict(dict(state))


def make_vit(part: EncoderPart) -> VisionTransformer:
    """Make a timm ViT by name without weights, or say what is wrong with the recipe's key."""
    if not timm.is_model(part.model):
        close = difflib.get_close_matches(part.model, timm.list_models("*vit*"), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"encoder.model: timm has no {part.model!r}{hint}")
    options: dict[str, Any] = {"num_classes": 0, **part.options}
    try:
        vit = timm.create_model(part.model, pretrained=False, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise RecipeError(f"encoder.options: timm refuses {part.options}: {error}") from error
    if not isinstance(vit, VisionTransformer):
        kind = type(vit).__name__
        raise RecipeError(f"encoder.model: {part.model} is a {kind}, not a plain ViT")
    if part.taps[-1] > len(vit.blocks):
        raise RecipeError(
            f"encoder.taps: {part.taps[-1]} is past the last block; "
            f"{part.model} has {len(vit.blocks)}"
        )
    return vit


def adapt(state: Mapping[str, Tensor], encoder: Encoder, *, source: str) -> StateDict:
    """Bring a plain timm or DINOv2 state dict to the encoder's names and grid.

    Dropped on purpose: the classifier, DINOv2's unused `mask_token` (timm's reader drops it) and
    blocks after the last tap. The position embedding is resampled to the encoder's grid. Every
    other tensor must fit; CheckpointError lists those that do not.
    """
    last = len(encoder.vit.blocks)
    kept = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(CLASSIFIER) and _block(name) < last
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
    adapted: StateDict = checkpoint_filter_fn(kept, encoder.vit)
    faults = list(misfits(adapted, encoder.weights()))
    if faults:
        raise CheckpointError(
            f"{source}: {len(faults)} tensors do not fit {encoder.part.model}\n{listing(faults)}"
        )
    return adapted


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
