"""The latency question in PyTorch: one pass with T heads against T models, in turn and at once.

An item is one precision, way, kind of heads, batch and number of tasks. All arms of an item take
their turns in random order, after the joint pass was held to its own answers in float32.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simo_bench.gpu.clock import both
from simo_bench.gpu.float32 import exact
from simo_bench.gpu.ledger import Ledger
from simo_bench.gpu.models import Models, Pass, Runner
from simo_bench.samples import ratio_of, summary, unsteady

FIRST = ((3, 1), (3, 16))  # tasks and batch: what the bars ask for
COUNTS, BATCHES = (3, 1, 2, 6, 4, 5), (1, 4, 16)  # of the others, in order of value
ROUNDS, WARM_UP = 60, 10
# The least cosine of values, and the least share of pixels with the same class. Random weights
# leave the classes of many pixels nearly tied: rounding moves more of them than trained ones.
LEAST = {"fp32": (0.9999, 0.999), "bf16": (0.99, 0.97), "fp16": (0.999, 0.99)}

Arm = Callable[[], list[Tensor]]


def items(*, tiny: bool) -> Iterator[tuple[int, int]]:
    """Give numbers of tasks and batch sizes in order of value."""
    if tiny:
        yield from ((2, 1), (1, 1))
        return
    yield from FIRST
    every = ((count, batch) for batch in BATCHES for count in COUNTS)
    yield from (one for one in every if one not in FIRST)


def measure(
    ledger: Ledger, *, heads: str, precision: str, way: str, work: Path, tiny: bool
) -> None:
    """Measure all items of one precision, way and kind of heads."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = "toy" if tiny else "vit_base"
    most = max(count for count, _ in items(tiny=tiny))
    models = Models(shape, heads, most, work, where)
    exact()
    for count, batch in items(tiny=tiny):
        rounds = 3 if tiny else ROUNDS
        make = partial(one_item, models, count, batch, precision, way, work, rounds=rounds)
        key = f"{heads} {precision} {way} {count} tasks, batch {batch}"
        before = ledger.items.get(key)
        ledger.item(key, make)
        if ledger.items.get(key) is not before and spoilt(ledger.items[key], where):
            ledger.late = True  # the rest is for another process
            return


def spoilt(item: dict[str, Any], where: torch.device) -> bool:
    """Give memory back; tell whether a capture failed, after which PyTorch cannot."""
    if where.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return not all(item.get("captured", {}).values())


def one_item(
    models: Models, count: int, batch: int, precision: str, way: str, work: Path, *, rounds: int
) -> dict[str, Any]:
    """Measure one item: samples of every arm by both clocks, ratios, and the gate."""
    pixels, tasks = models.pixels(batch), models.tasks[:count]
    joint = Runner(models.joint(count, precision), pixels, way, work)
    singles = [Runner(models.single(task, precision), pixels, way, work) for task in tasks]
    runners = {"joint": joint, **dict(zip(tasks, singles, strict=True))}
    found: dict[str, Any] = {
        "tasks": count, "batch": batch, "precision": precision, "way": way,
        "captured": {name: one.captured for name, one in runners.items()},
        "why_not_captured": next((one.why_not for one in runners.values() if one.why_not), None),
        **agreement(tasks, joint(), reference(models, count, pixels), precision),
    }  # fmt: skip
    if not found["passed"]:
        return found
    device, host = timed(arms_of(joint, singles, Runner.__call__), models.where, rounds)
    _, copied = timed(arms_of(joint, singles, Runner.with_copies), models.where, rounds)
    return {
        **found,
        "device_ms": device,
        "host_ms": host,
        "host_ms_with_copies": copied,
        "found": told(device, models.where),
    }


def arms_of(
    joint: Runner, singles: list[Runner], run: Callable[[Runner], list[Tensor]]
) -> dict[str, Arm]:
    """Give the arms of an item: one pass, the models in turn, the models at once."""
    return {
        "joint": lambda: run(joint),
        "sequential": lambda: [one for runner in singles for one in run(runner)],
        "concurrent": lambda: at_once(singles, run),
    }


@torch.inference_mode()
def reference(models: Models, count: int, pixels: Tensor) -> list[Tensor]:
    """Give what the pass should give: float32 on the same device."""
    model: Pass = models.joint(count, "fp32")
    return [one.clone() for one in model(pixels)]


def agreement(
    tasks: Sequence[str], found: list[Tensor], wanted: list[Tensor], precision: str
) -> dict[str, Any]:
    """Compare every task's output with float32's; `reason` says what is too far from it."""
    values, classes = LEAST[precision]
    gate = dict(zip(tasks, cosines(found, wanted), strict=True))
    least = [values if one.is_floating_point() else classes for one in wanted]
    wrong = [
        f"{task}: {value:.5f}, allowed {limit}"
        for (task, value), limit in zip(gate.items(), least, strict=True)
        if value < limit
    ]
    reason = {"reason": f"not as in float32: {'; '.join(wrong)}"} if wrong else {}
    return {"gate": gate, "passed": not wrong, **reason}


def cosines(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """Give every output's cosine, of classes the share of pixels that are equal.

    What is no number gives 0.
    """
    rows = []
    for one, other in zip(found, wanted, strict=True):
        if not one.is_floating_point():
            rows.append(float((one == other).float().mean()))
            continue
        a, b = one.double().flatten(), other.double().flatten()
        value = float(a @ b / (a.norm() * b.norm()))
        rows.append(value if value == value else 0.0)
    return rows


def at_once(runners: list[Runner], run: Callable[[Runner], list[Tensor]]) -> list[Tensor]:
    """Run all models, each on a stream of its own."""
    if runners[0].stream is None:
        return [one for runner in runners for one in run(runner)]
    current, results = torch.cuda.current_stream(), []
    for runner in runners:
        assert runner.stream is not None
        runner.stream.wait_stream(current)
        with torch.cuda.stream(runner.stream):
            results += run(runner)
    for runner in runners:
        assert runner.stream is not None
        current.wait_stream(runner.stream)
    return results


def timed(
    arms: dict[str, Arm], where: torch.device, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Time all arms in every round, in random order, by the device's clock and the host's."""
    order = random.Random(0)
    device: dict[str, list[float]] = {name: [] for name in arms}
    host: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        for _ in range(min(WARM_UP, rounds)):
            arm()
    for _ in range(rounds):
        for name in order.sample(sorted(arms), len(arms)):
            one, other = both(arms[name], where)
            device[name].append(round(one, 5))
            host[name].append(round(other, 5))
    return device, host


def told(samples: dict[str, list[float]], where: torch.device) -> dict[str, Any]:
    """Say what the samples of one process say."""
    kind = "gpu" if where.type == "cuda" else "cpu"
    ratios = {
        name: vars(ratio_of([samples[name]], [samples["joint"]]))
        for name in ("sequential", "concurrent")
    }
    return {
        "ms": {name: vars(summary([times])) for name, times in samples.items()},
        "unstable": {name: unsteady([times], device=kind) for name, times in samples.items()},
        "ratios": ratios,
    }
