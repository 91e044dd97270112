"""simo-merge: the same file with and without a model, whole or not at all."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from simo_build.base import load_base
from simo_build.checkpoints import METADATA, encoder_file, read_metadata, read_tensors
from simo_build.cli import merge_command
from simo_build.encoder import Encoder
from simo_build.loading import LoadedRecipe, load_recipe
from simo_build.merging import merge, merge_to
from simo_build.progress import Silent
from simo_build.stages import Stages
from simo_build.statedict import StateDict, part
from simo_build.streamed import open_inputs, write_merged
from simo_build.workshop import Workshop
from simo_build.writing import FLUSH, tensors_file
from simo_runtime.errors import CheckpointError, RecipeError

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "rooms"
EXPERTS = {task: SAMPLE / "experts" / f"{task}.safetensors" for task in ("seg", "depth", "normals")}

# Elementwise, by whole tensors, over whole vectors, spectral, and with LiNeS on top.
MERGES: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"params": {"alpha": 0.3}},
    "alpha by layer": {"params": {"alpha": [0.1, 0.5]}},
    "average": {"method": "average"},
    "magmax": {"method": "magmax"},
    "lines": {"method": "lines", "params": {"beta": 0.4}},
    "consensus": {"method": "consensus", "params": {"alpha": 0.3, "threshold": 0.4}},
    "dare": {"method": "dare", "params": {"alpha": 0.3, "drop": 0.5}},
    "breadcrumbs": {"method": "breadcrumbs"},
    "ties": {"method": "ties"},
    "tsv_m": {"method": "tsv_m"},
    "lines on top": {"params": {"alpha": 0.3}, "lines": {"beta": 0.5, "alpha": 0.2}},
    "balanced lines on top": {"params": {"alpha": 0.3}, "lines": {"beta": 0.5}},
}

Open = Callable[..., LoadedRecipe]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample's tensors are small: cut them nevertheless, and not into equal pieces."""
    monkeypatch.setattr("simo_build.streamed.PIECE", 1000)


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Open the sample's recipe, without data, with other merging, base or experts."""

    def open_with(
        merging: dict[str, Any], base: Path = SAMPLE / "base.safetensors", **experts: Path
    ) -> LoadedRecipe:
        content = yaml.safe_load((SAMPLE / "rooms.yaml").read_text())
        for task, one in content["tasks"].items():
            one["expert"] = str({**EXPERTS, **experts}[task])
        recipe = {key: value for key, value in content.items() if key != "data"}
        path = tmp_path / "r.yaml"
        path.write_text(
            yaml.safe_dump(recipe | {"base": str(base), "merge": merging, "realign": []})
        )
        return load_recipe(str(path))

    return open_with


def streamed(loaded: LoadedRecipe, out: Path) -> Path:
    inputs = open_inputs(loaded)
    assert inputs is not None, "the sample must not need a model"
    assert write_merged(loaded, inputs, out)
    return out


def run(loaded: LoadedRecipe, out: Path) -> Result:
    recipe = str(loaded.folder / "r.yaml")
    return CliRunner().invoke(merge_command, ["--recipe", recipe, "--out", str(out)])


def changed(tmp_path: Path, source: Path, change: Callable[[StateDict], StateDict]) -> Path:
    """Write a checkpoint again with other tensors, under the same description."""
    tensors, metadata = read_tensors(source)
    path = tmp_path / f"changed-{source.name}"
    save_file(change({n: t.clone() for n, t in tensors.items()}), path, metadata=metadata)
    return path


@pytest.mark.parametrize("name", MERGES)
def test_the_file_is_the_same_byte_for_byte_with_a_model(
    name: str, opened: Open, tmp_path: Path
) -> None:
    loaded = opened(MERGES[name])
    with_model = tmp_path / "with.safetensors"
    merge_to(loaded, with_model, progress=Silent())
    without = streamed(loaded, tmp_path / "without.safetensors")
    assert without.read_bytes() == with_model.read_bytes()


