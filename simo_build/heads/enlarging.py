"""The last step of every head: from a coarse map to the image, all of it or some pixels.

Shapes: B images, K channels, h x w the coarse map, H x W the image's pixels, R rows, C columns.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from simo_export.geometry import Geometry
from simo_export.resizing import shares
from simo_export.to_image import to_image


@dataclass(frozen=True)
class Pixels:
    """Some rows and columns of an image, and so the pixels where they cross."""

    rows_R: Tensor
    columns_C: Tensor

    def of(self, maps: Tensor) -> Tensor:
        """Take them from maps (B, H, W, ...)."""
        return maps[:, self.rows_R][:, :, self.columns_C]

    def mirrored(self, wide: int) -> "Pixels":
        """Give where these pixels lie in the mirrored image, columns in ascending order again."""
        return Pixels(self.rows_R, wide - 1 - self.columns_C.flip(0))


@dataclass(frozen=True, kw_only=True)
class Enlarging:
    """How a head's coarse map becomes the image: the arguments of `to_image`."""

    geometry: Geometry
    positive: bool
    first: int = 1
    scale: int = 1

    def whole(self, coarse_BKhw: Tensor) -> Tensor:
        """Give the raw output at every pixel, (B, K, H, W)."""
        return to_image(
            coarse_BKhw,
            self.geometry,
            positive=self.positive,
            first=self.first,
            scale=self.scale,
        )

    def at(self, coarse_BKhw: Tensor, pixels: Pixels) -> Tensor:
        """Give the raw output at some pixels, (B, K, R, C): what `whole` gives there, for less.

        Enlarging is linear and by rows and columns, so that only those asked for are computed.
        """
        if self.first > 1:
            coarse_BKhw = F.interpolate(
                coarse_BKhw, scale_factor=float(self.first), mode="bilinear", align_corners=False
            )
        if self.positive:
            coarse_BKhw = coarse_BKhw.relu()
        left, _, top, _ = self.geometry.pads
        high, wide = self.geometry.padded_size
        h, w = coarse_BKhw.shape[2:]
        down_Rh = shares(h, high)[top + pixels.rows_R].to(coarse_BKhw)
        across_Cw = shares(w, wide)[left + pixels.columns_C].to(coarse_BKhw)
        return down_Rh @ coarse_BKhw @ across_Cw.T
