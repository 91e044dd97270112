"""simo-train and re-alignment steps go on after a kill; what they keep meanwhile disappears."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from simo_build import cli, phases, room, train
from simo_build.build import realign
from simo_build.loading import load_recipe
from simo_build.merging import merge
from simo_build.multitask import train_multitask
from simo_build.progress import Bars, Silent
from simo_build.realign import head, joint
from simo_build.realign.bench import Bench, SharedModel
from simo_build.scalars import Scalars, TensorBoard
from simo_build.stages import Result, Stages
from simo_build.steps import HeadStep
from simo_build.took import beside
from simo_build.train import train_expert
from simo_runtime.errors import DataError, TrainError
from tests.tiny import TASKS, opened, write_recipe, write_workplace

QUICK: dict[str, Any] = {"epochs": 3, "lr": 3e-3, "batch": 4}
STEPS: list[dict[str, Any]] = [
    {"step": "distill", "views": 1, **QUICK, "ema": 0.5},
    {"step": "head", **QUICK},
]


class Killed(BaseException):
    """What no code expects."""


class Said(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_workplace(folder)
    return folder


@pytest.fixture(scope="module")
def untrained(place: Path) -> Path:
    """A recipe whose depth expert is not there; images change at random in its second phase."""
    content = yaml.safe_load(write_recipe(place, ("depth",)).read_text())
    del content["tasks"]["depth"]["expert"]
    content["data"]["train"] = "realign"
    phases = {"head": {"epochs": 2, "lr": 1e-2}, "full": {"epochs": 3, "lr": 1e-2}}
    change = {"scales": [1.0, 1.5], "jitter": {"brightness": 0.3}}
    content["train"] = {"batch": 4, **phases, **change}
    path = place / "untrained.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def trained(recipe: Path, out: Path, progress: Silent | None = None) -> Path:
    return train_expert(load_recipe(str(recipe), experts=out), "depth", progress or Silent())


@contextmanager
def kill_at(owner: object, name: str, call: int) -> Iterator[None]:
    """Let a function raise when it is called for the n-th time."""
    plain: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return plain(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        yield


def test_an_expert_is_the_same_file_after_kills_in_both_phases(
    untrained: Path, tmp_path: Path
) -> None:
    whole = trained(untrained, tmp_path / "whole")
    for name, call in (("take", 4), ("augmented", 2), ("augmented", 3)):
        with kill_at(phases, name, call), pytest.raises(Killed):
            trained(untrained, tmp_path / "killed")
    said = Said()
    with kill_at(phases, "take", 1):  # the head's phase is done and needs no features
        found = trained(untrained, tmp_path / "killed", said)
    assert found.read_bytes() == whole.read_bytes()
    assert set(found.parent.iterdir()) == {found, beside(found)}
    assert any(line.startswith("depth, head: kept, ") for line in said.lines)
    assert any(line.startswith("depth, all: goes on after epoch 1 of 3, ") for line in said.lines)


def test_a_state_of_other_code_is_not_gone_on_with(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kill_at(phases, "augmented", 4), pytest.raises(Killed):
        trained(untrained, tmp_path)
    monkeypatch.setattr(train, "code_hash", lambda: "other code")
    said = Said()
    trained(untrained, tmp_path, said)
    assert len([line for line in said.lines if "training starts afresh" in line]) == 2


def test_training_that_cannot_go_on_keeps_what_it_has(untrained: Path, tmp_path: Path) -> None:
    def broken(images: torch.Tensor, truths: Mapping[str, torch.Tensor], *_: object) -> Any:
        return images, {task: truth * float("nan") for task, truth in truths.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "augmented", broken)
        with pytest.raises(TrainError, match=r"depth, all: the loss is nan in epoch 1"):
            trained(untrained, tmp_path)
    with pytest.raises(TrainError, match=r"an earlier run .* stopped: depth, all: the loss is nan"):
        trained(untrained, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


class Numbers:
    """Remembers what would be drawn."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, set[str]]] = []

    def write(self, label: str, values: Mapping[str, float], epoch: int) -> None:
        self.rows.append((label, epoch, set(values)))


def test_the_numbers_of_every_epoch_are_given(untrained: Path, tmp_path: Path) -> None:
    numbers = Numbers()
    train_expert(load_recipe(str(untrained), experts=tmp_path), "depth", Silent(), numbers)
    start, names = {"lr", "absolute_error"}, {"loss", "lr", "absolute_error", "seconds_per_step"}
    assert numbers.rows == [
        ("depth, head", 0, start),
        *(("depth, head", epoch, names) for epoch in (1, 2)),
        ("depth, all", 0, start),
        *(("depth, all", epoch, names) for epoch in (1, 2, 3)),
    ]


