"""Heads: HEADS holds one class per architecture, features in, a raw map at image size out."""

from simo_build.heads.dpt import DptHead, DptSizes
from simo_build.heads.enlarging import Enlarging, Pixels
from simo_build.heads.head import FeatureShape, Head
from simo_build.heads.linear import LinearHead
from simo_build.heads.registry import HEADS, make_head

__all__ = [
    "HEADS",
    "DptHead",
    "DptSizes",
    "Enlarging",
    "FeatureShape",
    "Head",
    "LinearHead",
    "Pixels",
    "make_head",
]
