"""Turn predictions into colours.  Everything here is RGB, uint8, (H, W, 3)."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Limits = tuple[float, float]  # the values at the two ends of a scale of colours
LEAST_SPAN = 1e-6  # between limits; values that lie closer together have one colour

# Twenty colours at least 25 apart in CIELAB, light enough to lie over a photo.
PALETTE_K3: Pixels = np.array(
    [
        (78, 121, 167), (242, 142, 43), (89, 161, 79), (225, 87, 89), (176, 122, 161),
        (237, 201, 72), (118, 183, 178), (255, 157, 167), (156, 117, 95), (186, 176, 172),
        (112, 76, 196), (220, 52, 160), (40, 244, 196), (184, 244, 100), (220, 232, 160),
        (40, 136, 244), (244, 148, 244), (148, 136, 52), (76, 112, 76), (244, 184, 124),
    ],
    dtype=np.uint8,
)  # fmt: skip


def palette(count: int) -> Pixels:
    """Give `count` class colours (count, 3); past twenty they come again, darker each time."""
    rounds = [(PALETTE_K3 * 0.8**turn).astype(np.uint8) for turn in range(-(-count // 20))]
    return np.concatenate(rounds)[:count] if rounds else PALETTE_K3[:0]


def colour_labels(labels_HW: NDArray[Any]) -> Pixels:
    """Colour class indices; 255, the label of pixels without one, is black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[:255] = palette(255)
    return np.asarray(table[labels_HW], np.uint8)


def colour_depth(depth_HW: NDArray[Any], limits: Limits | None = None) -> Pixels:
    """Colour a depth map, near is bright and far is dark.

    It is drawn over the limits that are given, which makes maps comparable, or over its own 1 to 99
    percent range. Pixels that are not finite are black.
    """
    share_HW, known_HW = _share_of_range(depth_HW, limits)
    return _colour_shares(1.0 - share_HW, known_HW)


def colour_disparity(disparity_HW: NDArray[Any], limits: Limits | None = None) -> Pixels:
    """Colour a disparity map as its depth would be: near is bright."""
    return _colour_shares(*_share_of_range(disparity_HW, limits))


def colour_strength(strength_HW: NDArray[Any], limits: Limits | None = None) -> Pixels:
    """Colour how strong something is: bright is strong; over limits, or its own range."""
    return _colour_shares(*_share_of_range(strength_HW, limits))


def range_of(values: NDArray[Any]) -> Limits:
    """Give the 1st and the 99th percentile of what is finite; 0 and 1 if nothing is."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    return float(low), float(high)


def _share_of_range(
    values_HW: NDArray[Any], limits: Limits | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Place values between two limits, 0 to 1, and say which are finite."""
    known_HW = np.isfinite(values_HW)
    low, high = range_of(values_HW) if limits is None else limits
    span = max(high - low, LEAST_SPAN)
    return (np.clip(np.where(known_HW, values_HW, low), low, high) - low) / span, known_HW


def _colour_shares(share_HW: NDArray[Any], known_HW: NDArray[np.bool_]) -> Pixels:
    bgr = cv2.applyColorMap((share_HW * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.where(known_HW[..., None], bgr[..., ::-1], 0).astype(np.uint8)


def colour_picture(picture_HW3: NDArray[Any]) -> Pixels:
    """Show colours of -1 to 1 as they are; what is no number is black."""
    known = np.nan_to_num(picture_HW3, nan=-1.0)
    return np.asarray(np.clip((known + 1.0) * 127.5 + 0.5, 0, 255), np.uint8)


def colour_normals(normals_HW3: NDArray[Any]) -> Pixels:
    """Colour unit vectors as the field does: (n + 1) / 2, y and z turned to point up and out."""
    shown = normals_HW3 * np.array((1.0, -1.0, -1.0), dtype=np.float32)
    return np.clip((shown + 1.0) * 127.5 + 0.5, 0, 255).astype(np.uint8)


def blend(image_HW3: Pixels, colours_HW3: Pixels, *, opacity: float) -> Pixels:
    """Lay colours over an image; opacity 0 shows the image alone, 1 the colours alone."""
    return np.asarray(
        cv2.addWeighted(colours_HW3, opacity, image_HW3, 1.0 - opacity, 0.0), np.uint8
    )