def test_the_file_holds_what_a_build_merges(opened: Open, tmp_path: Path) -> None:
    loaded = opened(MERGES["task_arithmetic"])
    merged = merge(Workshop(loaded, Stages(tmp_path / ".stages", Silent()))).tensors
    found = part(load_file(streamed(loaded, tmp_path / "m.safetensors")), "encoder.")
    assert set(found) == set(merged)
    assert all(torch.equal(found[name], tensor) for name, tensor in merged.items())


def test_it_says_what_was_merged_how(opened: Open, tmp_path: Path) -> None:
    out = streamed(opened(MERGES["lines on top"]), tmp_path / "m.safetensors")
    about = json.loads(read_metadata(out)[METADATA])
    assert about["params"] == {"alpha": 0.3, "lines.alpha": 0.2, "lines.beta": 0.5}
    expert = json.loads(read_metadata(EXPERTS["seg"])[METADATA])
    assert about["base_hash"] == expert["base_hash"]
    assert set(about["experts"]) == set(EXPERTS)
    assert all(len(one) == 64 and one != "0" * 64 for one in about["experts"].values())


def test_a_merged_encoder_can_be_the_base_of_another_recipe(opened: Open, tmp_path: Path) -> None:
    out = streamed(opened(MERGES["average"]), tmp_path / "m.safetensors")
    loaded = opened(MERGES["average"], base=out)
    encoder = Encoder(loaded.recipe.encoder, loaded.recipe.image)
    load_base(loaded, encoder)
    found = part(load_file(out), "encoder.")
    assert all(torch.equal(found[name], tensor) for name, tensor in encoder.weights().items())


def test_the_command_takes_neither_a_model_nor_timm_where_none_is_needed(
    opened: Open, tmp_path: Path
) -> None:
    loaded, out = opened(MERGES["ties"]), tmp_path / "m.safetensors"
    code = (
        "import sys; from simo_build.cli import merge_command as m; "
        f"m(['--recipe', {str(loaded.folder / 'r.yaml')!r}, '-o', {str(out)!r}], "
        "standalone_mode=False); print('timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(out), "False"]


def test_what_a_base_has_beside_the_encoder_changes_nothing(opened: Open, tmp_path: Path) -> None:
    """As releases of DINOv2 and timm have: a mask token, a classifier."""
    base = changed(
        tmp_path,
        SAMPLE / "base.safetensors",
        lambda all_of: all_of | {"mask_token": torch.zeros(1, 96)},
    )
    plain = streamed(opened(MERGES["average"]), tmp_path / "plain.safetensors")
    given = opened(MERGES["average"], base=base)
    out = streamed(given, tmp_path / "m.safetensors")
    assert out.read_bytes() == plain.read_bytes()


def test_a_base_that_must_be_adapted_falls_through_to_the_model(
    opened: Open, tmp_path: Path
) -> None:
    base = changed(
        tmp_path,
        SAMPLE / "base.safetensors",
        lambda all_of: {n: t + 1 if n == "pos_embed" else t for n, t in all_of.items()},
    )
    loaded, out = opened(MERGES["average"], base=base), tmp_path / "m.safetensors"
    inputs = open_inputs(loaded)
    assert inputs is not None
    assert not write_merged(loaded, inputs, out)
    found = run(loaded, out)
    assert found.exit_code == 1
    assert "base_hash" in found.output
    assert [*tmp_path.glob("*m.safetensors*")] == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    value: float, opened: Open, tmp_path: Path
) -> None:
    def broken(tensors: StateDict) -> StateDict:
        tensors["encoder.blocks.0.norm1.weight"][0] = value
        return tensors

    expert, out = changed(tmp_path, EXPERTS["depth"], broken), tmp_path / "m.safetensors"
    found = run(opened(MERGES["magmax"], depth=expert), out)
    assert found.exit_code == 1
    assert f"{expert}: 1 tensors hold numbers that are not finite" in found.output
    assert "encoder.blocks.0.norm1.weight" in found.output
    assert not out.exists()


