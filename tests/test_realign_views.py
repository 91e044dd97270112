"""Views, mirror images and further images: what a step learns on beside the images themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simo_build import workshop
from simo_build.build import realign
from simo_build.costs import of_realign
from simo_build.data import Samples, joined_to
from simo_build.losses import TORCH_KINDS
from simo_build.merging import merge
from simo_build.realign import bench, joint, teachers
from simo_build.realign.teachers import asked, by_output
from simo_build.steps import DistillStep
from tests.realigning import Reads, aligned
from tests.tiny import SPLITS, opened, write_recipe

VIEWS: dict[str, Any] = {"views": 3, "scales": [1.0, 1.5], "jitter": {"brightness": 0.2}}


def test_views_are_more_images_to_learn_on_not_more_that_were_used(
    place: Path, tmp_path: Path
) -> None:
    step = {"step": "distill", "views": 1, "epochs": 1, "lr": 1e-3, "labels": True}
    plain = aligned(place, tmp_path, step)[2]
    viewed = aligned(place, tmp_path, {**step, **VIEWS})[2]
    assert viewed.log["images"] == viewed.log["labels"] == SPLITS["realign"]
    assert viewed.log["steps"][0]["units"] == pytest.approx(plain.log["steps"][0]["units"])
    assert viewed.log["steps"][0]["history"] != plain.log["steps"][0]["history"]


@pytest.mark.parametrize("fresh", [True, False])
def test_fresh_views_are_others_in_every_epoch_and_the_same_when_it_is_gone_on_with(
    place: Path, fresh: bool
) -> None:
    work = opened(write_recipe(place, merge={"params": {"alpha": 0.5}}))
    tools, own = bench.Bench(work), work.samples["realign"]
    step = DistillStep.model_validate({"step": "distill", **VIEWS, "fresh": fresh})
    drawn, later = (joint.Drawn(tools, step, own) for _ in range(2))
    first = drawn.lessons.images
    drawn.begin(2)
    second = drawn.lessons.images
    assert torch.equal(first[: len(own)], second[: len(own)])  # the images themselves
    assert torch.equal(first, second) is not fresh
    drawn.begin(3)
    later.begin(3)
    assert torch.equal(drawn.lessons.images, later.lessons.images)


def test_a_mirrored_teacher_says_the_same_of_both_sides(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "THIN", 1)  # the same pixels are compared on both sides
    work = opened(write_recipe(place, merge={"params": {"alpha": 0.5}}))
    own = work.samples["realign"]
    tools = bench.Bench(work)
    both, head = tools.mirrored(own), work.expert_heads()["normals"]
    answers, taps = asked(work, "normals", head, both, bf16=False, features=True)
    kind = TORCH_KINDS["normals"]
    term = by_output(kind, answers, mirror=True)
    index = torch.arange(len(own))
    student = head([tap[index].float() for tap in taps]).detach()
    turned = kind.teaching.turned(student)
    assert term([], student, index) > 1e-3  # the mean is not what either side says
    assert term([], student, index) == pytest.approx(
        float(term([], turned, index + len(own))), abs=1e-6
    )


def test_further_images_without_labels_are_learnt_from_and_counted(
    place: Path, tmp_path: Path, reads: Reads
) -> None:
    step = {
        "step": "distill",
        "views": 1,
        "epochs": 1,
        "labels": True,
        "unlabelled": True,
        "batch": 3,
    }
    further = {"root": "data", "unlabelled": "train"}
    work = opened(
        write_recipe(place, merge={"params": {"alpha": 0.5}}, data=further, realign=[step])
    )
    work.stages = workshop.Stages(tmp_path, work.stages.progress)
    log = realign(work, merge(work)).log
    (cost,) = of_realign(log)
    assert cost.images == {
        "realign": SPLITS["realign"],
        "unlabelled": SPLITS["train"],
        "select": SPLITS["select"],
    }
    assert cost.labels == {"realign": SPLITS["realign"], "select": SPLITS["select"]}
    assert ("unlabelled", ()) in reads
    assert {split for split, _ in reads} == {"realign", "select", "unlabelled"}


def test_images_without_labels_do_not_change_the_loss_of_labels() -> None:
    truth = {"far": np.ones((2, 4, 4), np.float32), "what": np.ones((2, 4, 4), np.uint8)}
    some, others = (Samples(np.zeros((n, 4, 4, 3), np.uint8), {}) for n in (2, 3))
    kinds = {"far": "depth", "what": "segmentation"}
    found = joined_to(Samples(some.images, truth), others, kinds)
    assert len(found) == 5
    assert np.array_equal(found.truths["far"][:2], truth["far"])
    for task, kind in kinds.items():
        raw = torch.randn(3, 2 if task == "what" else 1, 4, 4)
        assert TORCH_KINDS[kind].loss(raw, torch.from_numpy(found.truths[task][2:])) == 0


def test_views_are_those_that_were_measured_unless_one_says_otherwise() -> None:
    def step(**keys: Any) -> DistillStep:
        return DistillStep.model_validate({"step": "distill", **keys})

    usual, plain = step(labels=True), step(views=1)
    assert (usual.views, usual.scales, usual.fresh, usual.mirror) == (
        5,
        (1.0, 1.2, 1.5),
        True,
        True,
    )
    assert (usual.epochs, usual.lr, usual.jitter.hue) == (4, 3e-4, 0.03)
    assert (plain.views, plain.scales, plain.fresh, plain.mirror) == (1, (1.0,), False, False)
    assert not step(labels=True, outputs=0).mirror  # which is the mean of answers
    assert not step(flip=False).mirror
    assert step(**usual.model_dump(exclude={"step"})) == usual
