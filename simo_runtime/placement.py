"""Fit a photo to the network's size, and bring predictions back to the photo's."""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_runtime.image import Pixels

Fit = Literal["stretch", "letterbox"]


def fill_colour(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Give the colour of letterbox bars: the mean, which is zero in normalised space."""
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue


@dataclass(frozen=True)
class Placement:
    """Where an image of `source` (height, width) lies in the network's image, and how it got there.

    `stretch` fills the network's image and ignores the aspect ratio; `letterbox` keeps the aspect
    ratio, centres the image and fills the rest with the mean colour.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    fit: Fit

    @property
    def inner(self) -> tuple[int, int, int, int]:
        """The part of the network's image that shows the source: (top, left, height, width)."""
        high, wide = self.target
        if self.fit == "stretch":
            return 0, 0, high, wide
        scale = min(high / self.source[0], wide / self.source[1])
        h = min(high, max(1, round(self.source[0] * scale)))
        w = min(wide, max(1, round(self.source[1] * scale)))
        return (high - h) // 2, (wide - w) // 2, h, w

    @property
    def interpolation(self) -> int:
        """OpenCV's name for how images are resized here: averaged if they shrink, else linear."""
        _, _, h, w = self.inner
        shrinks = h * w < self.source[0] * self.source[1]
        return cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR

    def apply(self, image_HW3: Pixels, *, fill: tuple[int, int, int]) -> Pixels:
        """Bring an image to the network's size; `fill` is the RGB colour of the bars."""
        top, left, h, w = self.inner
        if image_HW3.shape[:2] == (h, w):
            resized = image_HW3
        else:
            resized = np.asarray(
                cv2.resize(image_HW3, (w, h), interpolation=self.interpolation), np.uint8
            )
        if (h, w) == self.target:
            return resized
        canvas = np.empty((*self.target, 3), np.uint8)
        canvas[:] = fill
        canvas[top : top + h, left : left + w] = resized
        return canvas

    def crop(self, values: NDArray[Any]) -> NDArray[Any]:
        """Cut the part that shows the source out of a map (H, W, ...) at the network's size."""
        top, left, h, w = self.inner
        return np.ascontiguousarray(values[top : top + h, left : left + w])
