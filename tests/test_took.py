"""How long trainings took: told beside their files, summed over runs that were killed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simo_build import phases
from simo_build.loading import load_recipe
from simo_build.multitask import train_multitask
from simo_build.progress import Silent
from simo_build.report import Sheet, table
from simo_build.rows import jointly
from simo_build.saved import States
from simo_build.stages import Stages
from simo_build.took import beside, noted
from simo_build.train import train_expert
from simo_build.workshop import Workshop
from tests.test_train_resume import Killed, kill_at
from tests.tiny import SPLITS, TASKS, write_recipe, write_workplace

HEAD, FULL = 4, 60  # seconds by the clock below: of 2 epochs and of 3, two batches each


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose experts are not there."""
    folder = tmp_path_factory.mktemp("tiny")
    write_workplace(folder)
    tasks = {task: {"kind": task, "target": {"folder": task}} for task in TASKS}
    phase = {"head": {"epochs": 2, "lr": 1e-3}, "full": {"epochs": 3, "lr": 1e-3}}
    train = {"batch": 4, **phase}
    data = {"root": "data", "train": "realign"}
    return write_recipe(folder, tasks, train=train, data=data)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands but for a second in every batch of a head and ten in every one of all."""
    now = 0.0

    def slow(name: str, seconds: float) -> None:
        plain: Callable[..., Any] = getattr(phases, name)

        def slowed(*args: Any, **kwargs: Any) -> Any:
            nonlocal now
            now += seconds
            return plain(*args, **kwargs)

        monkeypatch.setattr(phases, name, slowed)

    slow("take", 1.0)
    slow("augmented", 10.0)
    monkeypatch.setattr(time, "perf_counter", lambda: now)


def trained(recipe: Path, out: Path, task: str = "depth") -> Path:
    return train_expert(load_recipe(str(recipe), experts=out), task, Silent())


def test_the_seconds_of_an_expert_lie_beside_it(recipe: Path, tmp_path: Path) -> None:
    path = trained(recipe, tmp_path)
    assert noted(beside(path)) == HEAD + FULL
    trained(recipe, tmp_path)  # is kept
    assert noted(beside(path)) == HEAD + FULL


def test_an_expert_that_was_killed_counts_what_it_had_trained(recipe: Path, tmp_path: Path) -> None:
    for name, call in (("take", 4), ("augmented", 4), ("augmented", 3)):
        with kill_at(phases, name, call), pytest.raises(Killed):
            trained(recipe, tmp_path)
    assert noted(beside(trained(recipe, tmp_path))) == HEAD + FULL


def test_joint_training_that_was_killed_counts_heads_and_all(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(str(recipe), experts=tmp_path)
    for name, call in (("take", 6), ("take", 4), ("augmented", 3)):
        with kill_at(phases, name, call), pytest.raises(Killed):
            train_multitask(loaded, "train", Silent())
    path = train_multitask(loaded, "train", Silent())
    assert noted(beside(path)) == 2 * HEAD + FULL


def test_rows_say_what_experts_and_joint_training_took(recipe: Path, tmp_path: Path) -> None:
    for task in TASKS:
        trained(recipe, tmp_path, task)
    loaded = load_recipe(str(recipe), experts=tmp_path)
    sheet = Sheet(Workshop(loaded, Stages(tmp_path / "stages", Silent())), "select")
    sheet.experts()
    sheet.models(jointly("train")(sheet.work))
    experts, joint = sheet.rows
    used = {"train": SPLITS["realign"], "select": SPLITS["select"]}
    assert experts["images"] == experts["labels"] == used
    assert experts["steps"] == len(TASKS) * 2 * (2 + 3)
    assert experts["seconds"] == {f"expert {task}": HEAD + FULL for task in TASKS}
    assert joint["seconds"] == {"joint, train": 2 * HEAD + FULL}
    shown = table({**sheet.document(), "comparisons": []})
    assert "6 train, 3 select" in shown
    assert "expert depth 64.0, expert normals 64.0" in shown


def test_files_without_their_seconds_have_a_dash(recipe: Path, tmp_path: Path) -> None:
    for task in TASKS:
        beside(trained(recipe, tmp_path, task)).unlink()
    loaded = load_recipe(str(recipe), experts=tmp_path)
    sheet = Sheet(Workshop(loaded, Stages(tmp_path / "stages", Silent())), "select")
    sheet.experts()
    assert sheet.rows[0]["seconds"] == {}
    assert table({**sheet.document(), "comparisons": []}).endswith("  -")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seconds": "soon"}', '{"seconds": null}'])
def test_seconds_that_cannot_be_read_are_not_made_up(text: str, tmp_path: Path) -> None:
    (tmp_path / "depth.seconds.json").write_text(text)
    assert noted(beside(tmp_path / "depth.safetensors")) is None


def test_a_stage_that_was_killed_counts_what_it_had_trained(tmp_path: Path) -> None:
    stages = Stages(tmp_path, Silent())

    def killed(states: States) -> Any:
        states.of("1").write({"w": torch.ones(1)}, {"seconds": 40.0})
        states.of("2").write({"w": torch.ones(1)}, {"seconds": 2.0})
        raise Killed

    with pytest.raises(Killed):
        stages.run_in_parts("realign", {}, killed)
    assert stages.run_in_parts("realign", {}, lambda _: ({}, {})).seconds == 42.0
    assert stages.run_in_parts("realign", {}, killed).seconds == 42.0  # is kept


def test_states_that_are_not_gone_on_with_are_not_counted(tmp_path: Path) -> None:
    target = tmp_path / "depth.safetensors"
    States(target, "other code", Silent()).of("head").write({}, {"seconds": 40.0})
    (tmp_path / "depth.full.state").write_bytes(b"damaged")
    assert States(target, "code", Silent()).clock()() == 0.0
