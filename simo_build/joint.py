"""One encoder and the heads of one task or more in one module, to be trained together.

Shapes: B images, S tokens, D width, K channels, H x W pixels.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from simo_build.encoder import Encoder
from simo_build.heads import Head
from simo_build.workers import workers


class Joint(nn.Module):
    """An encoder and heads by task: pixels uint8 (B, H, W, 3) -> taps (B, S, D), raw (B, K, H, W).

    With `bf16` the encoder computes in that precision, the heads never do. A head that is not
    trained as a whole stays in evaluation, so that its BatchNorm is the expert's.
    """

    def __init__(self, encoder: Encoder, heads: Mapping[str, Head], *, bf16: bool) -> None:
        super().__init__()
        self.encoder, self.tasks, self.bf16 = encoder, tuple(heads), bf16
        self.heads = nn.ModuleList(heads.values())

    def by_task(self) -> dict[str, Head]:
        """Give the heads by their tasks."""
        return dict(zip(self.tasks, self.heads, strict=True))  # type: ignore[arg-type]  # a ModuleList forgets what it holds

    def forward(self, pixels_BHW3: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Give the taps, and every task's raw output."""
        taps = self.tapped(pixels_BHW3)
        return taps, {task: head(taps) for task, head in self.by_task().items()}

    def tapped(self, pixels_BHW3: Tensor) -> list[Tensor]:
        """Give the taps in float32, whatever the encoder computes in."""
        with torch.autocast(pixels_BHW3.device.type, torch.bfloat16, enabled=self.bf16):
            taps = workers().encode(self.encoded, pixels_BHW3)
        return [tap.float() for tap in taps]

    def encoded(self, pixels_BHW3: Tensor) -> list[Tensor]:
        """Give the encoder's taps."""
        taps: list[Tensor] = self.encoder(pixels_BHW3)
        return taps

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for head in self.heads:
            head.train(mode and all(one.requires_grad for one in head.parameters()))
        return self

    def settled(self) -> Encoder:
        """Give the encoder with the weights that the training has come to."""
        return self.encoder

    def rates(self) -> dict[nn.Parameter, float]:
        """Give the rates of what learns at another one than the step's."""
        return {}
