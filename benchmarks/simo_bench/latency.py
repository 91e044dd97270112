"""Time one pass with many heads against one pass per task, in the same backend, alternating.

Arms.  `joint`: the encoder once, then every head.  `per_task`: for each task the encoder and its
head, as one model per task costs, with the same graphs, threads and image.  `encoder`: the encoder
alone, from which the ideal ratio follows: T passes of encoder and head against one encoder and T
heads, if nothing else cost anything.
"""

import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from simo_runtime import backends
from simo_runtime.bundle import Bundle

SCHEMA = "simo.bench/1"
PACKAGES = ("simo-runtime", "numpy")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How samples of one quantity are spread."""

    count: int
    median: float
    p05: float
    p95: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured; times in milliseconds for one image."""

    bundle: str
    tasks: tuple[str, ...]
    backend: str
    threads: int
    joint_ms: Spread
    per_task_ms: Spread
    encoder_ms: Spread
    ratio: Spread  # per_task / joint, pair by pair
    ideal_ratio: float
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {"schema": SCHEMA, **asdict(self)}


def spread(samples: Sequence[float]) -> Spread:
    """Give count, median and the 5th and 95th percentile."""
    low, middle, high = np.percentile(samples, (5, 50, 95))
    return Spread(count=len(samples), median=float(middle), p05=float(low), p95=float(high))


def bench(
    bundle: Bundle, *, rounds: int, threads: int | None, progress: Callable[[str], None]
) -> Report:
    """Measure a bundle: a warm-up of every arm, then `rounds` of all arms in random order."""
    names = [task.name for task in bundle.manifest.tasks]
    backend = backends.choose(None)
    session = backend.open(bundle, threads=threads)
    shape = (1, *bundle.manifest.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def per_task() -> None:
        for name in names:
            session.run(pixels, [name])

    arms: dict[str, Callable[[], object]] = {
        "joint": lambda: session.run(pixels, names),
        "per_task": per_task,
        "encoder": lambda: session.run(pixels, []),
    }
    for arm in arms.values():
        for _ in range(2):
            arm()
    samples: dict[str, list[float]] = {name: [] for name in arms}
    order = random.Random(0)
    for number in range(1, rounds + 1):
        progress(f"round {number}/{rounds}")
        for name in order.sample(list(arms), len(arms)):
            samples[name].append(_time_ms(arms[name]))
    session.close()
    return Report(
        bundle=bundle.manifest.name,
        tasks=tuple(names),
        backend=backend.name,
        threads=threads or len_cpus(),
        joint_ms=spread(samples["joint"]),
        per_task_ms=spread(samples["per_task"]),
        encoder_ms=spread(samples["encoder"]),
        ratio=spread([p / j for p, j in zip(samples["per_task"], samples["joint"], strict=True)]),
        ideal_ratio=ideal(samples, len(names)),
        machine=machine(),
    )


def _time_ms(arm: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    arm()
    return (time.perf_counter_ns() - start) / 1e6


def ideal(samples: dict[str, list[float]], tasks: int) -> float:
    """Give T (E + H) / (E + T H) from the medians; H is what a head adds to the joint pass."""
    encoder, joint = np.median(samples["encoder"]), np.median(samples["joint"])
    head = max(float(joint - encoder) / tasks, 0.0)
    return float(tasks * (encoder + head) / (encoder + tasks * head))


def len_cpus() -> int:
    """Count the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Say what this was measured on."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def table(report: Report) -> str:
    """Lay a report out for people."""
    count = len(report.tasks)
    lines = [
        f"{report.bundle}: {', '.join(report.tasks)} ({report.backend}, {report.threads} threads)",
        "",
        "one image, milliseconds           median      5 %     95 %",
        "-" * 58,
    ]
    for name, value in (
        (f"one pass, {count} heads", report.joint_ms),
        (f"{count} passes, one per task", report.per_task_ms),
        ("the encoder alone", report.encoder_ms),
    ):
        lines.append(f"{name:<30}{value.median:>10.1f}{value.p05:>9.1f}{value.p95:>9.1f}")
    ratio = report.ratio
    lines += [
        "",
        f"one pass is {ratio.median:.2f} times as fast (5 to 95 % of {ratio.count} pairs: "
        f"{ratio.p05:.2f} to {ratio.p95:.2f}; at best {report.ideal_ratio:.2f})",
    ]
    return "\n".join(lines)
