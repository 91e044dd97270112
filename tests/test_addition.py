"""simo-build --add-task: one more head for a finished bundle, and what may change by it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from simo_build.addition.task import add_task
from simo_build.build import build
from simo_build.cli import build_command
from simo_build.loading import load_recipe
from simo_build.progress import Silent
from simo_runtime.bundle import MANIFEST, Bundle, sha256_of
from simo_runtime.errors import ExportError, RecipeError, SimoError, UnknownNameError
from simo_runtime.predictor import Predictor
from tests.tiny import SIZE, write_recipe, write_workplace

PRECISIONS = {"export": {"precisions": ["fp32", "fp16", "int8", "fp8"]}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace whose bundle has depth alone."""
    folder = tmp_path_factory.mktemp("addition")
    write_workplace(folder)
    recipe = write_recipe(folder, tasks=("depth",), **PRECISIONS)
    build(load_recipe(str(recipe)), folder / "bundle", progress=Silent())
    write_recipe(folder, **PRECISIONS)
    return folder


@pytest.fixture(scope="module")
def bundles(place: Path) -> tuple[Bundle, Bundle]:
    """The bundle before and after normals were added, by the command."""
    after = Path(shutil.copytree(place / "bundle", place / "after"))
    command = ["--recipe", str(place / "tiny.yaml"), "--add-task", "normals", "-o", str(after)]
    told = CliRunner().invoke(build_command, command)
    assert told.exit_code == 0, told.output
    assert told.stdout.strip() == str(after)
    return Bundle.open(place / "bundle"), Bundle.open(after)


def test_no_other_file_changes_by_a_byte(bundles: tuple[Bundle, Bundle]) -> None:
    before, after = ({p.name: sha256_of(p) for p in b.root.iterdir()} for b in bundles)
    changed = {name for name in before if after.get(name) != before[name]}
    joints = {files.joint for files in bundles[0].manifest.graphs.values()}
    assert changed == {MANIFEST, "golden.json", *joints}
    assert {name.split(".")[0] for name in set(after) - set(before)} == {"normals"}


def test_it_is_in_every_precision_and_in_the_joint_graphs(bundles: tuple[Bundle, Bundle]) -> None:
    manifest = bundles[1].manifest
    assert list(manifest.graphs) == list(bundles[0].manifest.graphs)
    assert [task.name for task in manifest.tasks] == ["depth", "normals"]
    for files in manifest.graphs.values():
        assert set(files.heads) == {"depth", "normals"}
    heads = {kind: files.heads["normals"] for kind, files in manifest.graphs.items()}
    assert heads == {
        "fp32": "normals.onnx",
        "int8": "normals.onnx",
        "fp16": "normals.fp16.onnx",
        "fp8": "normals.fp16.onnx",
    }
    (added,) = manifest.provenance["added"]
    assert added["task"] == "normals"
    assert {row["precision"] for row in added["gate"]} == set(manifest.graphs)
    assert manifest.provenance["key"] != bundles[0].manifest.provenance["key"]


def test_old_tasks_say_what_they_said_and_the_new_one_joins_them(
    bundles: tuple[Bundle, Bundle],
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    with Predictor.open(bundles[0], threads=1) as predict:
        before = predict(pixels, colours="RGB")
    found = {}
    for joint in (False, True):
        with Predictor.open(bundles[1], threads=1, joint=joint) as predict:
            found[joint] = predict(pixels, colours="RGB")
    np.testing.assert_array_equal(found[False]["depth"].values, before["depth"].values)
    for task in ("depth", "normals"):
        one, other = (found[joint][task].values for joint in (False, True))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("task", "changes", "kind", "fault"),
    [
        ("norms", {}, UnknownNameError, "did you mean 'normals'"),
        ("depth", {}, RecipeError, "has a task 'depth' already"),
        ("normals", {"image": {"size": [32, 32]}}, RecipeError, "image.size: .* here, .* there"),
        (
            "normals",
            {
                "encoder": {
                    "model": "vit_tiny_patch16_224",
                    "options": {"embed_dim": 48, "depth": 2, "num_heads": 2},
                    "taps": [1, 2],
                }
            },
            RecipeError,
            r"tokens and width \(7, 48\) here, \(7, 32\) there",
        ),
    ],
)
def test_what_cannot_be_added_is_refused_and_changes_nothing(
    place: Path, task: str, changes: dict[str, object], kind: type[SimoError], fault: str
) -> None:
    recipe = write_recipe(place, **{**PRECISIONS, **changes})
    before = {path: sha256_of(path) for path in (place / "bundle").iterdir()}
    with pytest.raises(kind, match=fault):
        add_task(load_recipe(str(recipe)), task, place / "bundle", progress=Silent())
    assert {path: sha256_of(path) for path in (place / "bundle").iterdir()} == before


def test_a_head_that_fails_the_gate_leaves_the_bundle_as_it_was(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simo_build.addition import bundle as addition

    recipe = write_recipe(place, **PRECISIONS)
    before = {path: sha256_of(path) for path in (place / "bundle").iterdir()}
    real = addition.compare

    def worse(*given: object) -> object:
        tasks, taps = real(*given)  # type: ignore[arg-type]  # as they came
        return [replace(one, cosine=0.5) for one in tasks], taps

    monkeypatch.setattr(addition, "compare", worse)
    with pytest.raises(ExportError, match=r"(?s)differs from PyTorch\n.*fp32 normals: cosine"):
        add_task(load_recipe(str(recipe)), "normals", place / "bundle", progress=Silent())
    assert {path: sha256_of(path) for path in (place / "bundle").iterdir()} == before


@pytest.mark.parametrize("option", ["--dry-run", "--with-experts"])
def test_an_option_without_an_effect_is_refused(place: Path, option: str) -> None:
    command = ["--recipe", str(place / "tiny.yaml"), "--add-task", "normals", option]
    told = CliRunner().invoke(build_command, command)
    assert told.exit_code == 2
    assert f"{option} has no effect with --add-task" in told.stderr
