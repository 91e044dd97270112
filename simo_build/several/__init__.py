"""Methods that keep an encoder, or a part of one, for every task: SEVERAL, to compare with.

They need more than one encoder pass for all tasks, which is what this project avoids: a build
refuses them, and `simo_bench.study` measures them as references. docs/merging.md has their table.
"""

from simo_build.several.flexmerge import flexmerge
from simo_build.several.masks import emr, tall_mask
from simo_build.several.registry import SEVERAL, SeveralMethod, SeveralPass, refuse_several

__all__ = [
    "SEVERAL",
    "SeveralMethod",
    "SeveralPass",
    "emr",
    "flexmerge",
    "refuse_several",
    "tall_mask",
]
