"""simo-eval: rows, controls, finished bundles, and the document that holds them."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from simo_build import report
from simo_build.build import build
from simo_build.cli import eval_command
from simo_build.loading import load_recipe
from simo_build.progress import Silent
from simo_build.rows import CONTROLS, controls, head_step
from simo_build.steps import HeadStep
from simo_runtime.bundle import MANIFEST
from simo_runtime.errors import BundleError, UnknownNameError
from tests.tiny import SPLITS, opened, write_recipe, write_workplace

DISTILL = {"step": "distill", "views": 1, "epochs": 2, "lr": 3e-3, "batch": 3}
HEAD = {"step": "head", "epochs": 2, "lr": 1e-3}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_workplace(folder)
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    loaded = load_recipe(
        str(write_recipe(place, realign=[DISTILL, HEAD])), experts=place / "experts"
    )
    return report.study(
        loaded, place / "out" / "tiny", "select", progress=Silent(), with_controls=True
    )


@pytest.fixture
def bundle(found: dict[str, Any], place: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that was measured."""
    return Path(shutil.copytree(place / "out" / "tiny", tmp_path / "tiny"))


JOINT = ["joint training on realign", "joint training on train"]


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in found["rows"]}


def test_every_stage_and_control_has_a_row(found: dict[str, Any]) -> None:
    assert [row["row"] for row in found["rows"]] == [
        "experts, one model per task",
        "base + experts' heads",
        "merged + experts' heads",
        "base, re-aligned",
        "merged, re-aligned",
        "the bundle, in ONNX Runtime",
        "base + re-aligned heads",
        "average + re-aligned heads",
        "merged + re-aligned heads",
        *JOINT,
    ]


def test_joint_training_says_what_it_learnt_from(found: dict[str, Any]) -> None:
    for role, name in zip(("realign", "train"), JOINT, strict=True):
        row = rows(found)[name]
        used = {role: SPLITS[role], "select": SPLITS["select"]}
        assert row["images"] == row["labels"] == used
        assert row["steps"] > 0
        assert row["seconds"][f"joint, {role}"] > 0


def test_the_document_can_be_read_back(found: dict[str, Any], tmp_path: Path) -> None:
    report.write_json(found, tmp_path / "found.json")
    read = json.loads((tmp_path / "found.json").read_text())
    assert read["schema"] == "simo.eval/2"
    assert (read["split"], read["images"]) == ("select", SPLITS["select"])
    assert read["bootstrap"]["resamples"] == 2000
    for row in read["rows"]:
        assert {"metrics", "performance", "interval", "parameters", "images", "labels"} <= set(row)
        for name in ("normalised_performance", "relative_drop"):
            low, high = row["interval"][name]
            assert low <= high


def test_the_experts_are_what_all_are_compared_with(found: dict[str, Any]) -> None:
    experts = rows(found)["experts, one model per task"]
    assert experts["performance"] == {"depth": 1.0, "normals": 1.0}
    assert experts["interval"]["normalised_performance"] == (1.0, 1.0)
    assert experts["relative_drop"] == 0.0
    assert experts["steps"] is None  # these experts do not tell


def test_equation_1_is_the_mean_of_the_tasks_performances(found: dict[str, Any]) -> None:
    for row in found["rows"]:
        mean = sum(row["performance"].values()) / len(row["performance"])
        assert row["normalised_performance"] == pytest.approx(mean)


def test_rows_tell_what_they_took(found: dict[str, Any]) -> None:
    named = rows(found)
    both = {"realign": SPLITS["realign"], "select": SPLITS["select"]}
    aligned = named["merged, re-aligned"]
    assert (aligned["images"], aligned["labels"]) == (both, both)
    assert aligned["steps"] == 2 * 4 + 2 * 2  # 12 images in batches of 3; two heads, one batch
    assert set(aligned["seconds"]) == {"merge", "re-align: all steps"}
    assert set(named["the bundle, in ONNX Runtime"]["seconds"]) == {*aligned["seconds"], "export"}
    assert named["merged + experts' heads"]["labels"] == {"select": SPLITS["select"]}
    assert named["base + experts' heads"]["images"] == {}
    average = named["average + re-aligned heads"]
    assert average["steps"] == 2 * 2
    alone, shared = (named[row]["parameters"] for row in (next(iter(named)), "base, re-aligned"))
    assert alone["encoder"] == 2 * shared["encoder"]
    assert alone["heads"] == shared["heads"]


