"""The torch half of a kind of task: its loss, its activation, and what its graph puts out.

Shapes: B images, K channels, H x W pixels.  A head's raw output is (B, K, H, W).  `finish` is what
the exported graph ends with, so that predictions leave it ready to use:
    segmentation   uint8 (B, H, W)      class indices
    depth          float32 (B, H, W)    metres
    normals        float32 (B, 3, H, W) unit vectors
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from simo_build.sampling import OF_CLASSES, OF_VALUES, OF_VECTORS, Sampling
from simo_build.teaching import CLASSES, VALUES, VECTORS, Teaching
from simo_runtime.metrics import IGNORE

EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class TorchKind:
    """What training and export need to know of a kind of task."""

    loss: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]
    teaching: Teaching  # how one raw output teaches another
    sampling: Sampling  # what a raw output says is likely
    positive: bool = False  # whether the head ends with a ReLU
    normalised: bool = True  # whether a linear head starts with a BatchNorm
    upsample: int = 1  # how far a linear head upsamples before its ReLU


def cross_entropy(raw_BKHW: Tensor, truth_BHW: Tensor) -> Tensor:
    """Cross entropy over the pixels that have a label; 0 if none has.

    The paper's released code also counts pixels without one in the denominator.
    """
    total = F.cross_entropy(raw_BKHW, truth_BHW.long(), ignore_index=IGNORE, reduction="sum")
    return total / (truth_BHW != IGNORE).sum().clamp(min=1)


def absolute_error(raw_B1HW: Tensor, truth_BHW: Tensor) -> Tensor:
    """Mean absolute error over the pixels whose truth is valid, in metres; 0 if none is."""
    valid_BHW = truth_BHW > 0
    error_BHW = (raw_B1HW[:, 0] - truth_BHW).abs() * valid_BHW
    return error_BHW.sum() / valid_BHW.sum().clamp(min=1)


def one_minus_cosine(raw_B3HW: Tensor, truth_BHW3: Tensor) -> Tensor:
    """1 - cosine between prediction and truth over valid pixels: the paper's dot product loss.

    It is 0 if no pixel is valid.
    The prediction is normalised first, as the metric does; else the loss rewards length.
    """
    truth_B3HW = truth_BHW3.permute(0, 3, 1, 2).float()
    valid_BHW = (truth_B3HW != 0).any(dim=1)
    cosine_BHW = (F.normalize(raw_B3HW, dim=1, eps=EPSILON) * truth_B3HW).sum(dim=1)
    return ((1.0 - cosine_BHW) * valid_BHW).sum() / valid_BHW.sum().clamp(min=1)


def most_likely(raw_BKHW: Tensor) -> Tensor:
    """Give the most likely class (B, H, W) as uint8."""
    return raw_BKHW.argmax(dim=1).to(torch.uint8)


def single_channel(raw_B1HW: Tensor) -> Tensor:
    """Drop the channel of a one-channel map."""
    return raw_B1HW[:, 0]


def unit_vectors(raw_B3HW: Tensor) -> Tensor:
    """Scale every vector to length 1."""
    length_B1HW = raw_B3HW.square().sum(dim=1, keepdim=True).sqrt().clamp(min=EPSILON)
    return raw_B3HW / length_B1HW


TORCH_KINDS = {
    "segmentation": TorchKind(
        loss=cross_entropy, finish=most_likely, teaching=CLASSES, sampling=OF_CLASSES
    ),
    "depth": TorchKind(
        loss=absolute_error,
        finish=single_channel,
        teaching=VALUES,
        sampling=OF_VALUES,
        positive=True,
        normalised=False,
        upsample=4,
    ),
    "normals": TorchKind(
        loss=one_minus_cosine, finish=unit_vectors, teaching=VECTORS, sampling=OF_VECTORS
    ),
}


def as_measured(finished: Tensor) -> NDArray[Any]:
    """Bring a finished output to the layout that metrics take: channels last, as numpy."""
    array: NDArray[Any] = finished.detach().cpu().numpy()
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array
