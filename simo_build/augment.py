"""Change training images at random, and all their truths with them.

A mirrored normal turns in x; what is enlarged s times is s times nearer, so that depth is divided
by s and disparity multiplied; autoencoding has the changed image for its truth.

Shapes: B images, H x W pixels.  Images are uint8 (B, H, W, 3) RGB, truths (B, H, W[, 3]).
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simo_build.sources import UNTARGETED
from simo_runtime.scales import TOP

GREY = (0.299, 0.587, 0.114)


class Jitter(Protocol):
    """How much colours change, each at most; 0 leaves them."""

    @property
    def brightness(self) -> float: ...

    @property
    def contrast(self) -> float: ...

    @property
    def saturation(self) -> float: ...

    @property
    def hue(self) -> float: ...


class Augmentation(Protocol):
    """What is done to training images; a recipe's `train` is such."""

    @property
    def flip(self) -> bool: ...

    @property
    def scales(self) -> tuple[float, ...]: ...

    @property
    def jitter(self) -> Jitter: ...


def augmented(
    images: Tensor,
    truths: Mapping[str, Tensor],
    kinds: Mapping[str, str],
    how: Augmentation,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Change a batch and its truths by task, whose kinds are given; the batch itself stays.

    Nothing is drawn from the generator for what is switched off.
    """
    found = dict(truths)
    if how.flip:
        mirror = torch.rand(len(images), generator=generator) < 0.5
        found = {task: turned(truth, mirror, kinds[task]) for task, truth in found.items()}
        images = turned(images, mirror)
    zooms = set(how.scales) != {1.0}
    if zooms:
        images, found = zoomed(images, found, kinds, how.scales, generator)
    colours = any(
        (how.jitter.brightness, how.jitter.contrast, how.jitter.saturation, how.jitter.hue)
    )
    if colours:
        images = recoloured(images, how.jitter, generator)
    if zooms or colours:
        itself = {task for task in found if kinds[task] in UNTARGETED}
        found |= {task: again(found[task], images) for task in itself}
    return images, found


def flipped(
    images: Tensor, truth: Tensor, kind: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mirror half of a batch with its truth."""
    mirror = torch.rand(len(images), generator=generator) < 0.5
    return turned(images, mirror), turned(truth, mirror, kind)


def turned(maps: Tensor, mirror: Tensor, kind: str = "") -> Tensor:
    """Mirror some of a batch, (B,) says which; mirrored normals turn in x."""
    maps = maps.clone()
    maps[mirror] = maps[mirror].flip(2)
    if kind == "normals":
        maps[mirror] = maps[mirror] * maps.new_tensor([-1.0, 1.0, 1.0])
    return maps


def zoomed(
    images: Tensor,
    truths: Mapping[str, Tensor],
    kinds: Mapping[str, str],
    scales: tuple[float, ...],
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Enlarge every image by one of the scales and cut its own size out of it, anywhere.

    Images are resized linearly, truths by nearest neighbour.
    """
    which = torch.randint(len(scales), (len(images),), generator=generator).tolist()
    corners = torch.rand(len(images), 2, generator=generator).tolist()
    images, found = images.clone(), {task: truth.clone() for task, truth in truths.items()}
    for row, (choice, corner) in enumerate(zip(which, corners, strict=True)):
        scale = scales[choice]
        if scale == 1.0:
            continue
        window = window_of((images.shape[1], images.shape[2]), scale, (corner[0], corner[1]))
        images[row] = enlarged(images[row], window)
        for task, truth in found.items():
            truth[row] = RESCALED.get(kinds[task], as_it_is)(nearest(truth[row], window), scale)
    return images, found


Window = tuple[int, int, int, int]


def window_of(size: tuple[int, int], scale: float, corner: tuple[float, float]) -> Window:
    """Give the part (top, left, height, width) that fills the image after enlarging it."""
    high, wide = (max(1, round(side / scale)) for side in size)
    top, left = (
        int(at * (side - part + 1))
        for at, side, part in zip(corner, size, (high, wide), strict=True)
    )
    return top, left, high, wide


def enlarged(image_HW3: Tensor, window: Window) -> Tensor:
    """Resize a part of an image to the whole of it, linearly."""
    top, left, high, wide = window
    part_13hw = image_HW3[top : top + high, left : left + wide].permute(2, 0, 1)[None].float()
    size = image_HW3.shape[:2]
    whole = F.interpolate(part_13hw, size=size, mode="bilinear", align_corners=False)
    return whole[0].permute(1, 2, 0).round().to(torch.uint8)


def nearest(truth_HW: Tensor, window: Window) -> Tensor:
    """Resize a part of a truth to the whole of it: every pixel takes the one under its centre."""
    top, left, high, wide = window
    rows = top + ((torch.arange(truth_HW.shape[0]) + 0.5) * high / truth_HW.shape[0]).long()
    columns = left + ((torch.arange(truth_HW.shape[1]) + 0.5) * wide / truth_HW.shape[1]).long()
    return truth_HW[rows][:, columns]


def as_it_is(truth: Tensor, scale: float) -> Tensor:
    """Leave a truth that does not depend on how near things are."""
    return truth


def nearer(depth: Tensor, scale: float) -> Tensor:
    """Bring metres nearer; 0, which is no depth, stays 0."""
    return depth / scale


def larger(disparity: Tensor, scale: float) -> Tensor:
    """Enlarge disparity as things come nearer."""
    return disparity * scale


def nearer_on_the_log(log_depth: Tensor, scale: float) -> Tensor:
    """Bring log_depth nearer, by way of metres."""
    return torch.log1p(torch.expm1(log_depth * TOP) / scale) / TOP


RESCALED: dict[str, Callable[[Tensor, float], Tensor]] = {
    "depth": nearer,
    "log_depth": nearer_on_the_log,
    "disparity": larger,
}


def recoloured(images: Tensor, jitter: Jitter, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue of every image, in this order.

    The first three are factors from 1 - x to 1 + x: of the image itself, of its difference from
    its mean grey, and from its own greys. Hue turns by up to x of the circle, either way.
    """
    most = torch.tensor([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
    draws_B4 = (2 * torch.rand(len(images), 4, generator=generator) - 1) * most
    grey_3 = torch.tensor(GREY)
    values = images.float() * (1 + draws_B4[:, 0].reshape(-1, 1, 1, 1))
    values = values.clamp(0, 255)
    mean_B111 = (values @ grey_3).mean(dim=(1, 2)).reshape(-1, 1, 1, 1)
    values = torch.lerp(mean_B111, values, 1 + draws_B4[:, 1].reshape(-1, 1, 1, 1)).clamp(0, 255)
    greys_BHW1 = (values @ grey_3)[..., None]
    values = torch.lerp(greys_BHW1, values, 1 + draws_B4[:, 2].reshape(-1, 1, 1, 1)).clamp(0, 255)
    if jitter.hue:
        shown = [
            hue_turned(one, turn) for one, turn in zip(values, draws_B4[:, 3].tolist(), strict=True)
        ]
        values = torch.stack(shown)
    return values.round().to(torch.uint8)


def hue_turned(image_HW3: Tensor, turn: float) -> Tensor:
    """Turn the hue of an image, 0 to 255, by a part of the circle."""
    hsv = cv2.cvtColor(image_HW3.numpy() / np.float32(255), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    return torch.from_numpy(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)) * 255


def again(truth_BHW3: Tensor, images: Tensor) -> Tensor:
    """Give the images as their own truth, where there was one."""
    itself = (images.float() / 127.5 - 1).to(truth_BHW3.dtype)
    return torch.where(truth_BHW3.isnan(), truth_BHW3, itself)
