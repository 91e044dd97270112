"""One measuring process: opens the arms, holds them to their references, times them in turn.

    python -m simo_bench.worker < SETUP.json > FOUND.json

Fresh processes differ: memory lies elsewhere, threads are placed anew. So several of these are run
one after another, and what they found is put together by `simo_bench.latency`.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from simo_bench import nvml
from simo_bench.arms import Arm, Pixels, open_arm, reference
from simo_bench.equality import compare
from simo_bench.machine import Watch
from simo_bench.setup import Setup
from simo_bench.stages import WHOLE, Photo, time_stages
from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError, BundleError, SimoError

WARM_SECONDS = 0.2  # of every arm, at least
PAUSE = 0.01  # before every sample: the threads of the arm before stop spinning meanwhile
BATCH_RUNS = 5  # of every arm and batch size
COUNT_ROUNDS = 10  # of every number of tasks, at most
ENERGY_SECONDS = 2.0
STATUS = Path("/proc/self/status")


class Process:
    """The arms of a setup that are open and give the right answers."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.pixels = noise(setup, 1)
        self.arms: dict[str, Arm] = {}
        self.told: dict[str, dict[str, Any]] = {}
        self.gpu = nvml.find() if setup.backend != "onnxruntime-cpu" else None

    def open(self) -> None:
        """Open every arm; one that cannot be opened, or answers wrongly, is told and left out."""
        for name in self.setup.arms:
            try:
                arm = open_arm(name, self.setup, self.pixels)
            except (BackendError, BundleError) as error:
                self.told[name] = {"reason": reason(error, self.setup), "equality": [], "about": {}}
                continue
            rows = compare(
                arm.run(self.pixels),
                reference(name, self.setup, self.pixels),
                self.setup.precision,
            )
            self.told[name] = {
                "about": dict(arm.about),
                "equality": [row.plain() for row in rows],
                "reason": None,
            }
            if all(row.passed for row in rows):
                self.arms[name] = arm
            else:
                self.told[name]["reason"] = "its outputs are not those of its reference"
                arm.close()

    def rounds(self) -> dict[str, Any]:
        """Time all arms in every round, in random order."""
        setup = self.setup
        samples: dict[str, list[float]] = {name: [] for name in self.arms}
        order, reasons, watch = random.Random(setup.seed), set[str](), Watch()
        began = time.perf_counter()
        stop = "rounds"
        while True:
            count, spent = len(next(iter(samples.values()), [])), time.perf_counter() - began
            if count >= setup.rounds and spent >= setup.seconds:
                break
            if count and spent > setup.longest:
                stop = "time"
                break
            for name in order.sample(sorted(self.arms), len(self.arms)):
                time.sleep(PAUSE)
                samples[name].append(timed_ms(self.arms[name].run, self.pixels))
            if self.gpu is not None:
                reasons |= set(self.gpu.state().reasons)
            if not self.arms:
                break
        return {
            "ms": samples,
            "others": watch.others(),
            "throttled": sorted(reasons),
            "stopped_by": stop,
        }

    def warm_up(self) -> None:
        """Run every arm a few times, and for a while."""
        for arm in self.arms.values():
            began, runs = time.perf_counter(), 0
            while runs < self.setup.warm_up or (
                runs and time.perf_counter() - began < min(WARM_SECONDS, self.setup.seconds)
            ):
                arm.run(self.pixels)
                runs += 1

    def whole(self, rounds: int) -> dict[str, list[float]]:
        """Time the way from a file to arrays of the photo's size."""
        photo = Photo(self.setup)
        arms = [self.arms[name] for name in WHOLE if name in self.arms]
        found: dict[str, list[float]] = {arm.name: [] for arm in arms}
        order = random.Random(self.setup.seed)
        for _ in range(rounds):
            for arm in order.sample(arms, len(arms)):
                time.sleep(PAUSE)
                found[arm.name].append(timed_ms(photo.whole, arm))
        return found

    def counts(self, rounds: int) -> dict[str, dict[str, list[float]]]:
        """Time the first one, two, ... tasks where an arm can; milliseconds by arm and count."""
        found: dict[str, dict[str, list[float]]] = {}
        for _ in range(min(rounds, COUNT_ROUNDS)):
            for count in range(1, len(self.setup.tasks) + 1):
                tasks = self.setup.tasks[:count]
                for name, arm in self.arms.items():
                    if arm.some is not None:
                        time.sleep(PAUSE)
                        spent = timed_ms(partial(arm.some, self.pixels), tasks)
                        found.setdefault(name, {}).setdefault(str(count), []).append(spent)
        return found

    def throughput(self) -> dict[str, dict[str, list[float]]]:
        """Time batches; milliseconds a batch, by arm and batch size."""
        found: dict[str, dict[str, list[float]]] = {name: {} for name in self.arms}
        for batch in self.setup.batches:
            pixels = noise(self.setup, batch)
            for arm in self.arms.values():
                arm.run(pixels)
            for _ in range(BATCH_RUNS):
                for name, arm in self.arms.items():
                    time.sleep(PAUSE)
                    found[name].setdefault(str(batch), []).append(timed_ms(arm.run, pixels))
        return found

    def energy(self) -> dict[str, float]:
        """Give the joules of an image by arm, where the GPU counts them."""
        found: dict[str, float] = {}
        for name, arm in self.arms.items() if self.gpu is not None else ():
            assert self.gpu is not None
            before, began, images = self.gpu.state().energy_mj, time.perf_counter(), 0
            while time.perf_counter() - began < ENERGY_SECONDS:
                arm.run(self.pixels)
                images += 1
            after = self.gpu.state().energy_mj
            if before is not None and after is not None:
                found[name] = (after - before) / 1e3 / images
        return found


