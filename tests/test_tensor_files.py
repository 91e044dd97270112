"""Files of tensors: what is no whole one is refused, nothing is run, and writing leaves no half."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from simo_build.checkpoints import read_tensors, write_tensors
from simo_build.statedict import state_hash
from simo_runtime.errors import CheckpointError
from tests.weights import head, read, written


@pytest.fixture
def expert_file(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 8, 100, 2000, -1])
def test_a_truncated_file_is_refused(expert_file: Path, length: int) -> None:
    expert_file.write_bytes(expert_file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"seg\.safetensors: not a whole safetensors file"):
        read(expert_file)


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("These are no weights.")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name}: there is no such file"):
        read_tensors(tmp_path / name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_pickle_of_plain_tensors_is_read(tmp_path: Path, wrap: str | None, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save({wrap: head()} if wrap else head(), path)
    assert state_hash(read_tensors(path)[0]) == state_hash(head())


class Malicious:
    """An object whose unpickling runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_would_run_a_command_is_refused_without_running_it(
    tmp_path: Path, how: str
) -> None:
    path, marker = tmp_path / "x.pt", tmp_path / "marker"
    content = {"w": torch.ones(1), "x": Malicious(f"touch {marker}")}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match="nothing else is unpickled"):
        read_tensors(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content", [5, [torch.ones(1)], {"w": torch.ones(1), "epoch": 3}, {1: torch.ones(1)}]
)
def test_a_pickle_of_anything_but_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a dictionary of tensors"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_pickle_is_refused(tmp_path: Path, share: float, legacy: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save(head(), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"x\.pt: cannot be read as plain tensors"):
        read_tensors(path)


@pytest.mark.parametrize("text", ["Not weights.", "(lp0\n.", "\x80\x02]q\x00(K\x01K\x02e."])
def test_text_in_place_of_a_pickle_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.pt").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"x\.pt: "):
        read_tensors(tmp_path / "x.pt")


def test_a_write_leaves_one_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "new" / "x.safetensors", head(), {})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, head(), {})
    before = path.read_bytes()
    shared = torch.ones(4)
    with pytest.raises(RuntimeError):
        write_tensors(path, {"a": shared, "b": shared}, {})  # safetensors refuses to
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_write_that_cannot_be_renamed_leaves_no_partial_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="directory"):
        write_tensors(tmp_path / "x.safetensors", head(), {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "x.safetensors", {"w": whole.t()}, {})
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")[0]["w"], whole.t())


def test_a_disk_that_is_full_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half of it")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("simo_build.checkpoints.save_file", full)
    with pytest.raises(
        CheckpointError, match=r"a\.safetensors: cannot be written, it needs .*No space"
    ):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    assert list(tmp_path.iterdir()) == []
