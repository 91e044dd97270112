"""Fold what can be folded: exact algebra that leaves plain weights and fewer operations.

Every function here computes in float64 and gives a module of the original's own type of numbers,
whose answers equal the original's:

- LayerScale goes into the projection before it.
- The normalisation of pixels, and the scale of bytes, go into the patch embedding, so that the
  graph takes raw uint8. Padding is zero in normalised space, which no byte is: what the border
  patches lose by it is added to their position embedding.
- CLS, registers and position embedding become one table at the fixed grid.
- The attention's scale goes into the query.
- A BatchNorm goes into the linear layer after it.
- The CLS half of a linear head becomes one vector an image instead of a copy at every patch.

Shapes: B images, N patches, P prefix tokens, S = P + N tokens, D width, A attention heads.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from simo_export.geometry import Geometry
from simo_export.to_image import ToImage
from simo_runtime.errors import ExportError

Triple = tuple[float, float, float]


class PlainBlock(nn.Module):
    """One transformer block of plain weights: (B, S, D) -> (B, S, D)."""

    norm1: nn.Module
    norm2: nn.Module
    act: nn.Module
    fc1: nn.Linear
    late_scale: float
    adapter: nn.Module | None

    def __init__(self, block: Block, tokens: int) -> None:
        super().__init__()
        attention, mlp = cast("Attention", block.attn), cast("Mlp", block.mlp)
        self.tokens = tokens
        self.heads, self.head_width = attention.num_heads, attention.head_dim
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        # q_norm undoes a scale that comes before it, so the scale must wait until after it
        early = isinstance(self.q_norm, nn.Identity)
        self.late_scale = 1.0 if early else float(attention.scale)
        self.qkv = _scale_query(attention) if early else attention.qkv
        self.proj = _scale_rows(attention.proj, block.ls1)
        self.fc1, self.act = cast("nn.Linear", mlp.fc1), mlp.act
        self.fc2 = _scale_rows(cast("nn.Linear", mlp.fc2), block.ls2)
        self.adapter = getattr(block, "adapter", None)  # input, output -> a new output

    def forward(self, x_BSD: Tensor) -> Tensor:
        whole_BSD = self.plain(x_BSD)
        return whole_BSD if self.adapter is None else cast("Tensor", self.adapter(x_BSD, whole_BSD))

    def plain(self, x_BSD: Tensor) -> Tensor:
        """Pass the block itself."""
        # One transposition of all heads and one cut: neither indices nor a fifth axis in the graph.
        all_BSAd = self.qkv(self.norm1(x_BSD)).reshape(
            -1, self.tokens, 3 * self.heads, self.head_width
        )
        query, key, value = all_BSAd.transpose(1, 2).split(self.heads, dim=1)
        query, key = self.q_norm(query), self.k_norm(key)
        if self.late_scale != 1.0:
            query = query * self.late_scale
        mixed = (query @ key.transpose(-1, -2)).softmax(dim=-1) @ value
        inner = self.heads * self.head_width
        x_BSD = x_BSD + self.proj(mixed.transpose(1, 2).reshape(-1, self.tokens, inner))
        return cast("Tensor", x_BSD + self.fc2(self.act(self.fc1(self.norm2(x_BSD)))))


class PlainEncoder(nn.Module):
    """A folded ViT: pixels uint8 (B, H, W, 3) RGB -> one (B, S, D) tensor a tap."""

    position_1SD: Tensor

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        geometry: Geometry,
        taps: Sequence[int],
        norm: bool,
        mean: Triple,
        std: Triple,
    ) -> None:
        super().__init__()
        check_foldable(vit)
        self.geometry, self.taps = geometry, tuple(taps)
        self.patches = geometry.grid[0] * geometry.grid[1]
        self.prefix, self.width = int(vit.num_prefix_tokens), int(vit.embed_dim)
        self.patch_embed = _fold_pixels(vit.patch_embed.proj, mean, std)
        border_NDhw = _border(vit.patch_embed.proj, geometry, mean, std)
        table = _token_table(vit)
        table[:, self.prefix :] += border_NDhw.flatten(2).transpose(1, 2)
        self.register_buffer("position_1SD", table.to(self.patch_embed.weight.dtype))
        self.norm_pre = vit.norm_pre
        self.blocks = nn.ModuleList(
            PlainBlock(cast("Block", block), self.prefix + self.patches) for block in vit.blocks
        )
        self.norm = vit.norm if norm else nn.Identity()

    def forward(self, pixels_BHW3: Tensor) -> tuple[Tensor, ...]:
        image_B3HW = pixels_BHW3.permute(0, 3, 1, 2).to(self.patch_embed.weight.dtype)
        if any(self.geometry.pads):
            image_B3HW = F.pad(image_B3HW, self.geometry.pads)
        patches_BDN = self.patch_embed(image_B3HW).reshape(-1, self.width, self.patches)
        # The prefix starts as zeros: its values are in the table, and no batch size is needed.
        x_BSD = F.pad(patches_BDN.transpose(1, 2), (0, 0, self.prefix, 0)) + self.position_1SD
        x_BSD = self.norm_pre(x_BSD)
        taps = []
        for number, block in enumerate(self.blocks, start=1):
            x_BSD = block(x_BSD)
            if number in self.taps:
                taps.append(self.norm(x_BSD))
        return tuple(taps)


class PlainLinearHead(nn.Module):
    """A folded linear head: L taps (B, S, D) -> raw (B, K, H, W).

    `weight_KC` has the columns of [patch, CLS] of every tap, one tap after another.
    """

    def __init__(
        self,
        weight_KC: Tensor,
        bias_K: Tensor,
        *,
        taps: int,
        prefix: int,
        geometry: Geometry,
        positive: bool,
        first: int,
    ) -> None:
        super().__init__()
        self.prefix, self.grid = prefix, geometry.grid
        pieces = weight_KC.detach().chunk(2 * taps, dim=1)
        self.on_patches = nn.ParameterList(piece.T.contiguous() for piece in pieces[0::2])
        self.on_cls = nn.ParameterList(piece.T.contiguous() for piece in pieces[1::2])
        self.bias_K = nn.Parameter(bias_K.detach().clone())
        self.to_image = ToImage(geometry, positive=positive, first=first, dtype=bias_K.dtype)

    def forward(self, *taps: Tensor) -> Tensor:
        coarse_BSK = taps[0] @ self.on_patches[0]
        image_B1K = taps[0][:, :1] @ self.on_cls[0] + self.bias_K
        for tap, patches_DK, cls_DK in zip(
            taps[1:], self.on_patches[1:], self.on_cls[1:], strict=True
        ):
            coarse_BSK = coarse_BSK + tap @ patches_DK
            image_B1K = image_B1K + tap[:, :1] @ cls_DK
        h, w = self.grid
        coarse_BNK = coarse_BSK[:, self.prefix :] + image_B1K
        coarse_BKhw = coarse_BNK.transpose(1, 2).reshape(-1, self.bias_K.shape[0], h, w)
        image_BKHW: Tensor = self.to_image(coarse_BKhw)
        return image_BKHW


def check_foldable(vit: VisionTransformer) -> None:
    """Refuse a ViT with parts that this module would silently leave out."""
    if vit.dynamic_img_size or not isinstance(vit.patch_embed.norm, nn.Identity):
        raise ExportError("a dynamic image size and a norm after patches cannot be exported")
    for number, block in enumerate(vit.blocks, start=1):
        for where, module, allowed in (
            ("", block, Block),
            (".attn", block.attn, Attention),
            (".attn.norm", block.attn.norm, nn.Identity),
            (".attn.gate", getattr(block.attn, "gate", None), type(None)),
            (".mlp", block.mlp, Mlp),
            (".mlp.norm", block.mlp.norm, nn.Identity),
            (".ls1", block.ls1, (nn.Identity, LayerScale)),
            (".ls2", block.ls2, (nn.Identity, LayerScale)),
        ):
            if not isinstance(module, allowed):
                raise ExportError(
                    f"block {number}{where} is a {type(module).__name__}, which cannot be exported"
                )


@torch.no_grad()
def _scale_rows(linear: nn.Linear, scale: nn.Module) -> nn.Linear:
    """Fold the LayerScale after a linear layer into it."""
    if isinstance(scale, nn.Identity):
        return linear
    gamma_D = cast("Tensor", scale.gamma).double()
    return _linear(linear.weight.double() * gamma_D[:, None], _bias(linear) * gamma_D, like=linear)


@torch.no_grad()
def _scale_query(attention: Attention) -> nn.Linear:
    """Fold the attention's 1 / sqrt(head width) into the rows that make the query."""
    scale_O = torch.ones(attention.qkv.out_features, dtype=torch.float64)
    scale_O[: attention.qkv.out_features // 3] = attention.scale
    weight = attention.qkv.weight.double() * scale_O[:, None]
    return _linear(weight, _bias(attention.qkv) * scale_O, like=attention.qkv)


@torch.no_grad()
def fold_batchnorm(
    norm: nn.BatchNorm1d, weight_KC: Tensor, bias_K: Tensor
) -> tuple[Tensor, Tensor]:
    """Fold a BatchNorm, as it is in evaluation, into the linear layer after it, in float64.

    The results are of the layer's own type of numbers.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain_C = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift_C = norm.bias.double() - norm.running_mean.double() * gain_C
    folded_KC = weight_KC.double() * gain_C
    folded_K = bias_K.double() + weight_KC.double() @ shift_C
    return folded_KC.to(weight_KC.dtype), folded_K.to(bias_K.dtype)


def _linear(weight: Tensor, bias: Tensor, *, like: nn.Linear) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], dtype=like.weight.dtype)
    made.weight.copy_(weight)
    made.bias.copy_(bias)
    return made


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    if layer.bias is None:
        return torch.zeros(layer.weight.shape[0], dtype=torch.float64)
    return layer.bias.double()


@torch.no_grad()
def _fold_pixels(conv: nn.Conv2d, mean: Triple, std: Triple) -> nn.Conv2d:
    """Fold (byte / 255 - mean) / std into the patch embedding."""
    mean_3 = torch.tensor(mean, dtype=torch.float64)
    std_3 = torch.tensor(std, dtype=torch.float64)
    weight = conv.weight.double()
    kernel = cast("tuple[int, int]", conv.kernel_size)
    made = nn.Conv2d(3, conv.out_channels, kernel, stride=kernel, dtype=conv.weight.dtype)
    made.weight.copy_(weight / (255.0 * std_3)[:, None, None])
    offset_D = (weight * (mean_3 / std_3)[:, None, None]).sum(dim=(1, 2, 3))
    assert made.bias is not None
    made.bias.copy_(_bias(conv) - offset_D)
    return made


@torch.no_grad()
def _border(conv: nn.Conv2d, geometry: Geometry, mean: Triple, std: Triple) -> Tensor:
    """Give what padding with byte 0 takes from the border patches, (1, D, h, w), in float64.

    A padded pixel must count as zero in normalised space; as byte 0 it counts as -mean / std.
    """
    ratio_3 = torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    inside = torch.zeros(1, 3, *geometry.image_size, dtype=torch.float64)
    padded = F.pad(inside, geometry.pads, value=1.0) * ratio_3[:, None, None]
    return F.conv2d(padded, conv.weight.double(), stride=conv.stride)


@torch.no_grad()
def _token_table(vit: VisionTransformer) -> Tensor:
    """Give CLS, registers and position embedding as one table (1, S, D), in float64."""
    proj = vit.patch_embed.proj
    zeros = torch.zeros(1, vit.patch_embed.num_patches, vit.embed_dim, dtype=proj.weight.dtype)
    return vit._pos_embed(zeros).double()
