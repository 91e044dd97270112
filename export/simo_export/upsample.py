"""From the grid of patches to pixels: the last step of a head."""

import torch.nn.functional as F
from torch import Tensor

from simo_export.geometry import Geometry


def to_image(coarse_BKhw: Tensor, geometry: Geometry, *, positive: bool, first: int) -> Tensor:
    """Upsample (B, K, h, w) to the padded image, bilinearly, and crop it to (B, K, H, W).

    `first` > 1 upsamples that many times before the positive part is taken.
    """
    if first > 1:
        h, w = geometry.grid
        coarse_BKhw = _resize(coarse_BKhw, (h * first, w * first))
    if positive:
        coarse_BKhw = coarse_BKhw.relu()
    left, right, top, bottom = geometry.pads
    high, wide = geometry.padded_size
    padded = _resize(coarse_BKhw, (high, wide))
    return padded[:, :, top : high - bottom, left : wide - right]


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
