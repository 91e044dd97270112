"""Compare the features of candidates with the experts', on images without labels.

Shapes: n images, P prefix tokens, N patches, D width.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simo_build.data import Samples
from simo_build.proxies import PROXIES, SIMILARITIES
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop

PATCHES = 64  # how many patches of an image are compared, spread evenly

Features = Sequence[Tensor]  # (n, N, D) a tap


class Alignment:
    """The experts' and the base's features on unlabelled images, computed once, for all proxies."""

    def __init__(self, work: Workshop, samples: Samples) -> None:
        self.work, self.samples = work, samples
        self.experts = {
            task: self.features(expert.encoder, f"expert {task}")
            for task, expert in work.experts.items()
        }
        self.base = self.similarities(self.features(work.base, "the base"))

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

    def similarities(self, features: Features) -> dict[str, dict[str, float]]:
        """Give every similarity to every expert."""
        return {name: self.similarity(name, features) for name in SIMILARITIES}

    def scores(self, found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Give the score by every proxy, from all similarities."""
        return {
            name: proxy.score(found[proxy.similarity], self.base[proxy.similarity])
            for name, proxy in PROXIES.items()
        }
