"""The head of the dense prediction transformer (arXiv 2103.13413), in two sizes.

Four taps become maps with 4, 2, 1 and 1/2 rows and columns for each one of the grid of patches.
From the coarsest to the finest they are joined to one map, and layers for the kind of task follow.
This is the form that DINOv2's depth estimation gave it.

Shapes: as in `simo_build.heads.head`; C channels of a map, h' x w' its rows and columns.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simo_build.heads.dropout import SeededDropout
from simo_build.heads.enlarging import Enlarging
from simo_build.heads.head import FeatureShape, Head
from simo_build.losses import TORCH_KINDS
from simo_export.dpt import PlainDptHead, PlainReadout, on_grid, plain_layers
from simo_export.resizing import Size, enlarge_aligned
from simo_runtime.errors import RecipeError
from simo_runtime.tasks import TaskSpec

TAPS = 4
FINEST = 8  # rows and columns of the joined map for each one of the grid
NARROW = 32  # channels before the last layer of the kinds that are positive
DROPOUT = 0.1


@dataclass(frozen=True, kw_only=True)
class DptSizes:
    """What makes a DPT head large or small."""

    channels: int  # of all maps while they are joined
    levels: tuple[int, int, int, int]  # channels of the four taps' own maps, the finest first
    project: bool  # CLS is read by GELU of a layer on [patch, CLS]; else patch + CLS


SMALL = DptSizes(channels=128, levels=(24, 48, 96, 192), project=False)
USUAL = DptSizes(channels=256, levels=(96, 192, 384, 768), project=True)


class DptHead(Head):
    """Reassemble, fuse, put out: four taps (B, S, D) -> raw (B, K, H, W)."""

    def __init__(self, spec: TaskSpec, shape: FeatureShape, sizes: DptSizes) -> None:
        super().__init__()
        _check(spec, shape)
        self.shape, self.kind = shape, TORCH_KINDS[spec.kind]
        self.enlarging = Enlarging(
            geometry=shape.geometry, positive=self.kind.positive, scale=self.scale
        )
        self.readouts = nn.ModuleList(
            Readout(shape, channels, project=sizes.project) for channels in sizes.levels
        )
        self.trunk = Trunk(sizes, shape.geometry.grid)
        layers = _of_values if self.kind.positive else _of_classes
        self.layers = layers(sizes.channels)
        self.final = nn.Conv2d(NARROW if self.kind.positive else sizes.channels, spec.channels, 1)
        nn.init.normal_(self.final.weight, std=0.01)
        assert self.final.bias is not None
        nn.init.constant_(self.final.bias, self.kind.start)

    @property
    def scale(self) -> int:
        """Rows and columns of the coarse output for each one of the grid."""
        return 2 * FINEST if self.kind.positive else FINEST

    def coarse(self, taps: Sequence[Tensor]) -> Tensor:
        levels = [read(tap) for read, tap in zip(self.readouts, taps, strict=True)]
        coarse_BKhw: Tensor = self.final(self.layers(self.trunk(levels)))
        return coarse_BKhw

    def folded(self) -> PlainDptHead:
        return PlainDptHead(
            [read.folded() for read in self.readouts],  # type: ignore[operator]  # a ModuleList forgets what it holds
            deepcopy(self.trunk),  # it holds nothing but plain weights
            plain_layers([*self.layers, self.final]),
            geometry=self.shape.geometry,
            positive=self.kind.positive,
            scale=self.scale,
        )


def _check(spec: TaskSpec, shape: FeatureShape) -> None:
    if shape.taps != TAPS:
        raise RecipeError(
            f"tasks.{spec.name}.head: a DPT head needs exactly {TAPS} taps, and `encoder.taps` "
            f"has {shape.taps}. Give {TAPS} blocks there, or take `head: linear`."
        )
    if not shape.prefix:
        raise RecipeError(f"tasks.{spec.name}: a DPT head needs an encoder with a CLS token")


class Readout(nn.Module):
    """Join CLS to every patch and lay the patches out: (B, S, D) -> (B, C, h, w)."""

    def __init__(self, shape: FeatureShape, channels: int, *, project: bool) -> None:
        super().__init__()
        self.prefix, self.grid = shape.prefix, shape.geometry.grid
        self.project = nn.Linear(2 * shape.width, shape.width) if project else None
        self.reduce = nn.Linear(shape.width, channels)

    def forward(self, tap_BSD: Tensor) -> Tensor:
        patches_BND = tap_BSD[:, self.prefix :]
        cls_BND = tap_BSD[:, :1].expand_as(patches_BND)
        if self.project is None:
            joined_BND = patches_BND + cls_BND
        else:
            joined_BND = self.project(torch.cat((patches_BND, cls_BND), dim=-1))
            joined_BND = nn.functional.gelu(joined_BND)
        return on_grid(self.reduce(joined_BND), self.grid)

    def folded(self) -> PlainReadout:
        """Give an equal readout that treats CLS once an image."""
        return PlainReadout(self.reduce, self.project, prefix=self.prefix, grid=self.grid)


class Trunk(nn.Module):
    """Join the four taps' maps (B, C, h, w) to one, (B, C, 8 h, 8 w).

    Every map is brought to the size of the next finer one, with aligned corners. At an even grid
    each is twice as large, as in the paper; at an odd one the coarsest is a little less than
    twice, where the paper's code makes all others one row larger for it.
    """

    def __init__(self, sizes: DptSizes, grid: Size) -> None:
        super().__init__()
        high, wide = grid
        ends = [(times * high, times * wide) for times in (FINEST, 4, 2, 1)]
        ends.append((-(-high // 2), -(-wide // 2)))
        self.resize = nn.ModuleList(_resizing(sizes.levels))
        self.widen = nn.ModuleList(
            _square(channels, sizes.channels, bias=False) for channels in sizes.levels
        )
        self.fusions = nn.ModuleList(
            Fusion(sizes.channels, ends[level + 1], ends[level], alone=level == TAPS - 1)
            for level in range(TAPS)
        )
        self.smooth = _square(sizes.channels, sizes.channels)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        joined: Tensor | None = None
        for level in reversed(range(TAPS)):
            own = self.widen[level](self.resize[level](levels[level]))
            joined = self.fusions[level](joined, own)
        smoothed: Tensor = self.smooth(joined).relu()
        return smoothed


class Fusion(nn.Module):
    """Add a level to what is coarser, and upsample both: (B, C, *old) -> (B, C, *new).

    The paper upsamples and then projects; projecting first is the same map (bilinear weights sum
    to one) at a quarter of the cost.
    """

    def __init__(self, channels: int, old: Size, new: Size, *, alone: bool) -> None:
        super().__init__()
        self.old, self.new = old, new
        self.own = None if alone else Residual(channels)
        self.both = Residual(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, coarser: Tensor | None, level: Tensor) -> Tensor:
        if self.own is not None:
            assert coarser is not None
            level = coarser + self.own(level)
        return enlarge_aligned(self.project(self.both(level)), self.old, self.new)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))): (B, C, h', w') -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _square(channels, channels, bias=False)
        self.second = _square(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(self.first(x.relu()).relu())
        return x + change


def _square(channels: int, out: int, *, bias: bool = True) -> nn.Conv2d:
    """Make a 3 x 3 convolution that keeps rows and columns."""
    return nn.Conv2d(channels, out, 3, padding=1, bias=bias)


def _resizing(levels: tuple[int, int, int, int]) -> list[nn.Module]:
    """Make what gives the four maps 4, 2, 1 and 1/2 (rounded up) times their size."""
    four, two, _, half = levels
    return [
        nn.ConvTranspose2d(four, four, 4, stride=4),
        nn.ConvTranspose2d(two, two, 2, stride=2),
        nn.Identity(),
        nn.Conv2d(half, half, 3, stride=2, padding=1),
    ]


def _of_values(channels: int) -> nn.Sequential:
    """Make the layers before the last one of depth and disparity; they double rows and columns."""
    return nn.Sequential(
        _square(channels, channels // 2),
        nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True),
        _square(channels // 2, NARROW),
        nn.ReLU(),
    )


def _of_classes(channels: int) -> nn.Sequential:
    """Make the layers before the last one of all other kinds."""
    return nn.Sequential(
        _square(channels, channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        SeededDropout(DROPOUT),
    )
