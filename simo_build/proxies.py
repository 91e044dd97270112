"""Proxies: how near a merged encoder's features come to the experts', told without labels.

SIMILARITIES compare the features of the merged encoder with those of one expert, PROXIES make one
score of the similarities of all tasks. The idea is arXiv 2604.12935; its formulas are not public,
so those here are our own.

Shapes: n images, N patches, D channels, R = n * N rows. A pair of features is (n, N, D) each, of
the same patches.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from simo_runtime.errors import unknown

RIDGE = 1e-3  # of the mean variance of the merged features' channels
ALIKE = 1e-6  # nearer to 1 than this, the base is its expert, and there is nothing to gain

Similarity = Callable[[Tensor, Tensor], float]


def cka(merged_nND: Tensor, expert_nND: Tensor) -> float:
    """Give linear CKA: 1 where the patches lie to one another as the expert's do, 0 at worst.

    A shift, a rotation or a scale of all channels changes nothing.
    """
    merged_RD, expert_RD = _rows(merged_nND), _rows(expert_nND)
    merged_RD, expert_RD = merged_RD - merged_RD.mean(0), expert_RD - expert_RD.mean(0)
    shared = (merged_RD.T @ expert_RD).double().square().sum()
    return _ratio(shared, _gram_norm(merged_RD) * _gram_norm(expert_RD))


def cosine(merged_nND: Tensor, expert_nND: Tensor) -> float:
    """Give the mean cosine of patch with patch, both seen from the expert's mean patch.

    Tokens of a vision transformer have much in common, which would hide what differs.
    """
    mean_D = _rows(expert_nND).mean(0)
    cosines_nN = F.cosine_similarity(merged_nND - mean_D, expert_nND - mean_D, dim=-1)
    return float(cosines_nN.double().mean())


def ridge(merged_nND: Tensor, expert_nND: Tensor) -> float:
    """Give the share of the expert's variance (R²) that a linear map of the merged features tells.

    It is what a head that is trained again could still find there. The map is fitted on every
    other image and measured on the rest, so there must be at least two.
    """
    fit_RD, wanted_RD = _rows(merged_nND[::2]), _rows(expert_nND[::2])
    seen_RD, truth_RD = _rows(merged_nND[1::2]), _rows(expert_nND[1::2])
    mean_D, level_D = fit_RD.mean(0), wanted_RD.mean(0)
    fit_RD = fit_RD - mean_D
    gram_DD = (fit_RD.T @ fit_RD).double()
    penalty = (RIDGE * gram_DD.diagonal().mean()).clamp(min=torch.finfo(torch.float64).tiny)
    gram_DD.diagonal().add_(penalty)
    map_DD = torch.linalg.solve(gram_DD, (fit_RD.T @ (wanted_RD - level_D)).double())
    guess_RD = (seen_RD - mean_D) @ map_DD.to(seen_RD.dtype) + level_D
    missed = (truth_RD - guess_RD).double().square().sum()
    return 1.0 - _ratio(missed, (truth_RD - truth_RD.mean(0)).double().square().sum())


def standardised(similarity: Similarity) -> Similarity:
    """Divide every channel by the expert's deviation there first, so that all of them count."""

    def measure(merged_nND: Tensor, expert_nND: Tensor) -> float:
        rows_RD = _rows(expert_nND)
        spread_D = rows_RD.std(0, correction=0)
        varies_D = spread_D > 1e-6 * rows_RD.abs().amax(0)  # more than rounding
        spread_D = torch.where(varies_D, spread_D, 1.0)
        return similarity(merged_nND / spread_D, expert_nND / spread_D)

    return measure


def _rows(features_nND: Tensor) -> Tensor:
    return features_nND.flatten(0, 1)


def _gram_norm(centred_RD: Tensor) -> Tensor:
    return (centred_RD.T @ centred_RD).double().square().sum().sqrt()


def _ratio(above: Tensor, below: Tensor) -> float:
    """Divide; features that do not vary tell nothing, which counts 0."""
    return 0.0 if below == 0 else float(above / below)


SIMILARITIES: dict[str, Similarity] = {
    "cka": cka,
    "cosine": cosine,
    "ridge": ridge,
    "cka_standardised": standardised(cka),
    "cosine_standardised": standardised(cosine),
    "ridge_standardised": standardised(ridge),
}


@dataclass(frozen=True)
class Proxy:
    """A similarity, and how the similarities of all tasks become one score; more is better."""

    similarity: str
    over: Literal["min", "mean"] = "min"
    over_base: bool = False  # whether counted from the base's similarity, 0, to the expert's, 1

    def score(self, found: Mapping[str, float], base: Mapping[str, float]) -> float:
        """Give the score of a candidate from its similarity to every expert, and the base's.

        A task whose expert the base already equals does not count over the base. NaN if any
        similarity is.
        """
        values = list(found.values())
        if self.over_base:
            gaps = {task: 1.0 - base[task] for task in found}
            values = [
                (found[task] - base[task]) / gap for task, gap in gaps.items() if not gap < ALIKE
            ]
        if any(math.isnan(value) for value in values):
            return math.nan
        if not values:
            return 0.0
        return min(values) if self.over == "min" else math.fsum(values) / len(values)


PROXIES: dict[str, Proxy] = {
    **{name: Proxy(name) for name in SIMILARITIES},
    # What arXiv 2604.12935 is taken to do, with each of three similarities.
    "cka_over_base": Proxy("cka", over="mean", over_base=True),
    "cosine_over_base": Proxy("cosine", over="mean", over_base=True),
    "ridge_over_base": Proxy("ridge", over="mean", over_base=True),
}
SELECT = "select"  # the other way to choose: measured with labels, on the select split


def check_choice(name: str) -> None:
    """Refuse a way to choose that does not exist."""
    if name != SELECT and name not in PROXIES:
        raise unknown("way to choose", name, [SELECT, *PROXIES])
