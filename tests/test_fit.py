"""Fitting: the best epoch is kept, a broken loss breaks no weights, and a seed repeats a run."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from simo_build.fit import Goal, Outcome, fit, shuffled, warmup_share
from simo_build.names import Name
from simo_build.progress import Silent
from simo_build.trainee import Trainee
from simo_runtime.errors import TrainError
from simo_runtime.metrics import metric_named
from simo_runtime.tasks import TaskSpec

ERROR = TaskSpec(name="depth", kind="depth", channels=1, metric="absolute_error")  # lower is better
IOU = TaskSpec(name="seg", kind="segmentation", channels=2, metric="mean_iou", labels=("a", "b"))
IMAGES = 6


def run(
    module: nn.Module,
    *,
    spec: TaskSpec = ERROR,
    epochs: int = 3,
    warmup: float = 0.3,
    seed: int = 0,
    loss_of: Callable[[Tensor], Tensor] | None = None,
    measure: Callable[[], float] | None = None,
) -> Outcome:
    def away_from_one(index: Tensor) -> Tensor:
        inputs = (index.float() + 1).unsqueeze(1)
        loss: Tensor = (module(inputs) - inputs).square().mean()
        return loss

    return fit(
        module,
        metric=spec.metric,
        better=metric_named(spec.metric).better,
        schedule=SimpleNamespace(epochs=epochs, lr=0.05, weight_decay=0.0),
        limits=SimpleNamespace(batch=2, warmup=warmup, clip=25.0),
        images=IMAGES,
        names=[Name("tiny", f"{row:04d}") for row in range(IMAGES)],
        generator=torch.Generator().manual_seed(seed),
        loss_of=loss_of or away_from_one,
        measure=measure or (lambda: 1.0),
        label="depth, head",
        progress=Silent(),
    )


def linear() -> nn.Linear:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(0.0)
        layer.bias.fill_(0.0)
    return layer


def scripted(values: list[float], module: nn.Linear) -> tuple[Callable[[], float], list[Tensor]]:
    """Give a measure that reads its values from a list, and the weights it was asked about."""
    seen: list[Tensor] = []

    def measure() -> float:
        seen.append(module.weight.detach().clone())
        return values[len(seen) - 1]

    return measure, seen


@pytest.mark.parametrize(
    ("spec", "values", "best"),
    [
        (ERROR, [5.0, 3.0, 2.0, 4.0], 2),
        (IOU, [0.1, 0.4, 0.2, 0.3], 1),
        (ERROR, [1.0, 3.0, 2.0, 4.0], 0),
        (ERROR, [5.0, 3.0, 3.0, 3.0], 1),  # the first of equals
        (ERROR, [float("nan"), float("nan"), 2.0, 3.0], 2),
        (ERROR, [5.0, 3.0, float("nan"), 4.0], 1),
    ],
)
def test_the_best_epoch_is_kept(spec: TaskSpec, values: list[float], best: int) -> None:
    module = linear()
    measure, seen = scripted(values, module)
    outcome = run(module, spec=spec, measure=measure)
    assert outcome.epoch == best
    assert torch.equal(module.weight, seen[best])


def test_the_outcome_tells_the_metric_of_every_epoch() -> None:
    module = linear()
    measure, _ = scripted([5.0, 3.0, 2.0, 4.0], module)
    assert run(module, measure=measure) == Outcome(
        epoch=2, metric=2.0, history=(5.0, 3.0, 2.0, 4.0), updates=9
    )


def test_training_changes_the_weights_at_all() -> None:
    module = linear()
    values = iter(range(9, 0, -1))
    run(module, measure=lambda: float(next(values)))
    assert module.weight.item() > 0.1


def test_batch_statistics_of_the_best_epoch_are_kept_too() -> None:
    module = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    run(module, measure=lambda: 1.0)  # epoch 0 is never beaten
    assert module.state_dict()["0.running_mean"].item() == 0.0


def test_the_module_is_left_in_evaluation_mode() -> None:
    module = linear()
    run(module)
    assert not module.training


def test_the_same_seed_gives_the_same_weights() -> None:
    one, other = linear(), linear()
    for module in (one, other):
        values = iter(range(9, 0, -1))
        run(module, seed=3, measure=lambda values=values: float(next(values)))  # type: ignore[misc]  # a default binds the loop's value
    assert torch.equal(one.weight, other.weight)


def test_another_seed_gives_another_order_of_images() -> None:
    orders = [
        torch.cat(list(shuffled(20, 6, torch.Generator().manual_seed(seed)))).tolist()
        for seed in (0, 1)
    ]
    assert orders[0] != orders[1]


def test_every_image_is_seen_once_an_epoch() -> None:
    batches = list(shuffled(7, 3, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert sorted(torch.cat(batches).tolist()) == list(range(7))


def broken_at(step: int, value: float, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Give a loss that is `value` from some step on."""
    count = 0

    def loss_of(index: Tensor) -> Tensor:
        nonlocal count
        count += 1
        loss: Tensor = module(torch.ones(1, 1)).sum()
        return loss * value if count >= step else loss

    return loss_of


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_task_epoch_and_images(value: float) -> None:
    module = nn.Linear(1, 1)
    with pytest.raises(
        TrainError, match=r"depth, head: the loss is .* in epoch 2, on the images \d{4}, \d{4} of"
    ):
        run(module, loss_of=broken_at(4, value, module))  # three batches an epoch


