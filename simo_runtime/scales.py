"""The scale of log_depth: v = ln(1 + 512 z) / ln(65536) for z metres, 0 to 1 up to 128 m.

It is the scale of Taskonomy's depth, stored in 512ths of a metre, in arXiv 2504.11268.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 512.0  # a metre
TOP = math.log(65536.0)

Array = NDArray[Any]


def log_depth(metres: Array) -> NDArray[np.float32]:
    """Bring metres to the scale."""
    return np.asarray(np.log1p(metres * STEPS) / TOP, np.float32)


def metres(log_depth: Array) -> NDArray[np.float32]:
    """Bring values on the scale to metres."""
    return np.asarray(np.expm1(log_depth * TOP) / STEPS, np.float32)
