"""Searching learning rates: the same trials every time, judged on select alone, nothing twice."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from simo_build import data
from simo_build.checkpoints import read_tensors
from simo_build.cli import train_command
from simo_build.fit import Outcome
from simo_build.loading import LoadedRecipe, load_recipe
from simo_build.multitask import train_multitask
from simo_build.phases import Score
from simo_build.progress import Silent
from simo_build.search import FIRST, HIGH, LOW, Found, Study, search, table
from simo_build.searched import Rates, Tried, Watch
from simo_build.statedict import StateDict
from simo_build.train import train_expert
from simo_build.trials import Ledger, Trial
from simo_runtime.errors import RecipeError, TrainError, UnknownNameError
from tests.tiny import TASKS, write_recipe, write_workplace

TRAIN: dict[str, Any] = {
    "batch": 2,
    "head": {"epochs": 2, "lr": 1e-2},
    "full": {"epochs": 2, "lr": 1e-3},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a base."""
    folder = tmp_path_factory.mktemp("search")
    write_workplace(folder)
    return folder


def loaded(place: Path, experts: Path, lines: str = "") -> LoadedRecipe:
    """Load the recipe, without experts of its own, with the lines that a search has told."""
    path = write_recipe(place, train=TRAIN)
    content = yaml.safe_load(path.read_text())
    content["tasks"] = {task: {"kind": task, "target": {"folder": task}} for task in TASKS}
    path.write_text(yaml.safe_dump(joined(content, yaml.safe_load(lines) or {}), sort_keys=False))
    return load_recipe(str(path), experts=experts)


