"""Heads: HEADS holds one class per architecture, features in, a raw map at image size out."""

from simo_build.heads.dpt import DptHead, DptSizes
from simo_build.heads.head import FeatureShape, Head
from simo_build.heads.linear import LinearHead
from simo_build.heads.registry import HEADS, make_head

__all__ = [
    "HEADS",
    "DptHead",
    "DptSizes",
    "FeatureShape",
    "Head",
    "LinearHead",
    "make_head",
]