def test_a_large_finite_weight_is_no_fault(opened: Open, tmp_path: Path) -> None:
    """The sum of the weights overflows, none of them is infinite."""

    def large(tensors: StateDict) -> StateDict:
        tensors["encoder.blocks.0.norm1.weight"] = tensors["encoder.blocks.0.norm1.weight"].float()
        tensors["encoder.blocks.0.norm1.weight"][:3] = 3e38
        return tensors

    expert = changed(tmp_path, EXPERTS["depth"], large)
    assert open_inputs(opened(MERGES["average"], depth=expert)) is not None


def test_tensors_of_another_shape_are_refused(opened: Open, tmp_path: Path) -> None:
    def cut(tensors: StateDict) -> StateDict:
        wide = tensors["encoder.blocks.0.mlp.fc1.weight"]
        return tensors | {"encoder.blocks.0.mlp.fc1.weight": wide[:-1].clone()}

    expert = changed(tmp_path, EXPERTS["seg"], cut)
    with pytest.raises(CheckpointError, match=r"1 encoder tensors do not fit the base\n.*fc1"):
        open_inputs(opened(MERGES["average"], seg=expert))


@pytest.mark.parametrize(
    ("merging", "message"),
    [
        ({"params": {"alpha": "x"}}, "alpha"),
        ({"params": {}}, "needs alpha"),
        ({"method": "ties", "params": {"density": 2}}, "density"),
        ({"params": {"alpha": 0.3}, "lines": {"beta": 1, "alpha": "balanced"}, "x": 1}, "unknown"),
    ],
)
def test_wrong_parameters_are_refused_before_any_file_appears(
    merging: dict[str, Any], message: str, opened: Open, tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    try:
        loaded = opened(merging)
    except RecipeError as error:
        assert message in str(error)  # noqa: PT017  # some are seen when the recipe is read
        return
    found = run(loaded, out)
    assert found.exit_code == 1
    assert message in found.output
    assert [*tmp_path.glob("*m.safetensors*")] == []


def test_a_file_that_is_no_merged_encoder_is_not_overwritten(opened: Open, tmp_path: Path) -> None:
    expert = changed(tmp_path, EXPERTS["seg"], lambda tensors: tensors)
    before = expert.read_bytes()
    found = run(opened(MERGES["average"]), expert)
    assert found.exit_code == 1
    assert "not a merged encoder; it is not overwritten" in found.output
    assert expert.read_bytes() == before
    out = tmp_path / "m.safetensors"
    assert [run(opened(MERGES[name]), out).exit_code for name in ("average", "magmax")] == [0, 0]


def test_pieces_may_come_in_any_order(tmp_path: Path) -> None:
    values = torch.randn(3, 7)
    path = tmp_path / "t.safetensors"
    shapes = {"b": (3, 7), "a": (2,), "none": (0, 4), "one": ()}
    with tensors_file(path, shapes, {"x": "later"}) as file:
        file.put("b", 14, values[2])
        file.put("one", 0, torch.tensor(4.0))
        file.put("b", 0, values[:2])
        file.put("none", 0, torch.empty(0, 4))
        file.put("a", 0, torch.arange(2.0))
        file.describe({"x": "known"})
        assert not path.exists()
    found = load_file(path)
    assert torch.equal(found["b"], values)
    assert found["one"].shape == ()
    assert found["none"].shape == (0, 4)
    assert found["a"].tolist() == [0, 1]
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"x": "known"}


def test_more_than_the_disk_is_told_of_at_once(tmp_path: Path) -> None:
    """Several flushes happen while the file grows."""
    path, count = tmp_path / "t.safetensors", FLUSH // 4
    with tensors_file(path, {"a": (3, count)}, {}) as file:
        for row in range(3):
            file.put("a", row * count, torch.full((count,), float(row)))
    assert load_file(path)["a"].mean(dim=1).tolist() == [0, 1, 2]


def test_a_file_that_is_not_whole_does_not_appear(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with (
        pytest.raises(ValueError, match="8 bytes given, its tensors 12"),
        tensors_file(path, {"a": (3,)}, {}) as file,
    ):
        file.put("a", 0, torch.zeros(2))
    with (
        pytest.raises(ValueError, match="bytes of header"),
        encoder_file(path, {"a": torch.zeros(0)}, {"x": 1}) as file,
    ):
        file.describe({})
    assert [*tmp_path.iterdir()] == []
