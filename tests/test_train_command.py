"""simo-train and simo-eval: an expert from data, and a table from a recipe."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from simo_build.checkpoints import read_tensors

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "rooms"
COMMANDS = Path(sys.executable).parent


def run(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [COMMANDS / name, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def workplace(rooms_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose depth expert is missing; `realign` stands in for training images."""
    folder = tmp_path_factory.mktemp("train")
    content = yaml.safe_load((SAMPLE / "rooms.yaml").read_text())
    content["base"] = str(SAMPLE / "base.safetensors")
    content["data"]["train"] = "realign"
    content["tasks"] = {"depth": content["tasks"]["depth"]}
    del content["tasks"]["depth"]["expert"]
    phases = {"head": {"epochs": 2, "lr": 1e-3}, "full": {"epochs": 1, "lr": 1e-4}}
    content["train"] = {"batch": 4, **phases}
    content["merge"] = {"method": "task_arithmetic", "params": {"alpha": 1.0}}
    content["realign"] = []
    (folder / "r.yaml").write_text(yaml.safe_dump(content))
    (folder / "t.yaml").write_text(yaml.safe_dump({**content, "train_missing": True}))
    told = run(
        "simo-train", "--recipe", "r.yaml", "--task", "depth", "--data", rooms_data, cwd=folder
    )
    assert told.returncode == 0, told.stderr
    (folder / "expert").write_text(told.stdout.strip())
    return folder


def test_the_expert_says_what_it_is(workplace: Path) -> None:
    path = workplace / (workplace / "expert").read_text()
    tensors, metadata = read_tensors(path)
    about = json.loads(metadata["simo"])
    assert about["encoder"]["model"] == "vit_tiny_patch16_224"
    assert about["image"]["size"] == [120, 160]
    assert about["task"]["kind"] == "depth"
    assert len(about["base_hash"]) == 64
    assert all(name.startswith(("encoder.", "head.")) for name in tensors)


def test_an_expert_that_is_there_is_kept(workplace: Path, rooms_data: Path) -> None:
    path = workplace / (workplace / "expert").read_text()
    before = path.stat().st_mtime_ns
    options = ["--recipe", "r.yaml", "--task", "all", "--data", rooms_data]
    told = run("simo-train", *options, cwd=workplace)
    assert told.returncode == 0
    assert "depth: kept" in told.stderr
    assert path.stat().st_mtime_ns == before


def test_simo_build_trains_only_when_the_recipe_says_so(workplace: Path, rooms_data: Path) -> None:
    options = ["--data", rooms_data, "--experts", "others", "-o", "b/depth"]
    told = run("simo-build", "--recipe", "r.yaml", *options, cwd=workplace)
    assert told.returncode == 1
    assert "train_missing: true" in told.stderr
    told = run("simo-build", "--recipe", "t.yaml", *options, cwd=workplace)
    assert told.returncode == 0, told.stderr
    assert list((workplace / "others").rglob("depth-*.safetensors"))


def test_an_unknown_task_gets_the_closest_name(workplace: Path, rooms_data: Path) -> None:
    options = ["--recipe", "r.yaml", "--task", "dept", "--data", rooms_data]
    told = run("simo-train", *options, cwd=workplace)
    assert told.returncode == 1
    assert "did you mean 'depth'?" in told.stderr


def test_a_single_task_merged_with_alpha_one_is_its_expert(
    workplace: Path, rooms_data: Path
) -> None:
    options = ["--recipe", "r.yaml", "--data", rooms_data, "--json", "found.json"]
    told = run("simo-eval", *options, cwd=workplace)
    assert told.returncode == 0, told.stderr
    found = json.loads((workplace / "found.json").read_text())
    rows = {row["row"]: row for row in found["rows"]}
    assert rows["merged + experts' heads"]["normalised_performance"] == pytest.approx(1.0, abs=1e-4)
    assert rows["the bundle, in ONNX Runtime"]["relative_drop"] == pytest.approx(0.0, abs=1e-3)
    assert found["images"] == 8
    assert str(rooms_data) not in json.dumps(found)
    assert "absolute error" in told.stdout


def test_no_data_is_an_error_that_says_so(workplace: Path) -> None:
    told = run("simo-train", "--recipe", "r.yaml", "--task", "depth", cwd=workplace)
    assert told.returncode == 1
    assert "SIMO_DATA" in told.stderr
