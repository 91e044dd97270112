"""The paper's linear head (arXiv 2504.11268).

Shapes: as in `simo_build.heads.head`; M = B x N, C = 2 x L x D.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simo_build.heads.enlarging import Enlarging
from simo_build.heads.head import FeatureShape, Head
from simo_build.losses import TORCH_KINDS
from simo_export.fold import PlainLinearHead, fold_batchnorm
from simo_runtime.errors import RecipeError
from simo_runtime.tasks import TaskSpec


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
        self.enlarging = Enlarging(
            geometry=shape.geometry, positive=self.kind.positive, first=self.kind.upsample
        )
        channels = 2 * shape.taps * shape.width
        self.norm = nn.BatchNorm1d(channels) if self.kind.normalised else nn.Identity()
        self.project = nn.Linear(channels, spec.channels)
        nn.init.normal_(self.project.weight, std=0.01)
        nn.init.constant_(self.project.bias, self.kind.start)

    def coarse(self, taps: Sequence[Tensor]) -> Tensor:
        h, w = self.shape.geometry.grid
        halves = []
        for tap in taps:
            patches_BND = tap[:, self.shape.prefix :]
            halves += [patches_BND, tap[:, :1].expand_as(patches_BND)]
        features_BNC = torch.cat(halves, dim=-1)
        normed_MC = self.norm(features_BNC.flatten(0, 1))
        coarse_BNK = self.project(normed_MC).unflatten(0, (-1, h * w))
        coarse_BKhw: Tensor = coarse_BNK.transpose(1, 2).unflatten(-1, (h, w))
        return coarse_BKhw

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
