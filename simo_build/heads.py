"""Heads: HEADS holds one class per architecture, features in, a raw map at image size out.

Shapes: B images, P prefix tokens (CLS first), N = h x w patches, D width, L taps, K channels,
H x W pixels.  taps L x (B, P + N, D)  ->  raw (B, K, H, W).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simo_build.losses import TORCH_KINDS
from simo_export.fold import PlainLinearHead, fold_batchnorm
from simo_export.geometry import Geometry
from simo_export.upsample import to_image
from simo_runtime.errors import RecipeError, unknown
from simo_runtime.tasks import TaskSpec


@dataclass(frozen=True, kw_only=True)
class FeatureShape:
    """What a head must know of the encoder."""

    geometry: Geometry
    taps: int
    width: int
    prefix: int


class Head(nn.Module, ABC):
    """What every head offers beside `forward`; one without it cannot be made."""

    @abstractmethod
    def folded(self) -> nn.Module:
        """Give an equal module of plain weights for export, in float32."""

    def last(self) -> nn.Module:
        """Give the layer that the output comes from: the last one made that has weights."""
        layers = [one for one in self.modules() if any(True for _ in one.parameters(recurse=False))]
        return layers[-1]


class LinearHead(Head):
    """The paper's linear head: one linear layer on [patch, CLS] of every tap, upsampled.

    All but depth and disparity start with a BatchNorm; those two upsample four times, take the
    positive part and upsample again. The paper upsamples the features and then projects;
    projecting first is the same map (bilinear weights sum to one) at a fraction of the cost.
    """

    def __init__(self, spec: TaskSpec, shape: FeatureShape) -> None:
        super().__init__()
        if not shape.prefix:
            raise RecipeError(f"tasks.{spec.name}: a linear head needs an encoder with a CLS token")
        self.shape, self.kind = shape, TORCH_KINDS[spec.kind]
        channels = 2 * shape.taps * shape.width
        self.norm = nn.BatchNorm1d(channels) if self.kind.normalised else nn.Identity()
        self.project = nn.Linear(channels, spec.channels)
        nn.init.normal_(self.project.weight, std=0.01)
        nn.init.constant_(self.project.bias, self.kind.start)

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        h, w = self.shape.geometry.grid
        halves = []
        for tap in taps:
            patches_BND = tap[:, self.shape.prefix :]
            halves += [patches_BND, tap[:, :1].expand_as(patches_BND)]
        features_BNC = torch.cat(halves, dim=-1)
        normed_MC = self.norm(features_BNC.flatten(0, 1))
        coarse_BNK = self.project(normed_MC).unflatten(0, (-1, h * w))
        coarse_BKhw = coarse_BNK.transpose(1, 2).unflatten(-1, (h, w))
        return to_image(
            coarse_BKhw, self.shape.geometry, positive=self.kind.positive, first=self.kind.upsample
        )

    def folded(self) -> PlainLinearHead:
        weight_KC: Tensor = self.project.weight
        bias_K: Tensor = self.project.bias
        if isinstance(self.norm, nn.BatchNorm1d):
            weight_KC, bias_K = fold_batchnorm(self.norm, weight_KC, bias_K)
        return PlainLinearHead(
            weight_KC,
            bias_K,
            taps=self.shape.taps,
            prefix=self.shape.prefix,
            geometry=self.shape.geometry,
            positive=self.kind.positive,
            first=self.kind.upsample,
        )


HEADS: dict[str, Callable[[TaskSpec, FeatureShape], Head]] = {"linear": LinearHead}


def make_head(name: str, spec: TaskSpec, shape: FeatureShape, *, seed: int) -> Head:
    """Make a head by name; its first weights depend on the seed and the task's name alone."""
    if name not in HEADS:
        raise unknown(f"tasks.{spec.name}.head", name, HEADS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + sum(spec.name.encode()))
        return HEADS[name](spec, shape)
