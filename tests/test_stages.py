"""Stages: kept under the hash of their inputs, made again when anything changed or is damaged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from simo_build.progress import Silent
from simo_build.stages import Result, Stages
from simo_build.statedict import StateDict
from simo_runtime.errors import TrainError


class Maker:
    """Makes a result and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> tuple[StateDict, dict[str, Any]]:
        self.calls += 1
        return {"w": torch.arange(3.0)}, {"metric": 0.5, "taps": (1, 3)}


def run(root: Path, make: Maker, *, name: str = "merge", **inputs: object) -> Result:
    return Stages(root, Silent()).run(name, inputs or {"base": "abc"}, make)


def only_file(root: Path) -> Path:
    (path,) = root.iterdir()
    return path


def test_a_stage_with_the_same_inputs_is_kept(tmp_path: Path) -> None:
    make = Maker()
    run(tmp_path, make)
    run(tmp_path, make)
    assert make.calls == 1


def test_a_kept_result_is_the_one_that_was_made(tmp_path: Path) -> None:
    made, kept = run(tmp_path, Maker()), run(tmp_path, Maker())
    assert (made.log, made.key) == (kept.log, kept.key)
    assert torch.equal(made.tensors["w"], kept.tensors["w"])


def test_the_order_of_inputs_does_not_matter(tmp_path: Path) -> None:
    make = Maker()
    run(tmp_path, make, base="abc", steps=[1])
    run(tmp_path, make, steps=[1], base="abc")
    assert make.calls == 1


def test_a_changed_input_makes_it_again(tmp_path: Path) -> None:
    make = Maker()
    run(tmp_path, make, base="abc")
    run(tmp_path, make, base="abd")
    assert make.calls == 2


def test_another_stage_with_the_same_inputs_has_its_own_result(tmp_path: Path) -> None:
    make = Maker()
    run(tmp_path, make, name="merge")
    run(tmp_path, make, name="realign")
    assert make.calls == 2


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_result_is_made_again(tmp_path: Path, share: float) -> None:
    run(tmp_path, Maker())
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert torch.equal(run(tmp_path, Maker()).tensors["w"], torch.arange(3.0))


def test_a_result_that_was_made_again_is_kept(tmp_path: Path) -> None:
    run(tmp_path, Maker())
    only_file(tmp_path).write_bytes(b"")
    make = Maker()
    run(tmp_path, make)
    run(tmp_path, make)
    assert make.calls == 1


def test_a_file_without_a_log_is_made_again(tmp_path: Path) -> None:
    run(tmp_path, Maker())
    save_file({"w": torch.zeros(3)}, only_file(tmp_path))
    assert torch.equal(run(tmp_path, Maker()).tensors["w"], torch.arange(3.0))


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> tuple[StateDict, dict[str, Any]]:
        raise TrainError("the loss is nan")

    with pytest.raises(TrainError):
        Stages(tmp_path, Silent()).run("merge", {}, fail)
    assert not list(tmp_path.iterdir())


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Stages(tmp_path, Silent()).run("merge", {}, lambda: ({}, {"not JSON": object()}))
    assert not list(tmp_path.iterdir())