def test_a_loss_that_is_not_finite_in_the_first_epoch_leaves_the_weights_as_they_were() -> None:
    module = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def loss_of(index: Tensor) -> Tensor:
        loss: Tensor = module(torch.full((2, 1), float("nan"))).sum()
        return loss

    with pytest.raises(TrainError):
        run(module, loss_of=loss_of)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_loss_that_is_not_finite_later_leaves_the_best_epoch() -> None:
    module = linear()
    measure, seen = scripted([5.0, 3.0, 4.0], module)
    with pytest.raises(TrainError):
        run(module, measure=measure, loss_of=broken_at(8, float("nan"), module))
    assert torch.equal(module.weight, seen[1])


@pytest.mark.parametrize("epochs", [1, 2, 3, 10])
@pytest.mark.parametrize("share", [0.05, 1 / 3, 0.5, 0.1, 0.9])
def test_any_number_of_steps_can_be_warmed_up(epochs: int, share: float) -> None:
    """OneCycleLR divides by zero when the warm-up is exactly one step, as 1/3 of 3 is here."""
    assert run(linear(), epochs=epochs, warmup=share).epoch == 0


@pytest.mark.parametrize(("share", "steps"), [(0.05, 20), (0.5, 2), (0.1, 10)])
def test_a_warm_up_of_exactly_one_step_is_half_a_step_longer(share: float, steps: int) -> None:
    assert warmup_share(share, steps) * steps == pytest.approx(1.5)


def test_other_warm_ups_are_as_the_recipe_says() -> None:
    assert warmup_share(0.05, 1000) == 0.05


def test_what_has_a_rate_of_its_own_learns_at_that() -> None:
    layer = nn.Linear(1, 1)
    schedule = SimpleNamespace(epochs=1, lr=0.05, weight_decay=0.0)
    limits = SimpleNamespace(batch=2, warmup=0.3, clip=25.0)
    goal = Goal(
        module=layer,
        loss_of=lambda _: layer.weight.sum(),
        measure=lambda: 0.0,
        metric="loss",
        better=lambda one, other: one < other,
        label="two rates",
        names=(),
        rates={layer.bias: 0.01},
    )
    groups = Trainee(goal, schedule, limits, steps=3, ema=0.0).optimiser.param_groups
    found = [(group["params"], group["max_lr"]) for group in groups]
    assert found == [([layer.weight], 0.05), ([layer.bias], 0.01)]
