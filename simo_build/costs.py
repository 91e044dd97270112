"""What stages of a build looked at and took: images, labels, optimiser steps, wall time.

Everything is read from what the stages themselves have logged; what was not recorded is None.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simo_build.checkpoints import Expert
from simo_build.proxies import SELECT

Log = Mapping[str, Any]
SPLITS = ("train", "realign", "unlabelled", "select")  # in the order in which they serve


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one stage took. Images and labels are by split, and count every image once."""

    stage: str
    images: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    steps: int | None = 0  # of the optimiser
    seconds: float | None = None

    def plain(self) -> dict[str, Any]:
        """Describe it in plain values."""
        return {**vars(self), "images": dict(self.images), "labels": dict(self.labels)}


def of_expert(expert: Expert) -> Cost:
    """What the training of an expert took, as far as its file and the one beside it say it."""
    about = expert.about
    phases = (about.get("select") or {}).values()
    images = about.get("images") or {}
    return Cost(
        stage=f"expert {expert.task}",
        images=images,
        labels=images,
        steps=_total(phase.get("updates") for phase in phases) if phases else None,
        seconds=expert.seconds,
    )


def of_merge(log: Log, seconds: float | None = None) -> Cost:
    """What merging took, with the choice of its parameters."""
    looks = [log.get("learned", {}), log.get("evidence", {})]
    chosen: Log = log if "tried" in log else {}
    by_select = chosen.get("by", SELECT) == SELECT
    looks += [] if by_select else [chosen]
    images, labels = (
        _used(
            realign=max(look.get(what, 0) for look in looks),
            select=chosen.get(what, 0) if by_select else 0,
        )
        for what in ("images", "labels")
    )
    steps = log["learned"].get("updates") if "learned" in log else 0
    return Cost(stage="merge", images=images, labels=labels, steps=steps, seconds=seconds)


def of_realign(log: Log, seconds: float | None = None) -> list[Cost]:
    """What every step of re-alignment took; only the time of all of them together is recorded."""
    steps = log.get("steps", ())
    costs = []
    for step in steps:
        tasks = step.get("tasks", {"": step}).values()
        images, labels = (
            _used(
                realign=step.get(what, 0),
                unlabelled=step.get(f"unlabelled_{what}", 0),
                select=step.get(f"select_{what}", 0),
            )
            for what in ("images", "labels")
        )
        costs.append(
            Cost(
                stage=f"re-align: {step['step']}",
                images=images,
                labels=labels,
                steps=_total(one.get("updates") for one in tasks),
                seconds=seconds if len(steps) == 1 else None,
            )
        )
    if len(steps) > 1:
        costs.append(Cost(stage="re-align: all steps", seconds=seconds))
    return costs


def together(costs: Iterable[Cost]) -> dict[str, Any]:
    """Add up what a model took: the most images and labels of every split, all steps, all times.

    The same images serve several stages, so that they are not added.
    """
    costs = list(costs)
    return {
        "images": _most(cost.images for cost in costs),
        "labels": _most(cost.labels for cost in costs),
        "steps": _total(cost.steps for cost in costs),
        "seconds": {cost.stage: cost.seconds for cost in costs if cost.seconds is not None},
    }


def _used(**splits: int) -> dict[str, int]:
    return {split: count for split, count in splits.items() if count}


def _most(every: Iterable[Mapping[str, int]]) -> dict[str, int]:
    most: dict[str, int] = {}
    for one in every:
        for split, count in one.items():
            most[split] = max(count, most.get(split, 0))
    return most


def _total(counts: Iterable[int | None]) -> int | None:
    """Add up, unless one was not recorded."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def counted(splits: Mapping[str, int]) -> str:
    """Show how many images of which split were used."""
    return ", ".join(f"{splits[split]} {split}" for split in SPLITS if split in splits) or "-"