def test_what_the_recipe_asks_for_is_compared_with_all_other_rows(found: dict[str, Any]) -> None:
    named, compared = rows(found), found["comparisons"]
    assert {one["row"] for one in compared} == {"merged, re-aligned"}
    assert {one["against"] for one in compared} == set(named) - {
        "merged, re-aligned",
        "experts, one model per task",
    }
    for one in compared:
        for name in ("normalised_performance", "relative_drop"):
            apart = named[one["row"]][name] - named[one["against"]][name]
            assert one[name] == pytest.approx(apart)
            low, high = one["interval"][name]
            assert low <= high


def test_the_table_has_every_row_and_its_intervals(found: dict[str, Any]) -> None:
    told = report.table(found)
    for row in found["rows"]:
        assert sum(line.startswith(row["row"] + " ") for line in told.splitlines()) >= 2
    low, high = rows(found)["base + experts' heads"]["interval"]["relative_drop"]
    assert f"[{100 * low:+.2f}, {100 * high:+.2f}] %" in told
    assert "depth, absolute error" in told
    assert max(map(len, told.splitlines())) < 160


def test_a_control_that_is_the_recipe_itself_is_left_out(place: Path) -> None:
    merging = {"method": "average"}
    work = opened(write_recipe(place, merge=merging, realign=[HEAD]))
    assert [model.name for model in controls(work)] == JOINT
    work = opened(write_recipe(place, merge={"params": {"alpha": 0.5}}, realign=[HEAD]))
    assert [model.name for model in controls(work)] == [
        "average + re-aligned heads",
        *JOINT,
    ]


def test_controls_leave_the_recipe_as_it_was(place: Path) -> None:
    work = opened(write_recipe(place, realign=[DISTILL]))
    before = work.loaded
    assert len(list(controls(work))) == len(CONTROLS)
    assert work.loaded is before


def test_heads_are_re_aligned_as_the_recipe_does_it(place: Path) -> None:
    own = load_recipe(
        str(write_recipe(place, realign=[DISTILL, HEAD])), experts=place / "experts"
    ).recipe
    assert head_step(own) == own.realign[1]
    other = load_recipe(str(write_recipe(place, realign=[DISTILL]))).recipe
    assert head_step(other) == HeadStep(step="head")


def measured(
    place: Path, *bundles: Path, precisions: Sequence[str] = ("fp32",), **changes: Any
) -> dict[str, Any]:
    loaded = load_recipe(str(write_recipe(place, **changes)))
    stages = place / "out" / ".stages"
    return report.study_bundles(
        loaded, bundles, "select", stages=stages, progress=Silent(), precisions=precisions
    )


def test_a_bundle_is_measured_in_every_precision_that_is_asked_for(
    place: Path, tmp_path: Path
) -> None:
    wide = {"cosine": 0.1, "patch_cosine": 0.1, "frobenius": 1, "argmax": 0.01, "metric_change": 1}
    recipe = write_recipe(place, export={"precisions": ["fp32", "int8"], "gate": {"int8": wide}})
    build(load_recipe(str(recipe)), tmp_path / "narrow", progress=Silent())
    told = measured(place, tmp_path / "narrow", precisions=("fp32", "int8"))
    plain, narrow = told["rows"][1:]
    assert [plain["row"], narrow["row"]] == ["bundle tiny", "bundle tiny, int8"]
    assert narrow["metrics"] != plain["metrics"]
    assert told["comparisons"][0]["against"] == "bundle tiny, int8"
    with pytest.raises(UnknownNameError, match="unknown precision 'fp16'"):
        measured(place, tmp_path / "narrow", precisions=("fp16",))


def test_a_precision_is_of_a_finished_bundle(place: Path) -> None:
    options = ["--recipe", str(place / "tiny.yaml"), "--precision", "int8"]
    told = CliRunner().invoke(eval_command, options)
    assert told.exit_code == 2
    assert "give it with --bundle" in told.output


