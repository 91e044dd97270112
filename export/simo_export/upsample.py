"""Bilinear resizing with sizes that are known beforehand, and the last step of a head.

Factors are given and not sizes: a size would put the batch's shape arithmetic into the graph.
"""

import torch.nn.functional as F
from torch import Tensor

from simo_export.geometry import Geometry

Size = tuple[int, int]  # rows, columns


def to_image(
    coarse_BKhw: Tensor, geometry: Geometry, *, positive: bool, first: int = 1, scale: int = 1
) -> Tensor:
    """Upsample (B, K, h, w) to the padded image, bilinearly, and crop it to (B, K, H, W).

    `first` > 1 upsamples that many times before the positive part is taken. The map has `scale`
    rows and columns for each one of the grid of patches.
    """
    if first > 1:
        coarse_BKhw = _enlarge(coarse_BKhw, (float(first), float(first)))
    if positive:
        coarse_BKhw = coarse_BKhw.relu()
    tall, broad = geometry.patch
    factors = tall / (first * scale), broad / (first * scale)
    padded = coarse_BKhw if factors == (1.0, 1.0) else _enlarge(coarse_BKhw, factors)
    left, right, top, bottom = geometry.pads
    high, wide = geometry.padded_size
    return padded[:, :, top : high - bottom, left : wide - right]


def _enlarge(maps: Tensor, factors: tuple[float, float]) -> Tensor:
    return F.interpolate(maps, scale_factor=factors, mode="bilinear", align_corners=False)


def enlarge_aligned(maps: Tensor, old: Size, new: Size) -> Tensor:
    """Upsample (B, C, *old) to (B, C, *new), bilinearly, the corners staying corners."""
    if old == new:
        return maps
    factors = _reaching(old[0], new[0]), _reaching(old[1], new[1])
    return F.interpolate(maps, scale_factor=factors, mode="bilinear", align_corners=True)


def _reaching(old: int, new: int) -> float:
    """Give a factor that takes `old` rows to `new`, rounded down, in single precision too.

    With aligned corners the factor says how many rows there are and nothing else: what lies where
    follows from the two counts.
    """
    return new / old if new % old == 0 else (new + 0.5) / old
