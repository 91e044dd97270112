"""Re-alignment steps: what they change, what they look at, and what they say of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simo_build import data, losses, report, workshop
from simo_build.build import realign
from simo_build.costs import of_realign
from simo_build.data import Samples, joined_to
from simo_build.loading import LoadedRecipe, load_recipe
from simo_build.losses import TORCH_KINDS, component_error
from simo_build.merging import merge
from simo_build.progress import Progress, Silent
from simo_build.realign import STEPS, bench, joint, shared_encoder, teachers
from simo_build.realign.teachers import asked, by_output, compared
from simo_build.stages import Result
from simo_build.statedict import part
from simo_build.steps import DistillStep
from simo_build.workshop import Workshop, against, measure, measure_experts, split_heads
from simo_runtime.errors import RecipeError
from tests.tiny import SPLITS, opened, write_recipe, write_workplace

QUICK: dict[str, Any] = {"epochs": 2, "lr": 3e-3, "batch": 3}
ALONE: dict[str, dict[str, Any]] = {
    "head": {"step": "head", **QUICK},
    "distill": {"step": "distill", "views": 1, **QUICK},
    "lora": {"step": "lora", **QUICK, "rank": 2},
    "representation": {"step": "representation", **QUICK, "rank": 2},
    "calibrate": {"step": "calibrate", "images": 4, "choose": {"rho": [0.5, 2]}},
    "tint": {"step": "tint", **QUICK, "lr": 3e-2},
}
RELEASED = {**ALONE["representation"], "variant": "released"}
JOINT = [name for name in ALONE if name != "head"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_workplace(folder)
    return folder


def aligned(place: Path, out: Path, *steps: dict[str, Any]) -> tuple[Workshop, Result, Result]:
    """Merge and re-align, stages in a folder of their own."""
    merging = {"params": {"alpha": 0.5}}
    work = opened(write_recipe(place, merge=merging, realign=list(steps)))
    work.stages = workshop.Stages(out, work.stages.progress)
    merged = merge(work)
    return work, merged, realign(work, merged)


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


Reads = list[tuple[str, tuple[str, ...]]]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """The splits that are read, and the tasks whose truths are read with them."""
    seen: Reads = []
    whole = data.load_split

    def spy(
        loaded: LoadedRecipe, split: str, *, tasks: Sequence[str], progress: Progress
    ) -> Samples:
        seen.append((split, tuple(tasks)))
        return whole(loaded, split, tasks=tasks, progress=progress)

    for module in (workshop, bench):
        monkeypatch.setattr(module, "load_split", spy)
    return seen


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


def test_every_pixel_is_compared_in_one_batch_or_another() -> None:
    raw = torch.arange(8 * 12.0).reshape(1, 1, 8, 12)
    batches = [torch.tensor([row, column]) for row in range(4) for column in range(4)]
    seen = torch.cat([compared(index, (8, 12)).of(raw[0]).flatten() for index in batches])
    assert torch.equal(seen.sort().values, raw.flatten())


HEADS: dict[str, Any] = {"step": "head", "epochs": 3, "lr": 1e-3, "batch": 3}
TAUGHT = {**HEADS, "labels": False, "outputs": 1}


def test_heads_learn_from_experts_without_any_label(
    place: Path, tmp_path: Path, reads: Reads
) -> None:
    step = {**TAUGHT, "by": "teachers", "epochs": 8}
    learnt_on = {"root": "data", "select": "realign"}
    path = write_recipe(place, merge={"params": {"alpha": 0.5}}, data=learnt_on, realign=[step])
    work = opened(path)
    work.stages = workshop.Stages(tmp_path, work.stages.progress)
    log = realign(work, merge(work)).log
    (cost,) = of_realign(log)
    assert cost.images == {"realign": SPLITS["realign"], "select": SPLITS["realign"]}
    assert cost.labels == {}
    assert not [split for split, truths in reads if split == "realign" and truths]
    for one in log["steps"][0]["tasks"].values():
        assert one["epoch"] > 0  # nearer to the expert than before


def test_heads_of_a_shared_encoder_that_is_the_expert_need_no_change(
    place: Path, tmp_path: Path
) -> None:
    step = {**TAUGHT, "by": "teachers"}
    path = write_recipe(place, tasks=("depth",), merge={"params": {"alpha": 1.0}}, realign=[step])
    work = opened(path)
    work.stages = workshop.Stages(tmp_path, work.stages.progress)
    found = realign(work, merge(work))
    before, after = work.experts["depth"].head, part(found.tensors, "depth.")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    outcome = found.log["steps"][0]["tasks"]["depth"]
    assert (outcome["epoch"], outcome["metric"]) == (0, pytest.approx(0, abs=1e-6))


def test_labels_and_experts_together_are_another_lesson_than_either(
    place: Path, tmp_path: Path
) -> None:
    steps = [HEADS, TAUGHT, {**TAUGHT, "labels": True}, {**TAUGHT, "labels": True, "outputs": 5}]
    found = [aligned(place, tmp_path / str(i), step)[2].tensors for i, step in enumerate(steps)]
    weights = [torch.cat([t.flatten() for t in tensors.values()]) for tensors in found]
    for i, one in enumerate(weights):
        assert all(not torch.equal(one, other) for other in weights[i + 1 :])


def test_an_average_and_patience_are_the_heads_too(place: Path, tmp_path: Path) -> None:
    plain, averaged, short = (
        aligned(place, tmp_path / name, {**HEADS, **extra})[2].log["steps"][0]["tasks"]["depth"]
        for name, extra in (("a", {}), ("b", {"ema": 0.9}), ("c", {"lr": 1.0, "patience": 1}))
    )
    assert plain["history"] != averaged["history"]
    assert len(short["history"]) < len(plain["history"])


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


def test_an_average_of_the_weights_is_another_model(place: Path, tmp_path: Path) -> None:
    plain = aligned(place, tmp_path, ALONE["distill"])[2]
    averaged = aligned(place, tmp_path, {**ALONE["distill"], "ema": 0.9})[2]
    assert plain.log["steps"][0]["history"] != averaged.log["steps"][0]["history"]


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


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_maps_can_be_trained_alone(place: Path, tmp_path: Path, variant: str) -> None:
    form = {**ALONE["representation"], "variant": variant, "heads": "none", "by": "teachers"}
    work, _, found = aligned(place, tmp_path, {**form, "lr": 1e-2, "epochs": 6})
    for task, one in work.experts.items():  # with what a BatchNorm counts
        head = part(found.tensors, f"{task}.")
        assert all(torch.equal(head[key], tensor) for key, tensor in one.head.items())
    ups = [tensor for key, tensor in found.tensors.items() if key.endswith("up.weight")]
    assert len(ups) == 2
    assert all(up.any() for up in ups)


def test_heads_that_stood_still_are_trained_by_the_next_step(place: Path, tmp_path: Path) -> None:
    alone = {**ALONE["representation"], "heads": "none"}
    work, _, found = aligned(place, tmp_path, alone, {**ALONE["distill"], "lr": 1e-3})
    assert found.log["steps"][1]["epoch"] > 0
    head = part(found.tensors, "normals.")
    assert not all(torch.equal(head[k], t) for k, t in work.experts["normals"].head.items())


def test_maps_beside_blocks_are_made_once(tmp_path: Path) -> None:
    twice = [{"step": "representation"}, {"step": "representation"}]
    with pytest.raises(RecipeError, match="`representation` stands twice"):
        load_recipe(str(write_recipe(tmp_path, realign=twice)))


def test_blocks_with_maps_beside_them_are_not_calibrated(tmp_path: Path) -> None:
    steps = [{"step": "representation"}, {"step": "head"}, {"step": "calibrate"}]
    with pytest.raises(RecipeError, match="put it before `representation`"):
        load_recipe(str(write_recipe(tmp_path, realign=steps)))
    load_recipe(str(write_recipe(tmp_path, realign=steps[::-1])))


@pytest.mark.parametrize("maps", [ALONE["representation"], RELEASED], ids=["paper", "released"])
def test_maps_beside_blocks_outlive_the_steps_after_them(
    place: Path, tmp_path: Path, maps: dict[str, Any]
) -> None:
    steps = (maps, ALONE["lora"], ALONE["head"], ALONE["distill"])
    work, merged, found = aligned(place, tmp_path, *steps)
    encoder = shared_encoder(merged.tensors, found.tensors)
    assert len(set(encoder) - set(work.base)) == 4
    select = work.samples["select"]
    after = measure(work, encoder, split_heads(work, found.tensors), select)
    assert after == pytest.approx(found.log["metrics"])
    scores = [log["metric"] for log in found.log["steps"] if log["step"] != "head"]
    assert scores == sorted(scores)
