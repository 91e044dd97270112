"""Choosing among candidates: each is judged, and the one of the highest score is taken."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

from simo_build.alignment import Alignment
from simo_build.proxies import SELECT
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop, against, measure, measure_experts

Row = dict[str, Any]


class Judge(Protocol):
    """A way to choose: it gives a candidate's weights a row for the log, with their `score`."""

    def __call__(self, weights: StateDict) -> Row: ...

    def about(self) -> Mapping[str, Any]:
        """Say what was looked at: `images`, and how many of them with `labels`."""
        ...


class BySelect:
    """By equation 1 on the select split, which one exploding task cannot rule; 2 is logged."""

    def __init__(self, work: Workshop) -> None:
        self.work = work

    @cached_property
    def experts(self) -> dict[str, float]:
        """The experts' metrics."""
        return measure_experts(self.work, self.work.samples["select"])

    def __call__(self, weights: StateDict) -> Row:
        work = self.work
        found = measure(work, weights, work.expert_heads(), work.samples["select"])
        compared = against(work, found, self.experts)
        return {"score": compared["normalised_performance"], "metrics": found, **compared}

    def about(self) -> Mapping[str, Any]:
        images = len(self.work.samples["select"])
        return {"images": images, "labels": images, "experts": self.experts}


class ByProxy:
    """By how near the features come to the experts', on images without labels."""

    def __init__(self, work: Workshop) -> None:
        self.name = work.recipe.merge.by
        self.alignment = Alignment(work, work.unlabelled(work.recipe.merge.images))

    def __call__(self, weights: StateDict) -> Row:
        found = self.alignment.similarities(self.alignment.features(weights))
        scores = self.alignment.scores(found)
        return {"score": scores[self.name], "proxies": scores, "similarities": found}

    def about(self) -> Mapping[str, Any]:
        return {"images": len(self.alignment.samples), "labels": 0}


def judge(work: Workshop) -> Judge:
    """Give the way to choose that a recipe names in `merge.by`."""
    return BySelect(work) if work.recipe.merge.by == SELECT else ByProxy(work)
