"""What stages say they took."""

from typing import Any

import pytest

from simo_build.checkpoints import Expert
from simo_build.costs import Cost, counted, of_expert, of_merge, of_realign, together


def expert(about: dict[str, Any]) -> Expert:
    return Expert(task="seg", encoder={}, head={}, about=about, source="seg", hash="0")


def test_an_expert_tells_what_its_training_took() -> None:
    about = {
        "images": {"train": 795, "select": 62},
        "select": {"head": {"updates": 500}, "full": {"updates": 600}},
    }
    found = of_expert(expert(about))
    assert (found.images, found.labels) == (about["images"], about["images"])
    assert found.steps == 1100


@pytest.mark.parametrize("about", [{}, {"select": {"head": {"epoch": 3}}}], ids=["none", "older"])
def test_what_an_expert_does_not_tell_is_not_made_up(about: dict[str, Any]) -> None:
    found = of_expert(expert(about))
    assert (found.images, found.steps, found.seconds) == ({}, None, None)


@pytest.mark.parametrize(
    ("log", "images", "labels", "steps"),
    [
        ({"params": {"alpha": 0.3}}, {}, {}, 0),
        (
            {"tried": [], "by": "select", "images": 62, "labels": 62},
            {"select": 62},
            {"select": 62},
            0,
        ),
        ({"tried": [], "by": "cka", "images": 128, "labels": 0}, {"realign": 128}, {}, 0),
        ({"evidence": {"images": 9, "labels": 9}}, {"realign": 9}, {"realign": 9}, 0),
        ({"learned": {"images": 40, "labels": 0, "updates": 30}}, {"realign": 40}, {}, 30),
        ({"learned": {"images": 40, "labels": 0}}, {"realign": 40}, {}, None),
    ],
    ids=["given", "select", "proxy", "evidence", "learned", "learned, older"],
)
def test_merging_tells_what_it_looked_at(
    log: dict[str, Any], images: dict[str, int], labels: dict[str, int], steps: int | None
) -> None:
    found = of_merge(log, 2.0)
    assert (found.images, found.labels, found.steps) == (images, labels, steps)
    assert found.seconds == 2.0


HEAD = {
    "step": "head",
    "images": 6,
    "labels": 6,
    "select_images": 3,
    "select_labels": 3,
    "tasks": {"depth": {"updates": 4}, "normals": {"updates": 5}},
}
DISTILL = {**HEAD, "step": "distill", "labels": 0, "updates": 7}
del DISTILL["tasks"]


def test_steps_of_re_alignment_are_told_one_by_one() -> None:
    one, two, time = of_realign({"steps": [HEAD, DISTILL]}, 8.0)
    assert (one.stage, one.steps, one.seconds) == ("re-align: head", 9, None)
    assert (two.stage, two.steps, two.labels) == ("re-align: distill", 7, {"select": 3})
    assert (time.stage, time.seconds) == ("re-align: all steps", 8.0)
    assert of_realign({"steps": [HEAD]}, 8.0)[0].seconds == 8.0
    assert of_realign({}) == []


def test_together_the_same_images_are_counted_once() -> None:
    costs = [
        Cost(stage="merge", images={"select": 3}, seconds=1.0),
        Cost(stage="re-align: head", images={"realign": 6, "select": 3}, steps=9, seconds=2.0),
    ]
    found = together(costs)
    assert found["images"] == {"select": 3, "realign": 6}
    assert found["steps"] == 9
    assert found["seconds"] == {"merge": 1.0, "re-align: head": 2.0}
    assert together([*costs, Cost(stage="x", steps=None)])["steps"] is None


def test_splits_are_shown_in_the_order_in_which_they_serve() -> None:
    assert counted({"select": 3, "realign": 6, "train": 9}) == "9 train, 6 realign, 3 select"
    assert counted({}) == "-"
