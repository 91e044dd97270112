"""Tinting: the encoder is start + sum of coefficient * delta, of a head one layer is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from simo_build import workshop
from simo_build.build import realign
from simo_build.heads import HEADS, Enlarging, FeatureShape, Head, make_head
from simo_build.learned.scaled import layer_of
from simo_build.losses import TORCH_KINDS
from simo_build.merging import merge
from simo_build.realign import teachers
from simo_build.realign.teachers import Answers, by_output
from simo_build.realign.tint import trained
from simo_build.stages import Result
from simo_build.statedict import part, subtract
from simo_build.workshop import Workshop, split_heads
from simo_export.geometry import Geometry
from simo_runtime.errors import RecipeError
from simo_runtime.tasks import TaskSpec
from tests.tiny import opened, write_recipe, write_workplace

QUICK: dict[str, Any] = {"step": "tint", "epochs": 2, "lr": 3e-2, "batch": 3, "by": "teachers"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workplace(tmp_path_factory.mktemp("tint")).parent


def tinted(place: Path, out: Path, *steps: dict[str, Any]) -> tuple[Workshop, Result, Result]:
    """Merge and re-align; what is learnt on is what the best epoch is told by, so that one is."""
    data = {"root": "data", "select": "realign"}
    merging = {"params": {"alpha": 0.5}}
    work = opened(write_recipe(place, merge=merging, data=data, realign=list(steps)))
    work.stages = workshop.Stages(out, work.stages.progress)
    merged = merge(work)
    return work, merged, realign(work, merged)


@pytest.mark.parametrize("granularity", ["tensor", "layer", "task"])
def test_the_encoder_is_the_start_and_the_sum_of_scaled_deltas(
    place: Path, tmp_path: Path, granularity: str
) -> None:
    work, merged, found = tinted(place, tmp_path, {**QUICK, "granularity": granularity})
    (log,) = found.log["steps"]
    assert log["epoch"] > 0
    label = {"tensor": lambda name: name, "layer": layer_of, "task": lambda _: "all"}[granularity]
    expected = {name: tensor.double() for name, tensor in merged.tensors.items()}
    for task, expert in work.experts.items():
        for name, delta in subtract(expert.encoder, work.base).items():
            expected[name] += log["coefficients"][task][label(name)] * delta.double()
    for name, tensor in part(found.tensors, "encoder.").items():
        assert_close(tensor.double(), expected[name], rtol=0, atol=1e-6)
    assert any(not torch.equal(found.tensors[f"encoder.{n}"], t) for n, t in merged.tensors.items())


@pytest.mark.parametrize(
    ("heads", "changed"),
    [
        ("none", set()),
        ("last", {"project.weight", "project.bias"}),
        (
            "all",
            {"project.weight", "project.bias", "norm.weight", "norm.bias"}
            | {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"},
        ),
    ],
)
def test_of_a_head_only_what_was_asked_for_is_trained(
    place: Path, tmp_path: Path, heads: str, changed: set[str]
) -> None:
    work, _, found = tinted(place, tmp_path, {**QUICK, "heads": heads})
    before = work.experts["normals"].head
    after = split_heads(work, found.tensors)["normals"].state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed
    (log,) = found.log["steps"]
    trained_here = sum(
        tensor.numel()
        for expert in work.experts.values()
        for name, tensor in expert.head.items()
        if name in changed and "running" not in name and "tracked" not in name
    )
    assert log["head_weights"] == trained_here


def test_the_steps_after_it_train_whole_heads(place: Path, tmp_path: Path) -> None:
    head = {"step": "head", "epochs": 2, "lr": 1e-2, "batch": 3}
    work, _, tint = tinted(place, tmp_path, QUICK)
    after = tinted(place, tmp_path, QUICK, head)[2]
    one, other = (split_heads(work, found.tensors)["normals"] for found in (tint, after))
    assert after.log["steps"][1]["tasks"]["normals"]["epoch"] > 0
    for name in ("norm.weight", "project.weight"):
        assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_maps_beside_blocks_stay(place: Path, tmp_path: Path) -> None:
    maps = {"step": "representation", "epochs": 1, "lr": 1e-2, "rank": 2, "by": "teachers"}
    first = part(tinted(place, tmp_path, maps)[2].tensors, "encoder.")
    both = part(tinted(place, tmp_path, maps, QUICK)[2].tensors, "encoder.")
    assert set(first) == set(both)
    beside = [name for name in first if ".adapter." in name]
    assert len(beside) == 4
    assert all(torch.equal(first[name], both[name]) for name in beside)
    assert not torch.equal(first["cls_token"], both["cls_token"])


def test_the_head_learns_at_its_own_rate(place: Path, tmp_path: Path) -> None:
    for rate in (1e-6, 1e-3):
        work, _, found = tinted(place, tmp_path, {**QUICK, "head_lr": rate})
        before = work.experts["depth"].head["project.weight"]
        moved = float((found.tensors["depth.project.weight"] - before).abs().max())
        # a step moves a weight by about the rate; there are 8, of 3 of 6 images, mirrored too
        assert found.log["steps"][0]["epoch"] > 0
        assert 0 < moved < 8.5 * rate
        assert moved > rate or rate < 1e-3  # weights of 0.01 in float32 round what is far below


# What is learnt from


def logits(*rows: list[float]) -> Tensor:
    """A raw output of two classes, (1, 2, 1, W), from a pair a pixel."""
    return torch.tensor(rows).T.reshape(1, 2, 1, -1)


def lesson(targets: str, student: Tensor, teacher: Tensor) -> float:
    geometry = Geometry(image_size=(1, teacher.shape[3]), patch=(1, 1))
    answers = Answers(teacher, Enlarging(geometry=geometry, positive=False))
    term = by_output(TORCH_KINDS["segmentation"], answers, targets)  # type: ignore[arg-type]  # a name of targets
    return float(term([], student, torch.tensor([0])))


@pytest.fixture
def _every_pixel_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "THIN", 1)


@pytest.mark.usefixtures("_every_pixel_counts")
def test_targets_by_hand() -> None:
    # the first pixel: both name the first class; the second: the student is surer of another one
    student, teacher = logits([1.0, 0.0], [3.0, 0.0]), logits([2.0, 0.0], [0.0, 1.0])
    kinds = torch.nn.functional
    hard = [
        float(kinds.cross_entropy(student[..., i : i + 1], torch.tensor([[[i]]]))) for i in (0, 1)
    ]
    assert lesson("pseudo", student, teacher) == pytest.approx(sum(hard) / 2)
    assert lesson("trusted", student, teacher) == pytest.approx(hard[0])
    p, q = teacher.softmax(1), student.softmax(1)
    soft = float((p * (p / q).log()).sum(1).mean())
    assert lesson("soft", student, teacher) == pytest.approx(soft, rel=1e-5)


@pytest.mark.usefixtures("_every_pixel_counts")
def test_where_no_pixel_is_trusted_nothing_is_taught() -> None:
    assert lesson("trusted", logits([3.0, 0.0]), logits([0.0, 1.0])) == 0.0


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (
            {"heads": "none", "head_lr": 1e-3},
            r"realign\.0: head_lr has no meaning with heads: none",
        ),
        ({"heads": "first"}, r"realign\.0\.heads: Input should be 'last'"),
        ({"granularity": "block"}, r"realign\.0\.granularity: Input should be 'tensor'"),
        (
            {"outputs": 0, "labels": True, "targets": "soft"},
            r"realign\.0: targets says what outputs teach",
        ),
        ({"targets": "hard"}, r"realign\.0\.targets: Input should be 'soft'"),
        ({"clamp": True}, r"realign\.0\.clamp: unknown key"),
    ],
    ids=str,
)
def test_a_tint_that_cannot_be_is_refused(place: Path, step: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        opened(write_recipe(place, realign=[{"step": "tint", **step}]))


# The last layer of a head


SHAPE = FeatureShape(
    geometry=Geometry(image_size=(32, 48), patch=(16, 16)), taps=4, width=8, prefix=1
)


def made(name: str) -> Head:
    spec = TaskSpec(name="depth", kind="depth", channels=1, metric="absolute_error")
    return make_head(name, spec, SHAPE, seed=0).eval()


@pytest.mark.parametrize("name", HEADS)
def test_the_last_layer_of_every_head_is_the_last_one_that_runs(name: str) -> None:
    head, ran = made(name), list[nn.Module]()
    for module in head.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda module, *_: ran.append(module))
    head([torch.zeros(1, 7, SHAPE.width)] * 4)
    assert head.last() is ran[-1]


@pytest.mark.parametrize("name", HEADS)
def test_the_last_layer_alone_is_trained(name: str) -> None:
    head = made(name)
    trained(head, "last")
    asked = {id(one) for one in head.parameters() if one.requires_grad}
    assert asked == {id(one) for one in head.last().parameters()}