def test_tensorboard_shows_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="it is an extra: simo-runtime[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.write("depth, head", {"loss": 0.5}, 3)
    read = EventAccumulator(str(tmp_path)).Reload()
    (event,) = read.Scalars("depth/head/loss")
    assert (event.step, event.value) == (3, 0.5)


@pytest.mark.parametrize("command", ["train_command", "build_command"])
def test_without_tensorboard_one_line_says_what_to_install(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    options = ["--recipe", str(untrained), "--tensorboard", str(tmp_path)]
    if command == "train_command":
        options += ["--task", "depth"]
    told = CliRunner().invoke(getattr(cli, command), options)
    assert told.exit_code == 1
    assert "pip install 'simo-runtime[tensorboard]'" in told.output


# Joint training, of two tasks without experts


@pytest.fixture(scope="module")
def jointly(untrained: Path) -> Path:
    content = yaml.safe_load(untrained.read_text())
    content["tasks"] = {task: {"kind": task, "target": {"folder": task}} for task in TASKS}
    path = untrained.with_name("jointly.yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def trained_jointly(recipe: Path, out: Path, progress: Silent | None = None) -> Path:
    loaded = load_recipe(str(recipe), experts=out)
    return train_multitask(loaded, "train", progress or Silent())


def test_joint_training_is_the_same_file_after_kills(jointly: Path, tmp_path: Path) -> None:
    whole = trained_jointly(jointly, tmp_path / "whole")
    # in the second epoch of the first head and of the second, and in the second and third of all
    for name, call in (("take", 4), ("take", 4), ("augmented", 3), ("augmented", 3)):
        with kill_at(phases, name, call), pytest.raises(Killed):
            trained_jointly(jointly, tmp_path / "killed")
    said = Said()
    found = trained_jointly(jointly, tmp_path / "killed", said)
    assert found.read_bytes() == whole.read_bytes()
    assert "joint-heads: kept from an earlier build" in said.lines
    assert any(line.startswith("joint, all: goes on after epoch 2 of 3, ") for line in said.lines)
    assert not list((tmp_path / "killed").rglob("*.state"))


def test_heads_that_are_done_are_not_trained_again(jointly: Path, tmp_path: Path) -> None:
    with kill_at(phases, "take", 6), pytest.raises(Killed):  # in the second head
        trained_jointly(jointly, tmp_path)
    assert len(list(tmp_path.rglob("*.state"))) == 2
    said = Said()
    trained_jointly(jointly, tmp_path, said)
    assert any(line.startswith("depth, head: kept, ") for line in said.lines)
    assert any(line.startswith("normals, head: goes on after epoch 0 ") for line in said.lines)


def test_joint_training_gives_its_numbers_too(jointly: Path, tmp_path: Path) -> None:
    numbers = Numbers()
    loaded = load_recipe(str(jointly), experts=tmp_path)
    train_multitask(loaded, "train", Silent(), numbers)
    names = {"loss", "lr", "seconds_per_step"}
    assert numbers.rows[4:] == [
        *[(f"{TASKS[1]}, head", epoch, {*names, "mean_angle"}) for epoch in (1, 2)],
        ("joint, all", 0, {"lr", "eq. 1"}),
        *[("joint, all", epoch, {*names, "eq. 1"}) for epoch in (1, 2, 3)],
    ]


@pytest.mark.parametrize("command", ["merge_command", "eval_command", "relate_command"])
def test_what_runs_in_one_process_refuses_several(
    untrained: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = CliRunner().invoke(getattr(cli, command), ["--recipe", str(untrained)])
    assert told.exit_code == 1
    assert "WORLD_SIZE is 2, but this runs in one process" in told.output


def test_a_search_refuses_several_processes(
    untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = ["--recipe", str(untrained), "--task", "joint", "--search", "1"]
    told = CliRunner().invoke(cli.train_command, options)
    assert told.exit_code == 1
    assert "simo-train without --search and simo-build are those that use several" in told.output


def test_a_bar_shows_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bars, written = Bars(), []
    monkeypatch.setattr(sys.stderr, "write", written.append)
    for _ in bars.track(range(4), "epoch 1/2"):
        bars.note("loss 0.25")
        time.sleep(0.06)  # a bar is drawn ten times a second
    bars.note("nothing is followed any more")
    assert re.search(r"epoch 1/2: .*loss 0.25", "".join(written))
    assert "any more" not in "".join(written)


def aligned(
    place: Path,
    out: Path,
    progress: Silent | None = None,
    scalars: Scalars | None = None,
    steps: list[dict[str, Any]] = STEPS,
) -> Result:
    work = opened(write_recipe(place, merge={"params": {"alpha": 0.5}}, realign=steps))
    work.stages, work.scalars = Stages(out, progress or Silent()), scalars
    return realign(work, merge(work))


def test_steps_of_realignment_give_their_numbers_apart(place: Path, tmp_path: Path) -> None:
    numbers = Numbers()
    aligned(place, tmp_path, scalars=numbers)
    labels = ["1-distill, re-align", *(f"2-head, re-align {task}" for task in TASKS)]
    seen = {label: [row[1] for row in numbers.rows if row[0] == label] for label in labels}
    assert all(epochs == [0, 1, 2, 3] for epochs in seen.values())
    assert len(numbers.rows) == 12


def test_steps_of_realignment_go_on_after_kills(place: Path, tmp_path: Path) -> None:
    whole = aligned(place, tmp_path / "whole")
    kills = ((joint.Lessons, "loss", 8), (head, "take", 5), (head, "take", 4))
    for owner, name, call in kills:
        with kill_at(owner, name, call), pytest.raises(Killed):
            aligned(place, tmp_path / "killed")
    said = Said()
    found = aligned(place, tmp_path / "killed", said)
    assert found.log == whole.log
    assert all(torch.equal(whole.tensors[key], found.tensors[key]) for key in whole.tensors)
    assert not list((tmp_path / "killed").glob("*.state"))
    assert any(line.startswith("re-align: kept, ") for line in said.lines)
    assert any(line.startswith("re-align heads: goes on after epoch 2") for line in said.lines)


@pytest.mark.parametrize(
    "step",
    [
        {"step": "lora", "rank": 2},
        {"step": "representation", "rank": 2},
        {"step": "tint"},
        {"step": "distill", "precision": "bf16"},  # with fresh views, enlarged and recoloured
    ],
    ids=lambda step: str(step["step"]),
)
def test_every_step_that_trains_goes_on_bit_for_bit(
    place: Path, tmp_path: Path, step: dict[str, Any]
) -> None:
    steps = [{**QUICK, **step}]
    whole = aligned(place, tmp_path / "whole", steps=steps)
    epoch = whole.log["steps"][0]["updates"] // QUICK["epochs"]
    with kill_at(joint.Lessons, "loss", epoch + 2), pytest.raises(Killed):
        aligned(place, tmp_path / "killed", steps=steps)
    said = Said()
    found = aligned(place, tmp_path / "killed", said, steps=steps)
    assert any(line.startswith("re-align: goes on after epoch 1 of 3") for line in said.lines)
    assert found.log == whole.log
    assert all(torch.equal(whole.tensors[key], found.tensors[key]) for key in whole.tensors)


def benched(place: Path, out: Path) -> tuple[Bench, SharedModel]:
    work = opened(write_recipe(place))
    work.stages = Stages(out, Silent())
    return Bench(work), SharedModel(work.base, work.expert_heads())


@pytest.mark.parametrize("flip", [False, True])
def test_heads_in_one_pass_are_those_trained_one_by_one(
    place: Path, tmp_path: Path, flip: bool
) -> None:
    step = HeadStep(step="head", flip=flip, **QUICK)
    bench, model = benched(place, tmp_path)
    outcomes, weights = head.trained(bench, model, step)
    assert len(outcomes) > 1
    for task, one in benched(place, tmp_path)[1].heads.items():
        alone = SharedModel(model.encoder, {task: one})
        outcome, found = head.trained(bench, alone, step)
        assert outcome == {task: outcomes[task]}
        assert all(torch.equal(found[task][key], weights[task][key]) for key in weights[task])


def test_heads_are_the_same_on_features_in_files(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = HeadStep(step="head", **QUICK)
    outcomes, weights = head.trained(*benched(place, tmp_path), step)
    monkeypatch.setattr(room, "LIMIT", 1000)
    again, found = head.trained(*benched(place, tmp_path), step)
    assert again == outcomes
    assert all(torch.equal(found[t][key], weights[t][key]) for t in weights for key in weights[t])


def test_no_room_for_features_is_told_by_the_step(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, model = benched(place, tmp_path)
    for role in ("realign", "select"):
        bench.labelled(role)

    def full(file: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "LIMIT", 1000)
    monkeypatch.setattr(room, "_reserve", full)
    with pytest.raises(DataError, match=r"no room for .*No space left on device; set TMPDIR"):
        head.trained(bench, model, HeadStep(step="head", flip=False, **QUICK))
