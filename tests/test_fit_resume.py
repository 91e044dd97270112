"""A killed training goes on from its state to the same weights, bit for bit, and the same log."""

import errno
import operator
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from simo_build.fit import Goal, Outcome, fit, fit_together
from simo_build.progress import Silent
from simo_build.saved import Saved, States
from simo_runtime.errors import CheckpointError, TrainError
from tests.disks import disk_of

ROOT = Path(__file__).resolve().parents[1]
IMAGES, BATCH, EPOCHS = 8, 3, 4
STEPS = 3  # an epoch


class Killed(BaseException):
    """What no code expects."""


class Said(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Numbers:
    """Remembers what would be drawn."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], dict[str, float]] = {}

    def write(self, label: str, values: Mapping[str, float], epoch: int) -> None:
        assert (label, epoch) not in self.rows  # nothing is written twice in a run
        self.rows[label, epoch] = dict(values)


class Task:
    """Something small with all that a state must hold: batch statistics, and a loss with chance."""

    def __init__(self, *, ema: float = 0.0, patience: int | None = None, epochs: int = EPOCHS):
        start = torch.Generator().manual_seed(5)
        self.module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=start))
        self.inputs = torch.randn(IMAGES, 2, generator=start)
        self.chance = torch.Generator().manual_seed(6)
        self.ema, self.patience, self.epochs, self.taken = ema, patience, epochs, 0
        self.numbers = Numbers()

    def loss_of(self, index: Tensor) -> Tensor:
        self.taken += 1
        noise = torch.randn(len(index), 2, generator=self.chance)
        loss: Tensor = (self.module(self.inputs[index] + noise) - 1).square().mean()
        return loss

    def measure(self) -> float:
        with torch.no_grad():
            return float((self.module(self.inputs) - 1).square().mean())

    def run(
        self,
        saved: Saved | None = None,
        *,
        loss_of: Callable[[Tensor], Tensor] | None = None,
        progress: Silent | None = None,
    ) -> Outcome:
        return fit(
            self.module,
            metric="error",
            better=lambda one, other: one < other,
            schedule=SimpleNamespace(epochs=self.epochs, lr=0.05, weight_decay=0.01),
            limits=SimpleNamespace(batch=BATCH, warmup=0.3, clip=1.0),
            images=IMAGES,
            names=[],
            generator=torch.Generator().manual_seed(7),
            loss_of=loss_of or self.loss_of,
            measure=self.measure,
            label="tiny",
            progress=progress or Silent(),
            ema=self.ema,
            patience=self.patience,
            saved=saved,
            draws=[self.chance],
            scalars=self.numbers,
        )

    def until(self, step: int, error: BaseException) -> Callable[[Tensor], Tensor]:
        """Give a loss that raises at a step."""

        def loss_of(index: Tensor) -> Tensor:
            if self.taken == step - 1:
                raise error
            return self.loss_of(index)

        return loss_of

    def scaled(self, step: int, factor: Tensor) -> Callable[[Tensor], Tensor]:
        """Give a loss that is multiplied by something at a step."""

        def loss_of(index: Tensor) -> Tensor:
            loss = self.loss_of(index)
            return loss * factor if self.taken == step else loss

        return loss_of


class Rotten(torch.autograd.Function):
    """What is 1, and has a gradient that is not a number."""

    @staticmethod
    def forward(_: object, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_: object, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("nan")


def saved_in(folder: Path, key: str = "k", progress: Silent | None = None) -> Saved:
    return Saved(folder / "tiny.state", key, progress or Silent())


def same(one: nn.Module, other: nn.Module) -> bool:
    found = other.state_dict()
    return all(torch.equal(tensor, found[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("ema", [0.0, 0.8])
@pytest.mark.parametrize("step", [1, 2, STEPS + 1, 2 * STEPS + 2, EPOCHS * STEPS])
def test_a_training_that_was_stopped_goes_on_to_the_same(
    tmp_path: Path, step: int, ema: float
) -> None:
    whole = Task(ema=ema)
    wanted = whole.run()
    killed = Task(ema=ema)
    with pytest.raises(Killed):
        killed.run(saved_in(tmp_path), loss_of=killed.until(step, Killed()))
    resumed = Task(ema=ema)
    assert resumed.run(saved_in(tmp_path)) == wanted
    assert same(whole.module, resumed.module)
    assert resumed.taken == whole.taken - (step - 1) // STEPS * STEPS
    rows = {**killed.numbers.rows, **resumed.numbers.rows}
    for row in (*rows.values(), *whole.numbers.rows.values()):
        row.pop("seconds_per_step", None)
    assert rows == whole.numbers.rows


def test_a_training_stopped_again_and_again_goes_on_to_the_same(tmp_path: Path) -> None:
    whole = Task()
    wanted = whole.run()
    for step in (5, 4, 6):
        task = Task()
        with pytest.raises(Killed):
            task.run(saved_in(tmp_path), loss_of=task.until(step, Killed()))
    resumed = Task()
    assert resumed.run(saved_in(tmp_path)) == wanted
    assert resumed.taken == STEPS  # the last epoch
    assert same(whole.module, resumed.module)


def test_waiting_for_a_better_epoch_goes_on_too(tmp_path: Path) -> None:
    values = [5.0, 4.0, 6.0, 6.0, 1.0]
    for step in (STEPS + 1, 2 * STEPS + 1):
        task = Task(patience=2)
        task.measure = iter(values[-5:]).__next__  # type: ignore[method-assign]  # a script
        if step > STEPS + 1:
            task.measure = iter(values[2:]).__next__  # type: ignore[method-assign]  # the rest of it
        with pytest.raises(Killed):
            task.run(saved_in(tmp_path), loss_of=task.until(STEPS + 1, Killed()))
    task = Task(patience=2)
    task.measure = iter(values[3:]).__next__  # type: ignore[method-assign]  # the rest of it
    assert task.run(saved_in(tmp_path)).history == (5.0, 4.0, 6.0, 6.0)


def test_a_process_that_was_killed_goes_on_to_the_same(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.test_fit_resume import Task, saved_in\n"
        "task = Task()\n"
        "def loss_of(index):\n"
        "    if task.taken == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return task.loss_of(index)\n"
        "task.run(saved_in(Path(sys.argv[1])), loss_of=loss_of)\n"
    )
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "export", "build_engines"))
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}
    )
    assert ended.returncode == -signal.SIGKILL
    whole, resumed = Task(), Task()
    assert resumed.run(saved_in(tmp_path)) == whole.run()
    assert resumed.taken == whole.taken - 2 * STEPS
    assert same(whole.module, resumed.module)


def test_a_training_that_is_done_is_not_repeated(tmp_path: Path) -> None:
    whole, again = Task(), Task()
    wanted = whole.run(saved_in(tmp_path))
    assert again.run(saved_in(tmp_path)) == wanted
    assert again.taken == 0
    assert same(whole.module, again.module)


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:middle],
            "empty": b"",
            "flipped": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
            "foreign": b"not a file of ours",
        }[how]
    )


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "foreign"])
def test_a_damaged_state_is_told_and_not_used(tmp_path: Path, how: str) -> None:
    killed, said = Task(), Said()
    with pytest.raises(Killed):
        killed.run(saved_in(tmp_path), loss_of=killed.until(8, Killed()))
    damaged(tmp_path / "tiny.state", how)
    whole, afresh = Task(), Task()
    assert afresh.run(saved_in(tmp_path, progress=said)) == whole.run()
    assert same(whole.module, afresh.module)
    (line,) = said.lines
    assert line == f"{tmp_path}/tiny.state: not used, it is damaged; training starts afresh"


def test_the_state_of_another_configuration_is_told_and_not_used(tmp_path: Path) -> None:
    Task(epochs=2).run(saved_in(tmp_path, "one"))
    whole, afresh, said = Task(), Task(), Said()
    assert afresh.run(saved_in(tmp_path, "other", said)) == whole.run()
    (line,) = said.lines
    assert "of another configuration" in line


def test_states_lie_beside_what_they_lead_to_until_it_is_there(tmp_path: Path) -> None:
    states = States(tmp_path / "depth-ab[c].safetensors", "k", Silent())
    other = States(tmp_path / "depth-abc.safetensors", "k", Silent())
    for saved in (states.of("head"), states.of("full"), other.of("head")):
        saved.write({"w": torch.ones(1)}, {})
    assert len(list(tmp_path.iterdir())) == 3
    assert states.of("head").read() is not None
    assert Saved(states.of("head").path, states.of("full").key, Silent()).read() is None
    states.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["depth-abc.head.state"]


@pytest.mark.parametrize("step", [2, 2 * STEPS + 2])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_is_not_run_into_twice(tmp_path: Path, broken: str, step: int) -> None:
    whole = Task(epochs=EPOCHS)
    wanted = whole.run()
    task = Task()
    factor = torch.tensor(float("nan") if broken == "loss" else 1.0, requires_grad=True)
    loss_of = task.scaled(step, factor)
    if broken == "gradient":
        plain = task.loss_of

        def loss_of(index: Tensor) -> Tensor:
            loss = plain(index)
            return Rotten.apply(loss) if task.taken == step else loss  # type: ignore[no-any-return]  # torch forgets it

    epoch = (step - 1) // STEPS + 1
    with pytest.raises(TrainError) as stopped:
        task.run(saved_in(tmp_path), loss_of=loss_of)
    message = str(stopped.value)
    assert f"tiny: the {broken}" in message
    assert f"in epoch {epoch}, on the rows" in message
    assert f"kept in {tmp_path}/tiny.state" in message
    assert "lower `lr` or `clip`" in message
    best = min(range(epoch), key=lambda at: wanted.history[at])
    kept = Task()
    with pytest.raises(TrainError, match="an earlier run with the same settings stopped: tiny:"):
        kept.run(saved_in(tmp_path))
    assert kept.taken == 0
    for module in (task.module, kept.module):
        assert all(tensor.isfinite().all() for tensor in module.state_dict().values())
    task.chance.manual_seed(0)
    assert task.measure() == kept.measure() == wanted.history[best]
    (tmp_path / "tiny.state").unlink()
    again = Task()
    assert again.run(saved_in(tmp_path)) == wanted


def test_a_gradient_that_is_not_finite_names_the_weights() -> None:
    task = Task()

    def loss_of(index: Tensor) -> Tensor:
        loss: Tensor = Rotten.apply(task.module[0].weight).sum() + task.loss_of(index)
        return loss

    before = {name: tensor.clone() for name, tensor in task.module.state_dict().items()}
    with pytest.raises(
        TrainError, match=r"tiny: the gradient of 0\.weight is not finite in epoch 1, on the rows"
    ):
        task.run(loss_of=loss_of)
    assert all(torch.equal(before[n], tensor) for n, tensor in task.module.state_dict().items())


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    killed = Task()
    with pytest.raises(Killed):
        killed.run(saved_in(tmp_path), loss_of=killed.until(5, Killed()))
    before = (tmp_path / "tiny.state").read_bytes()
    resumed = Task()
    with (
        disk_of(1000),
        pytest.raises(CheckpointError, match=r"tiny\.state: cannot be written, it needs .* MiB: "),
    ):
        resumed.run(saved_in(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.state"]
    assert (tmp_path / "tiny.state").read_bytes() == before
    whole, again = Task(), Task()
    assert again.run(saved_in(tmp_path)) == whole.run()


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("simo_build.checkpoints.save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        Task().run(saved_in(tmp_path))
    assert not list(tmp_path.iterdir())


def goals() -> list[Goal]:
    """Give three modules that learn the same images in their own ways."""
    made = []
    for number in range(3):
        task = Task()
        with torch.no_grad():
            task.module[0].weight.mul_(number + 1)

        def loss_of(batch: Tensor, task: Task = task, number: int = number) -> Tensor:
            loss: Tensor = (task.module(batch) - number).square().mean()
            return loss

        def measure(task: Task = task, number: int = number) -> float:
            with torch.no_grad():
                return float((task.module(task.inputs) - number + 0.5).square().mean())

        made.append(
            Goal(
                module=task.module,
                loss_of=loss_of,
                measure=measure,
                metric="error",
                better=operator.gt if number == 1 else operator.lt,
                label=f"task {number}",
                names=[],
            )
        )
    return made


def together(
    some: list[Goal],
    taken: list[Tensor],
    *,
    patience: int | None = None,
    saved: Saved | None = None,
    kill: int = 0,
) -> list[Outcome]:
    inputs = Task().inputs

    def batch_of(index: Tensor) -> Tensor:
        if len(taken) + 1 == kill:
            raise Killed
        taken.append(index)
        return inputs[index]

    return fit_together(
        some,
        schedule=SimpleNamespace(epochs=6, lr=0.3, weight_decay=0.01),
        limits=SimpleNamespace(batch=BATCH, warmup=0.3, clip=1.0),
        images=IMAGES,
        generator=torch.Generator().manual_seed(7),
        batch_of=batch_of,
        label="all",
        progress=Silent(),
        patience=patience,
        saved=saved,
    )


@pytest.mark.parametrize("patience", [None, 1])
def test_modules_trained_together_are_those_trained_alone(patience: int | None) -> None:
    at_once, alone = goals(), goals()
    taken: list[Tensor] = []
    outcomes = together(at_once, taken, patience=patience)
    single = [together([goal], [], patience=patience)[0] for goal in alone]
    assert outcomes == single
    assert len({outcome.epoch for outcome in outcomes}) > 1  # each has its own
    assert all(same(one.module, two.module) for one, two in zip(at_once, alone, strict=True))
    longest = max(len(outcome.history) for outcome in outcomes) - 1
    assert len(taken) == longest * STEPS  # every batch is taken once for all


def test_modules_trained_together_go_on_together(tmp_path: Path) -> None:
    whole, resumed = goals(), goals()
    wanted = together(whole, [], patience=1)
    with pytest.raises(Killed):
        together(goals(), [], patience=1, saved=saved_in(tmp_path), kill=2 * STEPS + 2)
    assert together(resumed, [], patience=1, saved=saved_in(tmp_path)) == wanted
    assert all(same(one.module, two.module) for one, two in zip(whole, resumed, strict=True))
