"""simo-build: the same bundle every time, resumed after a kill, and clear words for bad input."""

import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from simo_runtime.bundle import REPORTS, Bundle

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "rooms"
COMMAND = Path(sys.executable).parent / "simo-build"


def build(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def recipe_with(folder: Path, **changes: object) -> Path:
    """Write the sample's recipe with some keys changed, its files beside it."""
    content = yaml.safe_load((SAMPLE / "rooms.yaml").read_text())
    content["base"] = str(SAMPLE / "base.safetensors")
    for task, part in content["tasks"].items():
        part["expert"] = str(SAMPLE / "experts" / f"{task}.safetensors")
    content["merge"] = {"method": "task_arithmetic", "choose": {"alpha": [0.3, 0.6]}}
    content["realign"] = [{"step": "head", "epochs": 2, "lr": 1e-3}]
    content |= changes
    path = folder / "quick.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def quick(
    rooms_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("quick")
    options = ["--data", rooms_data, "--tensorboard", "curves"]
    told = build("--recipe", recipe_with(folder), *options, cwd=folder)
    assert told.returncode == 0, told.stderr
    return folder, told


def test_tensorboard_shows_every_step(
    quick: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(quick[0] / "curves")).Reload()
    for task in ("seg", "depth", "normals"):
        events = read.Scalars(f"1-head/re-align_{task}/loss")
        assert [event.step for event in events] == [1, 2]


def test_stdout_is_the_bundles_path_and_nothing_else(
    quick: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, told = quick
    assert told.stdout == "bundles/rooms\n"
    assert Bundle.open(folder / told.stdout.strip()).manifest.name == "rooms"


def test_the_manifest_says_where_everything_comes_from(
    quick: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    provenance = Bundle.open(quick[0] / "bundles" / "rooms").manifest.provenance
    assert set(provenance["inputs"]) == {"base", "experts", "data", "splits", "targets"}
    assert set(provenance["inputs"]["experts"]) == {"seg", "depth", "normals"}
    assert "task_arithmetic" in provenance["recipe"]
    assert {"torch", "timm", "onnx", "simo-runtime"} <= set(provenance["versions"])
    assert provenance["merge"]["params"]["alpha"] in (0.3, 0.6)
    assert set(provenance["realign"]["metrics"]) == {"seg", "depth", "normals"}
    for found in provenance["gate"]["found"]:
        assert found["cosine"] >= 0.9999
        change = abs(found["metric_onnx"] / found["metric_torch"] - 1)
        assert change <= 0.001


def test_the_same_recipe_gives_the_same_bytes(
    quick: tuple[Path, subprocess.CompletedProcess[str]], rooms_data: Path, tmp_path: Path
) -> None:
    first = quick[0] / "bundles" / "rooms"
    told = build("--recipe", quick[0] / "quick.yaml", "--data", rooms_data, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    names = [path.name for path in first.iterdir() if path.name not in REPORTS]
    same, other, missing = filecmp.cmpfiles(first, tmp_path / "bundles" / "rooms", names, False)
    assert (sorted(same), other, missing) == (sorted(names), [], [])


def test_nothing_is_done_twice(
    quick: tuple[Path, subprocess.CompletedProcess[str]], rooms_data: Path
) -> None:
    told = build("--recipe", "quick.yaml", "--data", rooms_data, cwd=quick[0])
    assert told.returncode == 0
    assert "merge: kept" in told.stderr
    assert "realign: kept" in told.stderr
    assert "export: the bundle is there already" in told.stderr
    assert "report: bundles/rooms/report.html is there already" in told.stderr


def test_a_killed_build_resumes_and_leaves_no_half_bundle(rooms_data: Path, tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path)
    command = [COMMAND, "--recipe", recipe, "--data", rooms_data]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("realign"):
                running.kill()
    assert running.returncode == -9
    assert not (tmp_path / "bundles" / "rooms").exists()
    told = build("--recipe", recipe, "--data", rooms_data, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "merge: kept" in told.stderr
    Bundle.open(tmp_path / "bundles" / "rooms")
    left = [path.name for path in (tmp_path / "bundles").iterdir()]
    assert sorted(left) == [".stages", "rooms"]


def test_a_folder_with_something_else_in_it_is_left_alone(
    rooms_data: Path, quick: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    recipe = quick[0] / "quick.yaml"
    told = build("--recipe", recipe, "--data", rooms_data, "-o", tmp_path / "mine", cwd=quick[0])
    assert told.returncode == 1
    assert "there is something else here" in told.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_damaged_bundle_is_built_again(
    quick: tuple[Path, subprocess.CompletedProcess[str]], rooms_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(quick[0] / "bundles", tmp_path / "bundles")
    (tmp_path / "bundles" / "rooms" / "seg.onnx").write_bytes(b"")
    told = build("--recipe", quick[0] / "quick.yaml", "--data", rooms_data, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    Bundle.open(tmp_path / "bundles" / "rooms")


def refused(told: subprocess.CompletedProcess[str], folder: Path) -> str:
    assert told.returncode in (1, 2)
    assert told.stdout == ""
    assert "Traceback" not in told.stderr
    assert not (folder / "bundles" / "rooms").exists()
    return told.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merg": {}}, "merg: unknown key; did you mean 'merge'?"),
        ({"merge": {"method": "task_aritmetic"}}, "did you mean 'task_arithmetic'?"),
        ({"merge": {"method": "task_arithmetic", "params": {"alfa": 1}}}, "did you mean 'alpha'?"),
        ({"merge": {"method": "task_arithmetic"}}, "task_arithmetic needs alpha"),
        (
            {"merge": {"method": "ties", "choose": {"density": [0.2, 20]}}},
            "merge.density is 20.0; it must be above 0 and at most 1",
        ),
        (
            {"merge": {"params": {"alpha": 1}, "lines": {"bta": 1}}},
            "merge.lines.bta: unknown key; did you mean 'beta'?",
        ),
        ({"base": "gone.safetensors"}, "gone.safetensors: there is no such file"),
        (
            {"image": {"size": [120, 160], "mean": [0.4, 0.5, 0.5]}},
            "image.mean: [0.5, 0.5, 0.5] here, [0.4, 0.5, 0.5] in the recipe",
        ),
        ({"base": "random(0)"}, "is for measuring speed"),
        ({"data": {"root": "$DATA/nothing"}}, "there is no such folder"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_recipe_that_cannot_work_gets_clear_words(
    rooms_data: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    recipe = recipe_with(tmp_path, **changes)
    told = build("--recipe", recipe, "--data", rooms_data, cwd=tmp_path)
    assert message in refused(told, tmp_path)


def test_a_missing_data_folder_is_asked_for(tmp_path: Path) -> None:
    told = build("--recipe", recipe_with(tmp_path), cwd=tmp_path)
    assert "give --data DIR or set SIMO_DATA" in refused(told, tmp_path)


def test_a_truncated_expert_is_named(rooms_data: Path, tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path)
    whole = (SAMPLE / "experts" / "seg.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    recipe.write_text(
        recipe.read_text().replace(str(SAMPLE / "experts" / "seg.safetensors"), "cut.safetensors")
    )
    told = build("--recipe", recipe, "--data", rooms_data, cwd=tmp_path)
    assert "cut.safetensors: not a whole safetensors file" in refused(told, tmp_path)


def test_a_missing_expert_says_how_to_get_one(rooms_data: Path, tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path)
    content = yaml.safe_load(recipe.read_text())
    del content["tasks"]["depth"]["expert"]
    recipe.write_text(yaml.safe_dump(content))
    told = build("--recipe", recipe, "--data", rooms_data, cwd=tmp_path)
    assert "simo-train --recipe" in refused(told, tmp_path)
    assert "--task depth" in told.stderr


def test_a_gate_that_fails_keeps_the_bundle_away(rooms_data: Path, tmp_path: Path) -> None:
    # A recipe may ask for more than float32 can give; then there must be no bundle.
    limits = {"fp32": {"cosine": 1.0, "metric_change": 1e-12}}
    recipe = recipe_with(tmp_path, export={"images": 2, "gate": limits})
    told = build("--recipe", recipe, "--data", rooms_data, cwd=tmp_path)
    assert "the exported graphs differ from PyTorch" in refused(told, tmp_path)
    assert "the difference rises most at " in told.stderr


def test_random_weights_are_marked(tmp_path: Path) -> None:
    content = yaml.safe_load((SAMPLE / "rooms.yaml").read_text())
    content = {key: content[key] for key in ("name", "encoder", "image", "tasks")}
    for part in content["tasks"].values():
        del part["target"], part["expert"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**content, "base": "random(3)"}))
    told = build("--recipe", "r.yaml", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    manifest = json.loads((tmp_path / "bundles" / "rooms" / "manifest.json").read_text())
    assert manifest["random_weights"] is True
    measured = subprocess.run(
        [COMMAND.parent / "simo-eval", "--recipe", "r.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert measured.returncode == 1
    assert "it has no accuracy" in measured.stderr
