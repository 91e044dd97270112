"""The experts' own bundles: one a task, beside the shared one, with the expert's own answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from simo_build.cli import build_command
from simo_build.expert_bundles import build_experts, experts_folder
from simo_build.loading import load_recipe
from simo_build.losses import TORCH_KINDS
from simo_build.progress import Silent
from simo_runtime.bundle import Bundle
from simo_runtime.errors import CheckpointError, ExportError
from simo_runtime.predictor import Predictor
from tests.tiny import SIZE, TASKS, opened, write_recipe, write_workplace

RANDOM = {
    "base": "random(0)",
    "data": None,
    "merge": {"method": "task_arithmetic"},
    "realign": [],
    "tasks": {"depth": {"kind": "depth"}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Bundle]]:
    recipe = write_workplace(tmp_path_factory.mktemp("singles"))
    out = recipe.parent / "bundles" / "tiny"
    return recipe, build_experts(load_recipe(str(recipe)), out, progress=Silent())


def test_every_expert_has_a_bundle_of_its_one_task(made: tuple[Path, dict[str, Bundle]]) -> None:
    recipe, bundles = made
    folder = recipe.parent / "bundles" / "tiny.experts"
    assert {task: bundle.root for task, bundle in bundles.items()} == {
        task: folder / task for task in TASKS
    }
    for task, bundle in bundles.items():
        assert [spec.name for spec in bundle.manifest.tasks] == [task]
        assert bundle.manifest.name == f"tiny.{task}"
        assert bundle.manifest.provenance["expert"] == task
        assert bundle.manifest.provenance["gate"]["found"][0]["cosine"] > 0.9999


def test_it_answers_as_the_expert_does_in_pytorch(made: tuple[Path, dict[str, Bundle]]) -> None:
    recipe, bundles = made
    work = opened(recipe)
    pixels = np.random.default_rng(1).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)
    for task, bundle in bundles.items():
        work.encoder.load(work.experts[task].encoder, source=task)
        with torch.inference_mode(), Predictor.open(bundle) as predict:
            raw = work.expert_heads()[task](work.encoder(torch.from_numpy(pixels)))
            wanted = TORCH_KINDS[work.recipe.tasks[task].kind].finish(raw)[0].numpy()
            found = predict(pixels[0], colours="RGB")[task].values
        if wanted.ndim == 3:
            wanted = np.moveaxis(wanted, 0, -1)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_second_time_the_bundles_stay(made: tuple[Path, dict[str, Bundle]]) -> None:
    recipe, bundles = made
    before = [bundle.graph("encoder").stat().st_mtime_ns for bundle in bundles.values()]
    out = recipe.parent / "bundles" / "tiny"
    again = build_experts(load_recipe(str(recipe)), out, progress=Silent())
    assert before == [bundle.graph("encoder").stat().st_mtime_ns for bundle in again.values()]


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    recipe = write_workplace(tmp_path)
    (tmp_path / "normals.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the expert of normals is missing"):
        build_experts(load_recipe(str(recipe)), tmp_path / "out", progress=Silent())
    assert not experts_folder(tmp_path / "out").exists()


def test_something_else_in_the_place_is_not_overwritten(tmp_path: Path) -> None:
    recipe = write_workplace(tmp_path)
    taken = experts_folder(tmp_path / "out") / "normals"
    taken.mkdir(parents=True)
    (taken / "letter.txt").write_text("mine")
    with pytest.raises(ExportError, match="there is something else here"):
        build_experts(load_recipe(str(recipe)), tmp_path / "out", progress=Silent())
    assert not (taken.parent / "depth").exists()


def test_a_random_recipe_gives_models_of_its_shapes(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, **RANDOM)
    command = ["--recipe", str(recipe), "--with-experts", "-o", str(tmp_path / "out")]
    planned = CliRunner().invoke(build_command, [*command, "--dry-run"])
    assert f"1 bundle of an expert to {tmp_path / 'out.experts'}" in planned.stdout
    told = CliRunner().invoke(build_command, command)
    assert told.exit_code == 0, told.output
    assert told.stdout.split() == [str(tmp_path / name) for name in ("out", "out.experts/depth")]
    assert Bundle.open(tmp_path / "out.experts" / "depth").manifest.random_weights
