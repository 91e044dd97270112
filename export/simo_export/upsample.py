"""Bilinear resizing with sizes that are known beforehand, and the last step of a head.

Factors are given and not sizes: a size would put the batch's shape arithmetic into the graph.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_export.geometry import Geometry

Size = tuple[int, int]  # rows, columns
DOWN, ACROSS = "down_Hh", "across_wW"  # what a graph calls the factors of a resizing
MOST_ROWS, LEAST_FACTOR = 64, 3  # where two products take half the time of a Resize on a CPU


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


class Resizing(nn.Module):
    """Resize (B, K, *old) bilinearly to (B, K, *new), and keep some of its rows and columns."""

    down_Hh: Tensor
    across_wW: Tensor

    def __init__(
        self,
        old: Size,
        new: Size,
        *,
        rows: slice = slice(None),
        columns: slice = slice(None),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.factors = new[0] / old[0], new[1] / old[1]
        self.few_rows = old[0] <= old[1]
        self.by_products = old[0] <= MOST_ROWS and self.factors[0] >= LEAST_FACTOR
        if self.by_products:
            down_Hh, across_Ww = shares(old[0], new[0])[rows], shares(old[1], new[1])[columns]
            self.register_buffer(DOWN, down_Hh.to(dtype), persistent=False)
            self.register_buffer(ACROSS, across_Ww.T.contiguous().to(dtype), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        if not self.by_products:
            whole = maps if self.factors == (1.0, 1.0) else _enlarge(maps, self.factors)
            return whole[:, :, self.rows, self.columns]
        if self.few_rows:  # the larger product goes over the shorter side
            return self.down_Hh @ (maps @ self.across_wW)
        return (self.down_Hh @ maps) @ self.across_wW


@lru_cache
def shares(coarse: int, fine: int) -> Tensor:
    """Give what every fine row takes of every coarse one, float64 (fine, coarse), bilinearly."""
    unit = torch.eye(coarse, dtype=torch.float64)[None]
    factor = fine / coarse
    return F.interpolate(unit, scale_factor=factor, mode="linear", align_corners=False)[0].T


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
