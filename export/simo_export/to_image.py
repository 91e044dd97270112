"""The last step of a head: from its map to the image."""

import torch
from torch import Tensor, nn

from simo_export.geometry import Geometry
from simo_export.resizing import Resizing, enlarge


def to_image(
    coarse_BKhw: Tensor, geometry: Geometry, *, positive: bool, first: int = 1, scale: int = 1
) -> Tensor:
    """Upsample (B, K, h, w) to the padded image, bilinearly, and crop it to (B, K, H, W).

    `first` > 1 upsamples that many times before the positive part is taken. The map has `scale`
    rows and columns for each one of the grid of patches.
    """
    if first > 1:
        coarse_BKhw = enlarge(coarse_BKhw, (float(first), float(first)))
    if positive:
        coarse_BKhw = coarse_BKhw.relu()
    tall, broad = geometry.patch
    factors = tall / (first * scale), broad / (first * scale)
    padded = coarse_BKhw if factors == (1.0, 1.0) else enlarge(coarse_BKhw, factors)
    left, right, top, bottom = geometry.pads
    high, wide = geometry.padded_size
    return padded[:, :, top : high - bottom, left : wide - right]


class ToImage(nn.Module):
    """The same as `to_image`, for a graph: large steps are two products with fixed matrices.

    Resizing bilinearly is linear, by rows and by columns. ONNX Runtime's Resize takes twice the
    time of both products on a CPU, from a map of patches to an image; and the crop is free.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        positive: bool,
        first: int = 1,
        scale: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        left, right, top, bottom = geometry.pads
        (h, w), (high, wide) = geometry.grid, geometry.padded_size
        coarse, middle = (h * scale, w * scale), (h * scale * first, w * scale * first)
        self.first = Resizing(coarse, middle, dtype=dtype)
        self.positive = nn.ReLU() if positive else nn.Identity()
        self.last = Resizing(
            middle,
            (high, wide),
            rows=slice(top, high - bottom),
            columns=slice(left, wide - right),
            dtype=dtype,
        )

    def forward(self, coarse_BKhw: Tensor) -> Tensor:
        image_BKHW: Tensor = self.last(self.positive(self.first(coarse_BKhw)))
        return image_BKHW
