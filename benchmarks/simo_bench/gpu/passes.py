"""The latency question in PyTorch: one pass with T heads against T models, in turn and at once.

An item is one precision, way, kind of heads, batch and number of tasks. All arms of an item take
their turns in random order, after the joint pass was held to its own answers in float32.
"""

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simo_bench.gpu.clock import both
from simo_bench.gpu.ledger import Ledger
from simo_bench.gpu.models import Models, Pass, Runner
from simo_bench.samples import ratio_of, summary, unsteady

COUNTS, BATCHES = (3, 1, 6, 2, 4, 5), (1, 16, 4)  # in order of value
ROUNDS, WARM_UP = 60, 10
COSINE = {"fp32": 0.9999, "bf16": 0.99, "fp16": 0.999}

Arm = Callable[[], list[Tensor]]


def items(*, tiny: bool) -> Iterator[tuple[int, int]]:
    """Give numbers of tasks and batch sizes in order of value."""
    counts, batches = ((2, 1), (1,)) if tiny else (COUNTS, BATCHES)
    yield from ((count, batch) for batch in batches for count in counts)


def measure(
    ledger: Ledger, *, heads: str, precision: str, way: str, work: Path, tiny: bool
) -> None:
    """Measure all items of one precision, way and kind of heads."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = "toy" if tiny else "vit_base"
    most = max(count for count, _ in items(tiny=tiny))
    models = Models(shape, heads, most, work, where)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for count, batch in items(tiny=tiny):
        rounds = 3 if tiny else ROUNDS
        make = partial(one_item, models, count, batch, precision, way, work, rounds=rounds)
        ledger.item(f"{heads} {precision} {way} {count} tasks, batch {batch}", make)
        if where.type == "cuda":
            torch.cuda.empty_cache()


def one_item(
    models: Models, count: int, batch: int, precision: str, way: str, work: Path, *, rounds: int
) -> dict[str, Any]:
    """Measure one item: samples of every arm by both clocks, ratios, and the gate."""
    pixels = models.pixels(batch)
    joint = Runner(models.joint(count, precision), pixels, way, work)
    singles = [
        Runner(models.single(task, precision), pixels, way, work) for task in models.tasks[:count]
    ]
    gate = cosines(joint(), reference(models, count, pixels))
    found: dict[str, Any] = {
        "tasks": count, "batch": batch, "precision": precision, "way": way,
        "gate": gate, "captured": joint.graph is not None, "why_not_captured": joint.why_not,
    }  # fmt: skip
    if min(gate) < COSINE[precision]:
        return {**found, "reason": f"a cosine of {min(gate):.5f}; no latency"}
    arms: dict[str, Arm] = {
        "joint": joint,
        "sequential": lambda: [one for runner in singles for one in runner()],
        "concurrent": lambda: at_once(singles),
    }
    device, host = timed(arms, models.where, rounds)
    return {**found, "device_ms": device, "host_ms": host, "found": told(device, models.where)}


@torch.inference_mode()
def reference(models: Models, count: int, pixels: Tensor) -> list[Tensor]:
    """Give what the pass should give: float32 on the same device."""
    model: Pass = models.joint(count, "fp32")
    return [one.clone() for one in model(pixels)]


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


def at_once(runners: list[Runner]) -> list[Tensor]:
    """Run all models, each on a stream of its own."""
    if runners[0].stream is None:
        return [one for runner in runners for one in runner()]
    current = torch.cuda.current_stream()
    for runner in runners:
        assert runner.stream is not None
        runner.stream.wait_stream(current)
        with torch.cuda.stream(runner.stream):
            runner()
    for runner in runners:
        assert runner.stream is not None
        current.wait_stream(runner.stream)
    return [one for runner in runners for one in runner.out]


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
