"""Recipes of which nothing asks for labels are built without any truth."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from simo_build.build import build
from simo_build.cli import build_command, eval_command, train_command
from simo_build.loading import LoadedRecipe, load_recipe
from simo_build.merging import check_recipe
from simo_build.progress import Silent
from simo_runtime.errors import RecipeError
from tests.tiny import TASKS, write_recipe, write_workplace

BLIND: dict[str, Any] = {task: {"kind": task, "expert": f"{task}.safetensors"} for task in TASKS}
MERGE = {"params": {"alpha": 0.5}}
STEPS: dict[str, dict[str, Any]] = {
    "calibrate": {"step": "calibrate", "images": 4},
    "distill": {"step": "distill", "views": 1, "epochs": 1, "by": "teachers", "batch": 3},
    "head": {"step": "head", "epochs": 1, "labels": False, "outputs": 1, "by": "teachers"},
    "tint": {"step": "tint", "epochs": 1, "by": "teachers", "batch": 3},
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_workplace(tmp_path)
    return tmp_path


def recipe(place: Path, **changes: Any) -> LoadedRecipe:
    path = write_recipe(place, BLIND, **{"merge": MERGE, "export": {"images": 2}, **changes})
    return load_recipe(str(path))


def without_truths(place: Path) -> None:
    for task in TASKS:
        shutil.rmtree(place / "data" / task)


def test_a_bundle_needs_images_alone(place: Path) -> None:
    without_truths(place)
    steps = list(STEPS.values())
    bundle = build(recipe(place, realign=steps), place / "bundles" / "blind", progress=Silent())
    provenance = bundle.manifest.provenance
    assert provenance["realign"]["labels"] == provenance["realign"]["select_labels"] == 0
    assert provenance["realign"]["metrics"] == {}
    assert {one["metric_torch"] for one in provenance["gate"]["found"]} == {None}
    told = (bundle.root / "report.md").read_text()
    assert "After every stage" not in told
    assert "What re-alignment did" in told
    shown = (bundle.root / "report.html").read_text()
    assert "re-aligned" in shown
    assert "truth" not in shown


def test_the_plan_says_so_and_finds_no_fault(place: Path) -> None:
    without_truths(place)
    recipe(place, realign=[STEPS["distill"]])
    told = CliRunner().invoke(build_command, ["--recipe", str(place / "tiny.yaml"), "--dry-run"])
    assert told.exit_code == 0, told.output
    assert "realign: 6 images, no labels" in told.output


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"realign": [{"step": "distill", "views": 1, "epochs": 1}]},
            r"realign\.0 \(distill\): by is select",
        ),
        ({"realign": [{"step": "head"}]}, r"realign\.0 \(head\): labels is true"),
        (
            {"realign": [{"step": "calibrate", "images": 4, "choose": {"ridge": [0.1, 0.2]}}]},
            r"realign\.0 \(calibrate\): by is sel",
        ),
        ({"merge": {"choose": {"alpha": [0.5, 1.0]}}}, r"merge\.choose, by the select split"),
        ({"merge": {"method": "supermerge"}}, r"supermerge learns from labels"),
        ({"merge": {"method": "fisher"}, "realign": []}, None),
        ({"train_missing": True}, r"train_missing: training needs labels"),
    ],
)
def test_what_asks_for_labels_is_named(place: Path, changes: Any, told: str | None) -> None:
    loaded = recipe(place, **changes)
    if told is None:
        check_recipe(loaded)
        return
    with pytest.raises(RecipeError, match=rf"tasks\.depth: `target` says where(.|\n)*{told}"):
        check_recipe(loaded)


@pytest.mark.parametrize(
    ("command", "told"),
    [(eval_command, "measuring needs it"), (train_command, "training needs it")],
)
def test_measuring_and_training_need_truths(place: Path, command: Any, told: str) -> None:
    recipe(place)
    options = ["--recipe", str(place / "tiny.yaml")]
    options += ["--task", "depth"] if command is train_command else []
    found = CliRunner().invoke(command, options)
    assert found.exit_code == 1
    assert told in found.output