def joined(content: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Put keys into a recipe as people would."""
    both = {
        key: joined(content[key], value) if isinstance(content.get(key), dict) else value
        for key, value in more.items()
    }
    return {**content, **both}


class Told(Silent):
    """Keeps what is said, and ends the work after some lines of trials, as a kill would."""

    def __init__(self, trials: int | None = None) -> None:
        self.lines: list[str] = []
        self.trials = trials

    def say(self, line: str) -> None:
        self.lines.append(line)
        if sum(", trial " in line for line in self.lines) == self.trials:
            raise KeyboardInterrupt


def trials_file(folder: Path) -> bytes:
    (path,) = folder.rglob("search-*.json")
    return path.read_bytes()


# With real training


@pytest.fixture(scope="module")
def found(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    """One search that nothing disturbs, and the folder of its experts."""
    folder = tmp_path_factory.mktemp("whole")
    return search(loaded(place, folder), "depth", 3, Silent()), folder


@pytest.mark.parametrize("killed", [1, 3, 5])
def test_a_killed_search_goes_on_to_the_same_end(
    place: Path, tmp_path: Path, found: tuple[Found, Path], killed: int
) -> None:
    whole, folder = found
    with pytest.raises(KeyboardInterrupt):
        search(loaded(place, tmp_path), "depth", 3, Told(killed))
    told = Told()
    resumed = search(loaded(place, tmp_path), "depth", 3, told)
    assert len([line for line in told.lines if ", trial " in line]) == 6 - killed
    assert trials_file(tmp_path) == trials_file(folder)
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_a_finished_search_trains_nothing_again(
    place: Path, found: tuple[Found, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = found
    monkeypatch.setattr("simo_build.phases.fit", None)
    again = search(loaded(place, folder, whole.lines), "depth", 3, Silent())
    assert (again.best, again.lines, again.path) == (whole.best, whole.lines, whole.path)


def test_the_file_is_what_training_with_the_printed_lines_gives(
    place: Path, tmp_path: Path, found: tuple[Found, Path]
) -> None:
    whole, folder = found
    told = Told()
    assert train_expert(loaded(place, folder, whole.lines), "depth", told) == whole.path
    assert told.lines == [f"depth: kept {whole.path}"]
    alone = train_expert(loaded(place, tmp_path, whole.lines), "depth", Silent())
    (one, of_one), (other, of_other) = read_tensors(whole.path), read_tensors(alone)
    assert told_of(of_one) == told_of(of_other)
    assert [name for name in other if not torch.equal(one[name], other[name])] == []
    assert set(one) == set(other)


def told_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Read what a file says of itself, without the time of training alone: a search took more."""
    about = json.loads(metadata["simo"])
    return {key: value for key, value in about.items() if key != "seconds"}


def test_what_is_printed_is_the_best_trial(found: tuple[Found, Path]) -> None:
    whole, _ = found
    printed = yaml.safe_load(whole.lines)["tasks"]["depth"]["train"]
    for phase in ("head", "full"):
        scores = {one.lr: one.score for one in whole.trials if one.phase == phase}
        assert printed[phase]["lr"] == min(scores, key=lambda lr: scores[lr])  # metres of error
        assert len(scores) == 3
    shown = table(whole)
    best = [line for line in shown.splitlines() if line.endswith("best")]
    assert [line.split()[1] for line in best] == [f"{one.lr:.2e}" for one in whole.best.values()]
    assert shown.endswith(whole.lines)
    assert shown.startswith("depth: learning rates, judged on the select split")


def test_the_second_phase_starts_from_the_best_of_the_first(found: tuple[Found, Path]) -> None:
    head = found[0].best["head"]
    for trial in found[0].trials:
        if trial.phase == "full":
            assert trial.after == {"head": head.lr}
            assert trial.history[0] == pytest.approx(head.score, rel=1e-6)


def test_the_rates_of_the_recipe_do_not_matter(place: Path, tmp_path: Path) -> None:
    lines = "tasks: {depth: {train: {full: {lr: 1.0e-7}}}}"
    search(loaded(place, tmp_path), "depth", 1, Silent())
    told = Told()
    search(loaded(place, tmp_path, lines), "depth", 1, told)
    assert told.lines == []


def test_joint_training_is_searched_too(place: Path, tmp_path: Path) -> None:
    joint = search(loaded(place, tmp_path), "joint", 2, Silent(), role="realign")
    assert [one.phase for one in joint.trials] == ["full", "full"]
    told = loaded(place, tmp_path, joint.lines)
    assert told.recipe.train.joint.lr == joint.best["full"].lr
    assert train_multitask(told, "realign", Silent()) == joint.path
    other = train_multitask(loaded(place, tmp_path / "b", joint.lines), "realign", Silent())
    assert other.read_bytes() == joint.path.read_bytes()


def test_the_test_split_is_never_read(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    load = data.load_split

    def spied(told: LoadedRecipe, split: str, **more: Any) -> data.Samples:
        read.add(split)
        return load(told, split, **more)

    for module in ("searched", "workshop", "train"):
        monkeypatch.setattr(f"simo_build.{module}.load_split", spied)
    search(loaded(place, tmp_path), "depth", 1, Silent())
    search(loaded(place, tmp_path), "joint", 1, Silent())
    assert read == {"train", "select"}


# The course of trials, without training


class Valley:
    """A score that is lowest at one rate; the epochs come down to it at once."""

    name, key, phases = "valley", "0", ("full",)
    score = Score(name="error", of=lambda _: 0.0, better=lambda one, other: one < other)

    def __init__(self, lowest: float, broken: float = math.inf) -> None:
        self.lowest, self.broken = lowest, broken

    def epochs(self, phase: str) -> int:
        return 6

    def train(self, phase: str, lr: float, start: StateDict, watch: Watch) -> Tried:
        error = abs(math.log10(lr / self.lowest))
        history = (10.0, *[error + 1 / epoch for epoch in range(1, 7)])
        for score in history:
            watch(score)
            if lr > self.broken:
                raise TrainError("the loss is nan")
        return Tried(
            {"lr": torch.tensor(lr)},
            Outcome(epoch=6, metric=history[6], history=history, updates=6),
            {},
        )

    def write(self, rates: Rates, best: Mapping[str, Tried]) -> Path:
        pytest.fail("trials alone must write no expert")

    def lines(self, rates: Rates) -> str:
        pytest.fail("trials alone must print nothing for the recipe")


def trials_of(folder: Path, valley: Valley, count: int, seed: int = 0) -> tuple[Study, list[Trial]]:
    study = Study(valley, Ledger(folder, "search-valley"), seed, Silent())
    return study, study.run("full", {}, count)


@pytest.mark.parametrize("lowest", [1.2e-8, 9e-6, 8e-4])
def test_rates_come_nearer_to_the_best_one(tmp_path: Path, lowest: float) -> None:
    study, trials = trials_of(tmp_path, Valley(lowest), 20)
    assert all(LOW <= one.lr <= HIGH for one in trials)
    assert [one.lr for one in trials[: len(FIRST)]] == list(FIRST)
    best = study.best("full", trials)
    assert abs(math.log10(best.lr / lowest)) < 0.2  # the first five come to 0.4
    assert study.tried(best).weights["lr"].item() == pytest.approx(best.lr)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_what_is_behind_is_ended_early(tmp_path: Path) -> None:
    _, trials = trials_of(tmp_path, Valley(4e-4), 20)
    pruned = [one for one in trials if one.ended == "pruned"]
    whole = sorted(one.score for one in trials if one.ended == "complete")
    assert pruned
    assert all(one.ended == "complete" for one in trials[: len(FIRST)])
    for one in pruned:
        assert 2 < len(one.history) < 7  # not in the first third, and before the end
        assert one.history[-1] > whole[len(whole) // 4]


def test_another_seed_tries_other_rates(tmp_path: Path) -> None:
    runs = [
        trials_of(tmp_path / str(n), Valley(1e-5), 8, seed)[1] for n, seed in enumerate((0, 0, 1))
    ]
    assert runs[0] == runs[1]
    assert [one.lr for one in runs[0][5:]] != [one.lr for one in runs[2][5:]]


def test_a_rate_that_breaks_the_loss_is_a_trial_like_others(tmp_path: Path) -> None:
    study, trials = trials_of(tmp_path, Valley(3e-5, broken=1e-4), 6)
    assert [one.ended for one in trials if one.lr > 1e-4] == ["failed"] * sum(
        one.lr > 1e-4 for one in trials
    )
    assert trials[1].ended == "failed"
    assert study.best("full", trials).lr < 1e-4
    assert Ledger(tmp_path, "search-valley").trials() == trials


def test_when_every_rate_breaks_the_loss_it_says_so(tmp_path: Path) -> None:
    study, trials = trials_of(tmp_path, Valley(3e-5, broken=0), 2)
    with pytest.raises(TrainError, match="valley, full: not one rate gave a score"):
        study.best("full", trials)


def test_more_trials_go_on_from_those_that_are_there(tmp_path: Path) -> None:
    _, few = trials_of(tmp_path / "a", Valley(1e-5), 6)
    _, more = trials_of(tmp_path / "a", Valley(1e-5), 9)
    _, whole = trials_of(tmp_path / "b", Valley(1e-5), 9)
    assert (more[:6], more) == (few, whole)


# What is refused


def test_a_task_whose_expert_is_a_file_has_nothing_to_search_for(place: Path) -> None:
    told = load_recipe(str(write_recipe(place, train=TRAIN)))
    with pytest.raises(RecipeError, match=r"tasks.depth.expert names a file.*leave `expert` out"):
        search(told, "depth", 1, Silent())


def test_an_unknown_task_gets_the_closest_name(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'depth'"):
        search(loaded(place, tmp_path), "dept", 1, Silent())


@pytest.mark.parametrize("text", ["", "[]", '{"trials": [{"lr": 1}]}'])
def test_damaged_trials_are_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(TrainError, match=r"not the trials of a search .* remove it"):
        Ledger(tmp_path, "s").trials()


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    study, trials = trials_of(tmp_path, Valley(1e-5), 1)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(TrainError, match=r"weights of the best trial are gone; remove .*json"):
        study.tried(trials[0])


# The command


def test_the_command_prints_trials_lines_and_file(place: Path, found: tuple[Found, Path]) -> None:
    whole, folder = found
    loaded(place, folder)
    options = ["--recipe", str(place / "tiny.yaml"), "--experts", str(folder), "--task", "depth"]
    told = CliRunner().invoke(train_command, [*options, "--search", "3"])
    assert told.exit_code == 0, told.output
    assert told.stdout == f"{table(whole)}\n\n{whole.path}\n"
    assert json.loads(trials_file(folder))["schema"] == "simo.search/1"


def test_without_optuna_it_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "simo_build.search")
    options = ["--recipe", str(place / "tiny.yaml"), "--task", "depth", "--search", "1"]
    told = CliRunner().invoke(train_command, options)
    assert told.exit_code == 1
    assert "needs optuna: pip install 'simo-runtime[search]'" in told.output