def test_a_finished_bundle_is_measured_as_in_its_study(
    found: dict[str, Any], bundle: Path, place: Path
) -> None:
    told = measured(place, bundle, realign=[], merge={"params": {"alpha": 0.1}})
    (experts, row) = told["rows"]
    assert experts["metrics"] == rows(found)[experts["row"]]["metrics"]
    same = rows(found)["the bundle, in ONNX Runtime"]
    for key in ("metrics", "interval", "parameters", "images", "labels", "steps"):
        assert row[key] == same[key]
    assert told["bundles"][row["row"]]["key"]
    assert str(place) not in json.dumps(told)


def test_bundles_are_compared_with_the_first(bundle: Path, place: Path) -> None:
    other = Path(shutil.copytree(bundle, bundle.parent / "other"))
    told = measured(place, bundle, other)
    assert [row["row"] for row in told["rows"][1:]] == ["bundle tiny", "bundle other"]
    (compared,) = told["comparisons"]
    assert (compared["row"], compared["against"]) == ("bundle tiny", "bundle other")
    assert compared["interval"]["normalised_performance"] == (0.0, 0.0)


def test_a_bundle_of_another_image_size_is_measured_at_the_recipes(
    found: dict[str, Any], bundle: Path, place: Path
) -> None:
    work = opened(write_recipe(place))
    sheet = report.Sheet(work, "select")
    images = sheet.gauge.samples.images
    large = images.repeat(2, axis=1).repeat(2, axis=2)
    truths = {
        t: m.repeat(2, axis=1).repeat(2, axis=2) for t, m in sheet.gauge.samples.truths.items()
    }
    sheet.gauge.samples = replace(sheet.gauge.samples, images=large, truths=truths)
    told = sheet.gauge.bundle(report.Bundle.open(bundle)).metrics()
    same = rows(found)["the bundle, in ONNX Runtime"]["metrics"]
    assert told["depth"] == pytest.approx(same["depth"], rel=0.05)  # maps are enlarged linearly
    assert told["depth"] != same["depth"]


def edit(bundle: Path, **changes: Any) -> None:
    path = bundle / MANIFEST
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if key == "random_weights":
            data[key] = value
        else:
            data["tasks"][0][key] = value
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "disparity", "metric": "disparity_error"}, "depth is disparity in the bundle"),
        ({"random_weights": True}, "is for measuring speed; it has no accuracy"),
    ],
    ids=["kind", "random"],
)
def test_a_bundle_that_does_not_fit_is_refused(
    bundle: Path, place: Path, changes: dict[str, Any], message: str
) -> None:
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        measured(place, bundle)


def test_a_task_that_the_recipe_does_not_have_is_named(bundle: Path, place: Path) -> None:
    loaded = load_recipe(str(write_recipe(place)))
    other = loaded.recipe.model_copy(update={"tasks": {"depths": loaded.recipe.tasks["depth"]}})
    with pytest.raises(BundleError, match="unknown task 'depth'; did you mean 'depths'"):
        report.with_tasks_of(replace(loaded, recipe=other), [report.Bundle.open(bundle)])


def test_other_classes_are_refused() -> None:
    from simo_runtime.tasks import TaskSpec

    one, other = (
        TaskSpec(
            name="seg", kind="segmentation", channels=2, metric="mean_iou", labels=("wall", last)
        )
        for last in ("floor", "bed")
    )
    report.check_task("b and r", one, one)
    with pytest.raises(BundleError, match="wall, floor there, wall, bed here"):
        report.check_task("b and r", one, other)


def test_a_recipe_of_more_tasks_measures_those_of_the_bundle(
    found: dict[str, Any], bundle: Path, place: Path
) -> None:
    more = load_recipe(str(write_recipe(place)))
    tasks = {**more.recipe.tasks, "far": more.recipe.tasks["depth"]}
    wide = replace(more, recipe=more.recipe.model_copy(update={"tasks": tasks}))
    kept = report.with_tasks_of(wide, [report.Bundle.open(bundle)])
    assert list(kept.recipe.tasks) == ["depth", "normals"]


@pytest.mark.parametrize("option", [["--controls"], ["-o", "out"]], ids=str)
def test_a_finished_bundle_and_what_builds_exclude_each_other(
    tmp_path: Path, option: list[str]
) -> None:
    (tmp_path / "b").mkdir()
    command = ["--recipe", "r.yaml", "--bundle", str(tmp_path / "b"), *option]
    told = CliRunner().invoke(eval_command, command)
    assert told.exit_code == 2
    assert "--bundle measures what is finished" in told.output
