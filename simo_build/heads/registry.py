"""HEADS: one entry per architecture."""

from collections.abc import Callable

import torch

from simo_build.heads.dpt import SMALL, USUAL, DptHead
from simo_build.heads.head import FeatureShape, Head
from simo_build.heads.linear import LinearHead
from simo_runtime.errors import unknown
from simo_runtime.tasks import TaskSpec

HEADS: dict[str, Callable[[TaskSpec, FeatureShape], Head]] = {
    "linear": LinearHead,
    "dpt_small": lambda spec, shape: DptHead(spec, shape, SMALL),
    "dpt": lambda spec, shape: DptHead(spec, shape, USUAL),
}


def make_head(name: str, spec: TaskSpec, shape: FeatureShape, *, seed: int) -> Head:
    """Make a head by name; its first weights depend on the seed and the task's name alone."""
    if name not in HEADS:
        raise unknown(f"tasks.{spec.name}.head", name, HEADS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + sum(spec.name.encode()))
        return HEADS[name](spec, shape)
