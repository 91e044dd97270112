"""What a head is: features in, a raw map at image size out, plain weights when asked.

A head makes a coarse map, which is then enlarged to the image; who needs only some pixels asks
`enlarging` for those.

Shapes: B images, P prefix tokens (CLS first), N = h x w patches, D width, L taps, K channels,
H x W pixels.  taps L x (B, P + N, D)  ->  coarse (B, K, h', w')  ->  raw (B, K, H, W).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from simo_build.heads.enlarging import Enlarging
from simo_export.geometry import Geometry


@dataclass(frozen=True, kw_only=True)
class FeatureShape:
    """What a head must know of the encoder."""

    geometry: Geometry
    taps: int
    width: int
    prefix: int


class Head(nn.Module, ABC):
    """What every head offers beside `forward`; one without it cannot be made."""

    enlarging: Enlarging

    @abstractmethod
    def coarse(self, taps: Sequence[Tensor]) -> Tensor:
        """Give the coarse map (B, K, h', w')."""

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        return self.enlarging.whole(self.coarse(taps))

    @abstractmethod
    def folded(self) -> nn.Module:
        """Give an equal module of plain weights for export, in float32."""

    def last(self) -> nn.Module:
        """Give the layer that the output comes from: the last one made that has weights."""
        layers = [one for one in self.modules() if any(True for _ in one.parameters(recurse=False))]
        return layers[-1]
