"""Compare the features of candidates with the experts', on images without labels.

Shapes: n images, P prefix tokens, N patches, D width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simo_build.proxies import PROXIES, SIMILARITIES
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop

PATCHES = 64  # how many patches of an image are compared, spread evenly

Features = Sequence[Tensor]  # (n, N, D) a tap


class Alignment:
    """The experts' and the base's features on unlabelled images, computed once, for all proxies."""

    def __init__(self, work: Workshop, count: int) -> None:
        self.work = work
        self.samples = work.unlabelled(count)
        self.experts = {
            task: self.features(expert.encoder, f"expert {task}")
            for task, expert in work.experts.items()
        }
        base = self.features(work.base, "the base")
        self.base = {name: self.similarity(name, base) for name in SIMILARITIES}

    def features(self, weights: StateDict, label: str = "the shared encoder") -> list[Tensor]:
        """Compute the features of an encoder; one (n, N, D) a tap, of at most PATCHES patches."""
        prefix = self.work.encoder.prefix
        taps = self.work.features(weights, self.samples, label)
        patches = taps[0].shape[1] - prefix
        kept = min(PATCHES, patches)
        index = prefix + torch.arange(kept) * patches // kept
        return [tap[:, index] for tap in taps]

    def similarity(self, name: str, features: Features) -> dict[str, float]:
        """Give one similarity to every expert, the mean over the taps; NaN if a feature is."""
        if not all(tap.isfinite().all() for tap in features):
            return dict.fromkeys(self.experts, math.nan)
        return {
            task: math.fsum(map(SIMILARITIES[name], features, taps)) / len(taps)
            for task, taps in self.experts.items()
        }

    def scores(self, weights: StateDict) -> dict[str, float]:
        """Give the score of a candidate by every proxy."""
        features = self.features(weights)
        found = {name: self.similarity(name, features) for name in SIMILARITIES}
        return {
            name: proxy.score(found[proxy.similarity], self.base[proxy.similarity])
            for name, proxy in PROXIES.items()
        }
