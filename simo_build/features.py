"""Features of a frozen encoder, computed once and kept: in memory, or in files if they are large.

Shapes: n images, S tokens, D width.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from simo_build.data import Samples
from simo_build.encoder import Encoder
from simo_build.progress import Progress
from simo_build.room import room_for

BATCH = 16


def chunks(
    encoder: Encoder, samples: Samples, *, label: str, progress: Progress, bf16: bool = False
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Give the taps, float32 (B, S, D) each, of some images after others, and which these are.

    With `bf16` the encoder computes in that precision, as training does.
    """
    encoder.eval()
    device = encoder.mean.device
    starts = range(0, len(samples), BATCH)
    for start in progress.track(starts, f"features of {label}", total=len(starts)):
        rows = slice(start, start + BATCH)
        pixels = torch.from_numpy(samples.images[rows]).to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            taps = encoder(pixels)
        yield rows, [tap.float() for tap in taps]


def compute_features(
    encoder: Encoder, samples: Samples, *, label: str, progress: Progress
) -> list[Tensor]:
    """Give the taps of every image of a split: one (n, S, D) float32 tensor a tap."""
    return collected(chunks(encoder, samples, label=label, progress=progress), count=len(samples))


def collected(parts: Iterable[tuple[slice, list[Tensor]]], count: int) -> list[Tensor]:
    """Put tensors of some images after others, float32 or float16, into one of `count` images each.

    One that is float16 at first becomes float32 once a part of it is.
    """
    whole: list[Tensor] = []
    for rows, found in parts:
        if not whole:
            whole = [_room(count, one) for one in found]
        for number, one in enumerate(found):
            if one.dtype.itemsize > whole[number].dtype.itemsize:
                whole[number] = _room(count, one).copy_(whole[number])
            whole[number][rows] = one.cpu()
    return whole


def _room(count: int, like: Tensor) -> Tensor:
    dtype = {torch.float16: np.float16, torch.float32: np.float32}[like.dtype]
    return torch.from_numpy(room_for((count, *like.shape[1:]), dtype))


def take(features: Sequence[Tensor], index: Tensor | slice, device: torch.device) -> list[Tensor]:
    """Give the taps of some images, on a device."""
    return [tap[index].to(device) for tap in features]
