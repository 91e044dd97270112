"""Turn predictions into the pixels of a PNG file, one function a form; what is no number becomes 0.

Colours and vectors come as BGR, the order in which OpenCV writes, so that the file itself is RGB.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def byte_labels(labels_HW: Array) -> NDArray[np.uint8]:
    """Give class indices as they are."""
    return labels_HW.astype(np.uint8)


def millimetres(depth_HW: Array) -> NDArray[np.uint16]:
    """Give metres as whole millimetres; they saturate at 65.535 m."""
    metres = np.clip(np.nan_to_num(depth_HW), 0.0, 65.535)
    return np.asarray(np.rint(metres * 1000.0), np.uint16)


def sixteen_bits(values_HW: Array) -> NDArray[np.uint16]:
    """Give values of 0 to 1 as 65535 steps."""
    return np.asarray(np.rint(np.clip(np.nan_to_num(values_HW), 0.0, 1.0) * 65535.0), np.uint16)


def sixteen_bits_signed(values_HW: Array) -> NDArray[np.uint16]:
    """Give values of -1 to 1 as 65535 steps."""
    known = np.clip(np.nan_to_num(values_HW, nan=-1.0), -1.0, 1.0)
    return np.asarray(np.rint((known + 1.0) * 32767.5), np.uint16)


def byte_normals(normals_HW3: Array) -> NDArray[np.uint8]:
    """Give unit vectors as (n + 1) * 127.5."""
    return np.clip(np.rint((normals_HW3[..., ::-1] + 1.0) * 127.5), 0, 255).astype(np.uint8)


def byte_picture(picture_HW3: Array) -> NDArray[np.uint8]:
    """Give colours of -1 to 1 as (c + 1) * 127.5."""
    return byte_normals(np.nan_to_num(picture_HW3, nan=-1.0))
