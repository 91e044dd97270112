"""Bilinear resizing with sizes that are known beforehand.

Factors are given and not sizes: a size would put the batch's shape arithmetic into the graph.
"""

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]  # rows, columns
DOWN, ACROSS = "down_Hh", "across_wW"  # what a graph calls the factors of a resizing
MOST_ROWS, LEAST_FACTOR = 64, 3  # where two products take half the time of a Resize on a CPU


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
            whole = maps if self.factors == (1.0, 1.0) else enlarge(maps, self.factors)
            return whole[:, :, self.rows, self.columns]
        if self.few_rows:  # the larger product goes over the shorter side
            return self.down_Hh @ (maps @ self.across_wW)
        return (self.down_Hh @ maps) @ self.across_wW


def resizes(node: onnx.NodeProto) -> bool:
    """Tell a product of a graph that is one half of a resizing, by the name of its matrix."""
    return any(name.rpartition(".")[2] in (DOWN, ACROSS) for name in node.input)


def shares(coarse: int, fine: int) -> Tensor:
    """Give what every fine row takes of every coarse one, float64 (fine, coarse), bilinearly."""
    unit = torch.eye(coarse, dtype=torch.float64)[None]
    factor = fine / coarse
    return F.interpolate(unit, scale_factor=factor, mode="linear", align_corners=False)[0].T


def enlarge(maps: Tensor, factors: tuple[float, float]) -> Tensor:
    """Enlarge (B, C, h, w) bilinearly by these factors of rows and columns."""
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
