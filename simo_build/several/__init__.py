"""Methods that keep an encoder, or a part of one, for every task: SEVERAL, to compare with.

They need more than one encoder pass for all tasks, which is what this project avoids: a build
refuses them, and `simo_bench.study` measures them as references. docs/merging.md has their table.
"""

from simo_build.several.flexmerge import flexmerge
from simo_build.several.masks import emr, tall_mask
from simo_build.several.registry import (
    SEVERAL,
    SeveralMethod,
    SeveralPass,
    Sight,
    refuse_several,
)
from simo_build.several.surgery import surgery
from simo_build.several.zipit import zipit

__all__ = [
    "SEVERAL",
    "SeveralMethod",
    "SeveralPass",
    "Sight",
    "emr",
    "flexmerge",
    "refuse_several",
    "surgery",
    "tall_mask",
    "zipit",
]
