"""Re-alignment steps: what they change, what they look at, and what they say of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from simo_build import losses, report, workshop
from simo_build.build import realign
from simo_build.loading import load_recipe
from simo_build.losses import component_error
from simo_build.merging import merge
from simo_build.progress import Silent
from simo_build.realign import STEPS, shared_encoder
from simo_build.realign.teachers import compared
from simo_build.statedict import part
from simo_build.workshop import against, measure, measure_experts, split_heads
from simo_runtime.errors import RecipeError
from tests.realigning import ALONE, JOINT, RELEASED, Reads, aligned
from tests.tiny import SPLITS, opened, write_recipe


def test_every_step_is_tried_here() -> None:
    assert set(ALONE) == set(STEPS)


@pytest.mark.parametrize("name", ALONE)
def test_a_step_alone_does_not_lose_on_select(place: Path, tmp_path: Path, name: str) -> None:
    work, merged, found = aligned(place, tmp_path, ALONE[name])
    select = work.samples["select"]
    experts = measure_experts(work, select)
    before = measure(work, merged.tensors, work.expert_heads(), select)
    encoder = shared_encoder(merged.tensors, found.tensors)
    after = measure(work, encoder, split_heads(work, found.tensors), select)
    assert after == pytest.approx(found.log["metrics"])
    scores = [against(work, one, experts)["normalised_performance"] for one in (before, after)]
    assert scores[1] >= scores[0]


@pytest.mark.parametrize("name", JOINT)
def test_the_outcome_is_equation_1_of_what_is_kept(place: Path, tmp_path: Path, name: str) -> None:
    work, _, found = aligned(place, tmp_path, ALONE[name])
    experts = measure_experts(work, work.samples["select"])
    score = against(work, found.log["metrics"], experts)["normalised_performance"]
    assert found.log["steps"][0]["metric"] == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("name", ALONE)
def test_the_same_step_gives_the_same_weights(place: Path, tmp_path: Path, name: str) -> None:
    one = aligned(place, tmp_path / "one", ALONE[name])[2]
    torch.rand(1)  # nothing may hang on the global random state
    other = aligned(place, tmp_path / "other", ALONE[name])[2]
    assert one.log == other.log
    assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)


def test_only_joint_steps_change_the_encoder(place: Path, tmp_path: Path) -> None:
    for name, step in ALONE.items():
        work, merged, found = aligned(place, tmp_path, step)
        changed = part(found.tensors, "encoder.")
        assert bool(changed) == (name in JOINT)
        if name == "representation":
            assert all(torch.equal(changed[key], merged.tensors[key]) for key in work.base)
            assert {key.split(".")[2] for key in set(changed) - set(work.base)} == {"adapter"}
        elif changed:
            assert set(changed) == set(work.base)
            assert not all(torch.equal(changed[key], merged.tensors[key]) for key in changed)
        assert all(
            torch.equal(work.expert_heads()[task].state_dict()[key], tensor)
            for task, one in work.experts.items()
            for key, tensor in one.head.items()
        )


@pytest.mark.parametrize(
    ("step", "images", "labels", "select_labels"),
    [
        ({"step": "head"}, 6, 6, 3),
        ({"step": "distill", "views": 1}, 6, 0, 3),
        ({"step": "distill", "views": 1, "features": 1, "by": "teachers"}, 6, 0, 0),
        ({"step": "lora"}, 6, 0, 3),
        ({"step": "tint"}, 6, 0, 3),
        ({"step": "tint", "labels": True, "outputs": 0}, 6, 6, 3),
        ({"step": "distill", "views": 1, "labels": True}, 6, 6, 3),
        (
            {"step": "distill", "views": 1, "labels": True, "outputs": 0, "units": "experts"},
            6,
            6,
            3,
        ),
        # an expert's own loss is of the truths of select
        (
            {"step": "distill", "views": 1, "labels": True, "units": "experts", "by": "teachers"},
            6,
            6,
            3,
        ),
        ({"step": "calibrate", "images": 4, "choose": {"rho": [1]}}, 4, 0, 3),
        ({"step": "calibrate", "images": 4, "choose": {"rho": [1]}, "by": "teachers"}, 4, 0, 0),
    ],
    ids=str,
)
def test_a_step_says_how_many_images_and_labels_it_used(
    place: Path, tmp_path: Path, step: dict[str, Any], images: int, labels: int, select_labels: int
) -> None:
    once = {} if step["step"] == "calibrate" else {"epochs": 1}
    log = aligned(place, tmp_path, {**step, **once})[2].log
    expected = {
        "images": images,
        "labels": labels,
        "select_images": SPLITS["select"],
        "select_labels": select_labels,
    }
    assert {key: log["steps"][0][key] for key in expected} == expected
    assert {key: log[key] for key in expected} == expected


@pytest.mark.parametrize("name", ALONE)
def test_no_step_reads_the_test_split(place: Path, tmp_path: Path, reads: Reads, name: str) -> None:
    aligned(place, tmp_path, ALONE[name])
    assert {split for split, _ in reads} == {"realign", "select"}


@pytest.mark.parametrize("name", ALONE)
def test_no_step_sees_an_image_of_the_test_split(place: Path, tmp_path: Path, name: str) -> None:
    step = ALONE[name]
    before = aligned(place, tmp_path / "one", step)[2]
    hidden = place / "hidden"
    numbers = range(sum(SPLITS.values()) - SPLITS["test"], sum(SPLITS.values()))
    files = [p for n in numbers for p in (place / "data").glob(f"*/{n:04d}.png")]
    assert len(files) == 3 * SPLITS["test"]
    hidden.mkdir()
    moves = {path: hidden / f"{path.parent.name}-{path.name}" for path in files}
    try:
        for path, away in moves.items():
            path.rename(away)
        after = aligned(place, tmp_path / "two", step)[2]
    finally:
        for path, away in moves.items():
            away.rename(path)
        hidden.rmdir()
    assert all(torch.equal(before.tensors[key], after.tensors[key]) for key in before.tensors)


@pytest.mark.parametrize("name", ["distill", "calibrate"])
def test_without_labels_no_truth_of_realign_is_read(
    place: Path, tmp_path: Path, reads: Reads, name: str
) -> None:
    aligned(place, tmp_path, ALONE[name])
    assert ("realign", ()) in reads
    assert all(not tasks for split, tasks in reads if split == "realign")


def test_every_pixel_is_compared_in_one_batch_or_another() -> None:
    raw = torch.arange(8 * 12.0).reshape(1, 1, 8, 12)
    batches = [torch.tensor([row, column]) for row in range(4) for column in range(4)]
    seen = torch.cat([compared(index, (8, 12)).of(raw[0]).flatten() for index in batches])
    assert torch.equal(seen.sort().values, raw.flatten())


def test_an_average_of_the_weights_is_another_model(place: Path, tmp_path: Path) -> None:
    plain = aligned(place, tmp_path, ALONE["distill"])[2]
    averaged = aligned(place, tmp_path, {**ALONE["distill"], "ema": 0.9})[2]
    assert plain.log["steps"][0]["history"] != averaged.log["steps"][0]["history"]


def test_a_teacher_is_followed(place: Path, tmp_path: Path) -> None:
    step = {"step": "distill", "views": 1, "by": "teachers", "epochs": 6, "lr": 1e-3, "batch": 3}
    merging = {"params": {"alpha": 0.5}}
    learnt_on = {"root": "data", "select": "realign"}
    path = write_recipe(place, merge=merging, data=learnt_on, realign=[step])
    work = opened(path)
    work.stages = workshop.Stages(tmp_path, work.stages.progress)
    log = realign(work, merge(work)).log["steps"][0]
    assert log["history"][0] > -1  # nearer to the experts than the base is, which has -1
    assert log["history"][-1] > log["history"][0] + 0.05


def test_who_is_the_teacher_has_nothing_to_learn(place: Path, tmp_path: Path) -> None:
    step = {"step": "distill", "views": 1, "by": "teachers", "features": 1, "epochs": 1, "lr": 1e-3}
    merging = {"params": {"alpha": 1.0}}
    work = opened(write_recipe(place, ("depth",), merge=merging, realign=[step]))
    work.stages = workshop.Stages(tmp_path, work.stages.progress)
    log = realign(work, merge(work)).log["steps"][0]
    assert log["history"][0] == pytest.approx(0, abs=2e-3)  # teachers are kept in half precision


def test_steps_work_one_after_another(place: Path, tmp_path: Path) -> None:
    log = aligned(place, tmp_path, ALONE["distill"], ALONE["head"])[2].log
    assert [step["step"] for step in log["steps"]] == ["distill", "head"]
    assert log["labels"] == SPLITS["realign"]


@pytest.mark.parametrize(
    "changes",
    [
        {"realign": [{"step": "head", "epochs": 1}]},
        {"realign": [{"step": "distill", "views": 1, "epochs": 1, "labels": True, "outputs": 0}]},
        {"realign": [], "merge": {"method": "supermerge", "params": {"epochs": 1}, "images": 4}},
        {"realign": [], "merge": {"method": "fisher_labelled", "images": 4}},
    ],
    ids=["head", "distill", "supermerge", "fisher_labelled"],
)
def test_labels_teach_by_the_loss_that_the_task_says(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    seen: list[torch.Tensor] = []

    def spied(raw: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        seen.append(truth)
        return component_error(raw, truth)

    monkeypatch.setattr(losses, "component_error", spied)
    normals = {"kind": "normals", "loss": "l1", "target": {"folder": "normals"}}
    tasks = {"normals": {**normals, "expert": "normals.safetensors"}}
    changed = {"merge": {"params": {"alpha": 0.5}}, **changes}
    work = opened(write_recipe(place, tasks, **changed))
    work.stages = workshop.Stages(tmp_path, work.stages.progress)
    realign(work, merge(work))
    assert seen


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"step": "distil"}, r"realign\.0\.step: there is no step 'distil'; did you mean 'dist"),
        ({"lr": 1e-3}, r"realign\.0\.step: Field required"),
        ({"step": "distill", "label": True}, r"realign\.0\.label: .*; did you mean 'labels'\?"),
        ({"step": "head", "views": 2}, r"realign\.0\.views: unknown key"),
        ({"step": "head", "labels": False}, r"nothing to learn from: set labels or outputs"),
        ({"step": "head", "by": "teachers"}, r"by: teachers needs teachers: set outputs"),
        ({"step": "head", "targets": "pseudo"}, r"targets says what outputs teach"),
        (
            {"step": "distill", "views": 1, "ema": 1},
            r"realign\.0\.ema: Input should be less than 1",
        ),
        (
            {"step": "distill", "views": 1, "outputs": 0},
            r"realign\.0: there is nothing to learn from",
        ),
        (
            {"step": "distill", "views": 1, "units": "experts"},
            r"realign\.0: units: experts .* needs labels",
        ),
        (
            {"step": "distill", "views": 1, "labels": True, "outputs": 0, "by": "teachers"},
            r"realign\.0: by: teachers needs teachers",
        ),
        ({"step": "distill", "views": 2}, r"realign\.0: views: 2 are all the same; set scales"),
        ({"step": "distill", "fresh": True}, r"realign\.0: fresh draws views anew"),
        ({"step": "distill", "scales": [1.5]}, r"realign\.0: scales and jitter make views"),
        ({"step": "lora", "mirror": True, "flip": False}, r"realign\.0: mirror takes the mean"),
        ({"step": "distill", "views": 1, "unlabelled": True}, r"needs `data\.unlabelled`"),
        (
            {"step": "distill", "views": 1, "unlabelled": True, "labels": True, "outputs": 0},
            r"realign\.0: images without labels need teachers",
        ),
        ({"step": "lora", "layers": ["qvk"]}, r"realign\.0\.layers\.0: Input should be 'qkv'"),
        ({"step": "lora", "layers": []}, r"realign\.0\.layers"),
        ({"step": "representation", "variant": "code"}, r"realign\.0\.variant: .*'paper' or 'rel"),
        ({"step": "representation", "heads": "last"}, r"realign\.0\.heads: .*'all' or 'none'"),
        ({"step": "distill", "variant": "paper"}, r"realign\.0\.variant: unknown key"),
        ({"step": "lora", "rank": 0}, r"realign\.0\.rank: Input should be greater than 0"),
        ({"step": "calibrate", "lambda": 1}, r"realign\.0\.lambda: unknown key"),
        ({"step": "calibrate", "alpa": 1}, r"realign\.0\.alpa: unknown key; .* 'alpha'\?"),
        ({"step": "calibrate", "method": "featcall"}, r"realign\.0\.method: .* 'featcal'"),
        ({"step": "calibrate", "rcond": 0.1}, r"realign\.0: featcal has no rcond; it has alpha, r"),
        ({"step": "calibrate", "method": "lot", "rho": 1}, r"realign\.0: lot has no rho; it has"),
        (
            {"step": "calibrate", "method": "lot", "choose": {"rho": [1]}},
            r"realign\.0: lot has no rho; it has alpha, rcond",
        ),
        ({"step": "calibrate", "ridge": 0}, r"realign\.0\.ridge: Input should be greater than"),
        ({"step": "calibrate", "alpha": 2}, r"realign\.0\.alpha: Input should be less than"),
        ({"step": "calibrate", "choose": {"alpha": [2]}}, r"realign\.0\.choose\.alpha\.0: Input"),
        ({"step": "calibrate", "choose": {"ro": [2]}}, r"realign\.0\.choose\.ro: .* 'rho'\?"),
        ({"step": "calibrate", "choose": {"rho": []}}, r"realign\.0\.choose\.rho"),
        (
            {"step": "calibrate", "rho": 1, "choose": {"rho": [1]}},
            r"realign\.0: rho is given twice",
        ),
        ({"step": "calibrate", "by": "teachers"}, r"realign\.0: by: teachers has nothing to choo"),
        ("distill", r"realign\.0: must be keys with values"),
    ],
    ids=str,
)
def test_a_step_that_cannot_be_is_refused(tmp_path: Path, step: object, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(str(write_recipe(tmp_path, realign=[step])))


@pytest.mark.parametrize(
    "form",
    [ALONE["distill"], ALONE["representation"], RELEASED],
    ids=["distill", "representation", "released"],
)
def test_the_bundle_and_the_report_have_the_encoder_that_was_trained(
    place: Path, tmp_path: Path, form: dict[str, Any]
) -> None:
    step = {**form, "lr": 1e-2, "features": 1}
    loaded = load_recipe(str(write_recipe(place, merge={"params": {"alpha": 0.5}}, realign=[step])))
    found = report.study(loaded, tmp_path / "bundle", "select", progress=Silent())
    rows = {row["row"]: row["metrics"] for row in found["rows"]}
    assert "base, re-aligned" in rows
    told = rows["the bundle, in ONNX Runtime"]
    assert told == pytest.approx(rows["merged, re-aligned"], rel=1e-4)
    assert told != pytest.approx(rows["merged + experts' heads"], rel=1e-4)
    assert found["labels_used"] == {"realign": 0, "select": SPLITS["select"]}
    assert found["images_used"] == {"realign": SPLITS["realign"], "select": SPLITS["select"]}
