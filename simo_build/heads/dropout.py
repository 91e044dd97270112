"""Dropout that repeats itself: a training that was killed goes on to the same weights with it."""

import torch
from torch import Tensor, nn


class SeededDropout(nn.Dropout):
    """Dropout whose draws follow from its own seed, and not from the global random state.

    The draws of a pass follow from how many there were. A training counts from zero and keeps the
    number with its state, so that it is the same wherever its module comes from.
    """

    def __init__(self, share: float) -> None:
        super().__init__(share)
        self.seed, self.passes = int(torch.randint(2**31, (), device="cpu")), 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        generator = torch.Generator(x.device).manual_seed(self.seed + self.passes)
        self.passes += 1
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=generator)
        return x * kept / (1 - self.p)
