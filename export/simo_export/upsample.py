"""From the grid of patches to pixels: the last step of a head."""

import torch.nn.functional as F
from torch import Tensor

from simo_export.geometry import Geometry


def to_image(coarse_BKhw: Tensor, geometry: Geometry, *, positive: bool, first: int) -> Tensor:
    """Upsample (B, K, h, w) to the padded image, bilinearly, and crop it to (B, K, H, W).

    `first` > 1 upsamples that many times before the positive part is taken.
    """
    if first > 1:
        coarse_BKhw = _enlarge(coarse_BKhw, (float(first), float(first)))
    if positive:
        coarse_BKhw = coarse_BKhw.relu()
    tall, broad = geometry.patch
    padded = _enlarge(coarse_BKhw, (tall / first, broad / first))
    left, right, top, bottom = geometry.pads
    high, wide = geometry.padded_size
    return padded[:, :, top : high - bottom, left : wide - right]


def _enlarge(maps: Tensor, factors: tuple[float, float]) -> Tensor:
    # Factors and not sizes: a size would put the batch's shape arithmetic into the graph.
    return F.interpolate(maps, scale_factor=factors, mode="bilinear", align_corners=False)
