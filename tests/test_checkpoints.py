"""Experts on disk: one comes back as it was, and one that does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from simo_build.checkpoints import METADATA, read_expert, read_tensors, write_expert
from simo_build.statedict import state_hash
from simo_runtime.errors import CheckpointError
from tests.weights import about, head, loaded, make_encoder, read, rewritten, written


@pytest.fixture
def expert_file(tmp_path: Path) -> Path:
    return written(tmp_path)


def test_an_expert_comes_back_bit_by_bit(expert_file: Path) -> None:
    expert = read(expert_file)
    weights = make_encoder(loaded(expert_file.parent)).weights()
    assert state_hash(expert.encoder) == state_hash(weights)
    assert state_hash(expert.head) == state_hash(head())


def test_an_expert_knows_its_task_and_its_file(expert_file: Path) -> None:
    expert = read(expert_file)
    assert (expert.task, expert.source) == ("seg", str(expert_file))


def test_an_expert_in_half_precision_is_read_as_the_nearest_float32(tmp_path: Path) -> None:
    given = loaded(tmp_path)
    weights = make_encoder(given).weights()
    path = tmp_path / "seg.safetensors"
    write_expert(path, encoder=weights, head=head(), about=about(given), half=True)
    expert = read(path)
    assert all(torch.equal(expert.encoder[n], t.half().float()) for n, t in weights.items())


def test_half_precision_halves_the_file(expert_file: Path) -> None:
    given = loaded(expert_file.parent)
    small = expert_file.with_name("small.safetensors")
    weights = make_encoder(given).weights()
    write_expert(small, encoder=weights, head=head(), about=about(given), half=True)
    assert small.stat().st_size < 0.6 * expert_file.stat().st_size


def test_half_precision_leaves_alone_what_it_would_overflow_and_what_counts(
    tmp_path: Path,
) -> None:
    given, path = loaded(tmp_path), tmp_path / "seg.safetensors"
    large = {**head(), "norm.running_var": torch.tensor([1.0, 1e5])}
    write_expert(path, encoder={}, head=large, about=about(given), half=True)
    assert state_hash(read(path).head) == state_hash(large)


def test_equal_experts_are_equal_files(expert_file: Path) -> None:
    given, other = loaded(expert_file.parent), expert_file.with_name("other.safetensors")
    write_expert(other, encoder=make_encoder(given).weights(), head=head(), about=about(given))
    assert other.read_bytes() == expert_file.read_bytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"size": (32, 64)}, r"image\.size: \[32, 48\] here, \[32, 64\] in the recipe"),
        ({"taps": (2, 3)}, r"encoder\.taps: \[1, 3\] here, \[2, 3\] in the recipe"),
        ({"labels": ("wall", "bed")}, r"task\.labels: \['wall', 'floor'\] here, \['wall', 'bed'\]"),
        ({"depth": 4}, r"encoder\.options: .*'depth': 3.* here, .*'depth': 4.* in the recipe"),
    ],
)
def test_an_expert_of_another_recipe_is_refused_with_both_values(
    expert_file: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(CheckpointError, match=told):
        read(expert_file, **changes)


def test_an_expert_of_another_base_is_refused_with_both_hashes(expert_file: Path) -> None:
    with pytest.raises(CheckpointError, match="base_hash: abc here, xyz in the recipe"):
        read_expert(expert_file, like=about(loaded(expert_file.parent), "xyz"))


def test_an_expert_with_a_setting_that_the_recipe_does_not_know_is_refused(
    expert_file: Path,
) -> None:
    tensors, metadata = read_tensors(expert_file)
    told = json.loads(metadata[METADATA])
    told["image"]["crop"] = 5
    rewritten(expert_file, tensors, {METADATA: json.dumps(told)})
    with pytest.raises(CheckpointError, match=r"image\.crop: 5 here, None in the recipe"):
        read(expert_file)


def test_more_about_an_expert_than_must_fit_is_welcome(expert_file: Path) -> None:
    tensors, metadata = read_tensors(expert_file)
    told = {**json.loads(metadata[METADATA]), "select": {"full": 0.5}}
    rewritten(expert_file, tensors, {METADATA: json.dumps(told)})
    assert read(expert_file).about["select"] == {"full": 0.5}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"other": "{}"},
        {METADATA: "not JSON"},
        {METADATA: "[]"},
        {METADATA: '"text"'},
        {METADATA: "null"},
        {METADATA: "{}"},
        {METADATA: '{"task": "seg"}'},
        {METADATA: '{"task": {"name": 5}}'},
        {METADATA: "[" * 100_000},
    ],
    ids=["none", "other", "text", "list", "string", "null", "empty", "task", "name", "deep"],
)
def test_a_file_whose_metadata_is_no_experts_is_refused(
    expert_file: Path, metadata: dict[str, str]
) -> None:
    rewritten(expert_file, read_tensors(expert_file)[0], metadata)
    with pytest.raises(CheckpointError, match="not an expert, its metadata has no `simo` entry"):
        read(expert_file)


def test_foreign_tensors_in_an_expert_are_named(expert_file: Path) -> None:
    tensors, metadata = read_tensors(expert_file)
    rewritten(expert_file, {**tensors, "decoder.w": torch.ones(1)}, metadata)
    with pytest.raises(CheckpointError, match=r"(?s)1 tensors are neither .*  decoder\.w"):
        read(expert_file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_expert_with_weights_that_are_not_finite_is_refused_by_tensor(
    expert_file: Path, value: float
) -> None:
    tensors, metadata = read_tensors(expert_file)
    tensors["encoder.norm.weight"][3] = value
    rewritten(expert_file, tensors, metadata)
    with pytest.raises(CheckpointError, match=r"(?s)not finite.*encoder\.norm\.weight"):
        read(expert_file)
