"""Folded DPT heads: what is left of one when it is only to predict.

- CLS is treated once an image and not at every patch. Where it is added to the patches, the layer
  after that gives both their products, since it is linear: W (p + c) + b = W p + (W c + b). Where
  a layer reads [patch, CLS], its CLS half becomes one vector an image.
- A BatchNorm goes into the convolution before it, in float64; dropout is left out.

Shapes: B images, N = h x w patches, S = P + N tokens, D width, C channels of a map, K channels
put out, H x W pixels.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from simo_export.geometry import Geometry
from simo_export.resizing import Size
from simo_export.to_image import ToImage


class PlainDptHead(nn.Module):
    """A folded DPT head: taps (B, S, D) -> raw (B, K, H, W)."""

    def __init__(
        self,
        readouts: Sequence[nn.Module],
        trunk: nn.Module,
        layers: nn.Module,
        *,
        geometry: Geometry,
        positive: bool,
        scale: int,
    ) -> None:
        super().__init__()
        self.readouts, self.trunk, self.layers = nn.ModuleList(readouts), trunk, layers
        dtype = next(layers.parameters()).dtype
        self.to_image = ToImage(geometry, positive=positive, scale=scale, dtype=dtype)

    def forward(self, *taps: Tensor) -> Tensor:
        levels = [read(tap) for read, tap in zip(self.readouts, taps, strict=True)]
        coarse_BKhw = self.layers(self.trunk(levels))
        image_BKHW: Tensor = self.to_image(coarse_BKhw)
        return image_BKHW


class PlainReadout(nn.Module):
    """A folded readout: (B, S, D) -> (B, C, h, w).

    Without `project` it is `reduce` of patch + CLS, else `reduce` of GELU of `project` of both.
    """

    on_patches_DD: Tensor | None
    on_cls_DD: Tensor | None

    def __init__(
        self, reduce: nn.Linear, project: nn.Linear | None, *, prefix: int, grid: Size
    ) -> None:
        super().__init__()
        self.prefix, self.grid = prefix, grid
        self.reduce_DC = _parameter(reduce.weight.T)
        self.bias_C = _parameter(reduce.bias)
        if project is None:
            self.on_patches_DD = self.on_cls_DD = None
        else:
            on_patches, on_cls = project.weight.chunk(2, dim=1)
            self.on_patches_DD, self.on_cls_DD = _parameter(on_patches.T), _parameter(on_cls.T)
            self.bias_D = _parameter(project.bias)

    def forward(self, tap_BSD: Tensor) -> Tensor:
        if self.on_patches_DD is None or self.on_cls_DD is None:
            both_BSC = tap_BSD @ self.reduce_DC
            map_BNC = both_BSC[:, self.prefix :] + (both_BSC[:, :1] + self.bias_C)
        else:
            image_B1D = tap_BSD[:, :1] @ self.on_cls_DD + self.bias_D
            patches_BND = (tap_BSD @ self.on_patches_DD)[:, self.prefix :]
            read_BND = nn.functional.gelu(patches_BND + image_B1D)
            map_BNC = read_BND @ self.reduce_DC + self.bias_C
        return on_grid(map_BNC, self.grid)


def on_grid(tokens_BNC: Tensor, grid: Size) -> Tensor:
    """Lay patches out as a map: (B, N, C) -> (B, C, h, w)."""
    return tokens_BNC.transpose(1, 2).reshape(-1, tokens_BNC.shape[2], *grid)


def plain_layers(layers: Sequence[nn.Module]) -> nn.Sequential:
    """Copy layers, each BatchNorm in the convolution before it and without dropout."""
    plain: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            plain.append(with_batchnorm(cast("nn.Conv2d", plain.pop()), layer))
        elif not isinstance(layer, nn.Dropout):
            plain.append(deepcopy(layer))
    return nn.Sequential(*plain)


def with_batchnorm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Fold a BatchNorm, as it is in evaluation, into the convolution before it, in float64."""
    conv64, norm64 = deepcopy(conv).double().eval(), deepcopy(norm).double().eval()
    return fuse_conv_bn_eval(conv64, norm64).to(conv.weight.dtype)


def _parameter(weights: Tensor) -> nn.Parameter:
    return nn.Parameter(weights.detach().clone(memory_format=torch.contiguous_format))
