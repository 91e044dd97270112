"""What the tests of several-pass methods share: a tiny encoder and a few images of noise."""

import numpy as np
import torch
from torch import Tensor

from simo_build.encoder import Encoder, randomise
from simo_build.recipe import EncoderPart, ImagePart
from simo_build.several import Sight
from simo_build.statedict import StateDict

SIZE = (16, 24)  # pixels: a grid of 2 x 3 patches


def sight(
    *,
    model: str = "vit_tiny_patch16_224",
    taps: tuple[int, ...] = (1, 3),
    images: int = 4,
    **options: object,
) -> Sight:
    """Make an encoder of random weights, and images."""
    small = {"patch_size": 8, "embed_dim": 8, "depth": 3, "num_heads": 2, **options}
    part = EncoderPart(model=model, options=small, taps=taps)
    encoder = Encoder(part, ImagePart(size=SIZE)).eval()
    randomise(encoder, 0)
    base = {name: tensor.detach().clone() for name, tensor in encoder.weights().items()}
    noise = np.random.default_rng(0).integers(0, 256, (images, *SIZE, 3), dtype=np.uint8)
    return Sight(encoder=encoder, base=base, images=noise)


def moved(seen: Sight, seed: int, scale: float = 0.3) -> StateDict:
    """Give a delta of noise."""
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(t.shape, generator=generator) for n, t in seen.base.items()}


@torch.no_grad()
def features(seen: Sight, weights: StateDict) -> list[Tensor]:
    """Compute the taps of all images with some weights."""
    seen.encoder.load(weights, source="test")
    found: list[Tensor] = seen.encoder(torch.from_numpy(seen.images))
    return found