def reason(error: Exception, setup: Setup) -> str:
    """Say why an arm could not be opened, without the folders of this machine."""
    text = str(error)
    for path in (setup.bundle, *setup.singles.values()):
        text = text.replace(path, Path(path).name)
    return text


def noise(setup: Setup, batch: int) -> Pixels:
    """Give pixels that are the same every time; how fast a model is does not depend on them."""
    shape = (batch, *Bundle.open(setup.bundle).manifest.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def timed_ms(work: Callable[[Any], object], given: object) -> float:
    """Time one call, in milliseconds to a tenth of a microsecond."""
    began = time.perf_counter_ns()
    work(given)
    return round((time.perf_counter_ns() - began) / 1e6, 4)


def measure(setup: Setup) -> dict[str, Any]:
    """Do everything that a setup asks for, but memory."""
    process = Process(setup)
    process.open()
    process.warm_up()
    found = process.rounds()
    count = max((len(one) for one in found["ms"].values()), default=0) if setup.extras else 0
    found |= {
        "arms": process.told,
        "whole_ms": process.whole(count),
        "count_ms": process.counts(count),
        "batch_ms": process.throughput(),
        "joules": process.energy(),
    }
    for arm in process.arms.values():
        arm.close()
    times = time_stages(setup, count) if process.arms and count else {}
    found["stages_ms"] = {name: [round(one, 4) for one in values] for name, values in times.items()}
    return found


def memory(setup: Setup) -> dict[str, Any]:
    """Open one arm, run it, and give the resident memory that this has added, in bytes."""
    pixels, gpu = noise(setup, 1), nvml.find()
    before = resident()
    used = gpu.state().memory_used if gpu else None
    (name,) = setup.arms
    try:
        arm = open_arm(name, setup, pixels)
    except (BackendError, BundleError) as error:
        return {"reason": reason(error, setup)}
    for _ in range(max(2, setup.warm_up)):
        arm.run(pixels)
    after = resident()
    device = gpu.state().memory_used if gpu else None
    arm.close()
    return {
        "resident": after["VmRSS"] - before["VmRSS"],
        "peak": after["VmHWM"] - before["VmRSS"],
        "empty": before["VmRSS"],
        "device": None if device is None or used is None else device - used,
    }


def resident() -> Mapping[str, int]:
    """Give this process's resident memory, now and at its highest, in bytes."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise BackendError(f"{STATUS}: {error.strerror}; memory is measured on Linux") from error
    fields = (line.split() for line in lines)
    return {
        one[0].rstrip(":"): int(one[1]) * 1024 for one in fields if one[0] in ("VmRSS:", "VmHWM:")
    }


@click.command()
def main() -> None:
    """Measure what the setup on standard input says, and print what was found as JSON."""
    try:
        setup = Setup.from_json(sys.stdin.read())
        found = memory(setup) if setup.memory else measure(setup)
    except SimoError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
