"""The torch half of a kind of task: its loss, its activation, and what its graph puts out.

Shapes: B images, K channels, H x W pixels.  A head's raw output is (B, K, H, W).  `finish` is what
the exported graph ends with, so that predictions leave it ready to use:
    segmentation, parts           uint8 (B, H, W)       class indices
    depth, log_depth, disparity,
    edges, keypoints              float32 (B, H, W)     values
    normals                       float32 (B, 3, H, W)  unit vectors
    autoencoding                  float32 (B, 3, H, W)  colours
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from simo_build.recipe import TaskPart
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
    start: float = 0.0  # what a head says at first; over 0 if positive, or the ReLU is dead


def cross_entropy(raw_BKHW: Tensor, truth_BHW: Tensor) -> Tensor:
    """Mean cross entropy over the pixels that have a label; 0 if none has."""
    return _total_cross_entropy(raw_BKHW, truth_BHW) / (truth_BHW != IGNORE).sum().clamp(min=1)


def cross_entropy_of_all(raw_BKHW: Tensor, truth_BHW: Tensor) -> Tensor:
    """Mean cross entropy over all pixels, those without a label counted as 0.

    The paper's released code divides so: the fewer pixels have a label, the less each counts.
    """
    return _total_cross_entropy(raw_BKHW, truth_BHW) / truth_BHW.numel()


def _total_cross_entropy(raw_BKHW: Tensor, truth_BHW: Tensor) -> Tensor:
    return F.cross_entropy(raw_BKHW, truth_BHW.long(), ignore_index=IGNORE, reduction="sum")


def absolute_error(raw_B1HW: Tensor, truth_BHW: Tensor) -> Tensor:
    """Mean absolute error over the pixels whose truth is over 0; 0 if none is."""
    valid_BHW = truth_BHW > 0
    error_BHW = (raw_B1HW[:, 0] - truth_BHW).abs() * valid_BHW
    return error_BHW.sum() / valid_BHW.sum().clamp(min=1)


def known_error(raw_BKHW: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error over the pixels whose truth, (B, H, W) or (B, H, W, K), is a number.

    It is 0 if none is.
    """
    truth_BKHW = (truth.unsqueeze(-1) if truth.ndim == 3 else truth).permute(0, 3, 1, 2).float()
    valid_BHW = truth_BKHW.isfinite().all(dim=1)
    wanted_BKHW = torch.where(valid_BHW.unsqueeze(1), truth_BKHW, 0.0)  # NaN times 0 is NaN
    error_BHW = (raw_BKHW - wanted_BKHW).abs().mean(dim=1) * valid_BHW
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


def component_error(raw_B3HW: Tensor, truth_BHW3: Tensor) -> Tensor:
    """Mean absolute error of the components over valid pixels: the released code's of normals.

    It is 0 if no pixel is valid. The prediction is taken as it is, so that its length is learnt
    too; directions alone, as the output and the metric have them, come after.
    """
    truth_B3HW = truth_BHW3.permute(0, 3, 1, 2).float()
    valid_BHW = (truth_B3HW != 0).any(dim=1)
    error_BHW = (raw_B3HW - truth_B3HW).abs().mean(dim=1) * valid_BHW
    return error_BHW.sum() / valid_BHW.sum().clamp(min=1)


def most_likely(raw_BKHW: Tensor) -> Tensor:
    """Give the most likely class (B, H, W) as uint8."""
    return raw_BKHW.argmax(dim=1).to(torch.uint8)


def single_channel(raw_B1HW: Tensor) -> Tensor:
    """Drop the channel of a one-channel map."""
    return raw_B1HW[:, 0]


def as_it_is(raw_BKHW: Tensor) -> Tensor:
    """Leave a map unchanged."""
    return raw_BKHW


def unit_vectors(raw_B3HW: Tensor) -> Tensor:
    """Scale every vector to length 1."""
    length_B1HW = raw_B3HW.square().sum(dim=1, keepdim=True).sqrt().clamp(min=EPSILON)
    return raw_B3HW / length_B1HW


CLASS_MAP = TorchKind(loss=cross_entropy, finish=most_likely, teaching=CLASSES, sampling=OF_CLASSES)
STRENGTH_MAP = TorchKind(
    loss=known_error, finish=single_channel, teaching=VALUES, sampling=OF_VALUES
)
DEPTH_MAP = TorchKind(
    loss=absolute_error,
    finish=single_channel,
    teaching=VALUES,
    sampling=OF_VALUES,
    positive=True,
    normalised=False,
    upsample=4,
    start=1.0,  # a metre
)
TORCH_KINDS = {
    "segmentation": CLASS_MAP,
    "parts": CLASS_MAP,
    "depth": DEPTH_MAP,
    "log_depth": replace(DEPTH_MAP, loss=known_error, start=0.5),  # half a metre
    "disparity": replace(DEPTH_MAP, start=0.1),
    "normals": TorchKind(
        loss=one_minus_cosine, finish=unit_vectors, teaching=VECTORS, sampling=OF_VECTORS
    ),
    "edges": STRENGTH_MAP,
    "keypoints": STRENGTH_MAP,
    "autoencoding": replace(STRENGTH_MAP, finish=as_it_is),
}


def torch_kind(part: TaskPart) -> TorchKind:
    """Give the torch half of a task's kind, with the loss that the recipe says."""
    kind = TORCH_KINDS[part.kind]
    if part.loss == "l1":
        return replace(kind, loss=component_error)
    if part.denominator == "all":
        return replace(kind, loss=cross_entropy_of_all)
    return kind


def as_measured(finished: Tensor) -> NDArray[Any]:
    """Bring a finished output to the layout that metrics take: channels last, as numpy."""
    array: NDArray[Any] = finished.detach().cpu().numpy()
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array
