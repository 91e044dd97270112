"""What one shared encoder gains over one model per task, on this machine: the whole measurement.

The models of single tasks are found or made, several fresh processes measure all arms one after
another, and what they found is put into one document.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from simo_bench import nvml
from simo_bench.devices import Device, device_for
from simo_bench.disk import disk_bytes
from simo_bench.document import SCHEMA, derive
from simo_bench.limits import counted, limits
from simo_bench.machine import about, steadier
from simo_bench.parts import part_of
from simo_bench.setup import ARMS, USUAL, Setup
from simo_bench.singles import Singles, copies_of, experts_of
from simo_build.origin import origin
from simo_runtime import backends
from simo_runtime.bundle import Bundle
from simo_runtime.cpus import available_cpus
from simo_runtime.errors import BackendError, unknown

PHOTO = (960, 1280)  # height, width of the photo that is drawn where none is given

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may choose."""

    backend: str | None = None
    precision: str = "fp32"
    threads: int | None = None
    arms: tuple[str, ...] = USUAL
    tasks: tuple[str, ...] = ()  # by default all
    rounds: int = 20
    processes: int = 3
    seconds: float = 3.0
    longest: float = 120.0
    warm_up: int = 10
    batches: tuple[int, ...] = (1, 2, 4)
    extras: bool = True  # stages, the whole way from a file, and every number of tasks
    memory: bool = True
    photo: Path | None = None
    seed: int = 0
    who: str = "the project"
    device: Device | None = None  # by default this machine's CPU is measured


def bench(root: Path, options: Options, *, command: str, tell: Tell) -> dict[str, Any]:
    """Measure a bundle and give the document; BundleError or BackendError says what is wrong."""
    bundle = Bundle.open(root)
    for arm in options.arms:
        if arm not in ARMS:
            raise unknown("arm", arm, ARMS)
    names = options.tasks or [task.name for task in bundle.manifest.tasks]
    tasks = tuple(bundle.manifest.task(name).name for name in names)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if len(tasks) < len(bundle.manifest.tasks):
            bundle = part_of(bundle, tasks, folder / "part", options.precision)
        singles = experts_of(Bundle.open(root), tasks) or copies_of(
            bundle, tasks, folder / "singles", options.precision
        )
        setup = setup_of(bundle, singles, tasks, options, folder)
        return _document(bundle, singles, setup, options, command, tell)


def setup_of(
    bundle: Bundle, singles: Singles, tasks: tuple[str, ...], options: Options, folder: Path
) -> Setup:
    """Decide what the measuring processes are told."""
    backend = backends.choose(options.backend)
    bundle.manifest.graph_files(options.precision)  # a wrong precision stops here
    return Setup(
        bundle=str(bundle.root.resolve()),
        singles={task: str(one.root.resolve()) for task, one in singles.bundles.items()},
        tasks=tasks,
        backend=backend.name,
        precision=options.precision,
        threads=options.threads or available_cpus(),
        arms=options.arms,
        rounds=options.rounds,
        seconds=options.seconds,
        longest=options.longest,
        warm_up=options.warm_up,
        seed=options.seed,
        photo=str(options.photo.resolve() if options.photo else drawn_photo(folder)),
        batches=options.batches,
        extras=options.extras,
    )


def drawn_photo(folder: Path) -> Path:
    """Draw a photo of 1.2 megapixels: smooth, with some noise, as large as a camera's."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, PHOTO[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
    noisy = np.clip(smooth + draw.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
    path = folder / "photo.jpg"
    cv2.imwrite(str(path), noisy)
    return path


def _document(
    bundle: Bundle, singles: Singles, setup: Setup, options: Options, command: str, tell: Tell
) -> dict[str, Any]:
    manifest = bundle.manifest
    device = options.device
    if device is None:
        tell("the machine's peak and bandwidth")
        device = device_for(None, setup.backend, threads=setup.threads)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        **signed(command, options.who),
        "machine": about(setup.threads, nvml.find()),
        "bundle": {
            "name": manifest.name,
            "tasks": list(setup.tasks),
            "kinds": {task: manifest.task(task).kind for task in setup.tasks},
            "image_size": list(manifest.image_size),
            "random_weights": manifest.random_weights,
            "gate": provenance_gate(bundle),
        },
        "settings": _settings(setup, options, singles),
        "limits": limits(
            counted(bundle, precision=setup.precision),
            {
                task: counted(one, precision=setup.precision)
                for task, one in singles.bundles.items()
            },
            setup.tasks,
            device,
        ),
        "processes": measured(setup, options.processes, tell),
        "memory": remembered(setup, tell) if options.memory else {},
        "disk": {
            "shared": disk_bytes(bundle, setup.precision),
            "singles": {t: disk_bytes(one, setup.precision) for t, one in singles.bundles.items()},
        },
    }
    found["steadier"] = steadier(found["machine"])
    found = json.loads(json.dumps(found))  # as it will be read again
    found["found"] = json.loads(json.dumps(derive(found)))
    return found


def signed(command: str, who: str) -> dict[str, Any]:
    """Say who measured when, and where it comes from."""
    return {"who": who, "when": time.strftime("%Y-%m-%d", time.gmtime()), **origin(command)}


def provenance_gate(bundle: Bundle) -> list[dict[str, object]]:
    """Give what the build's comparison with PyTorch found; nothing if the bundle does not tell."""
    gate = bundle.manifest.provenance.get("gate", {})
    return [dict(one) for one in json.loads(json.dumps(gate)).get("found", [])]


def _settings(setup: Setup, options: Options, singles: Singles) -> dict[str, Any]:
    kept = ("backend", "precision", "threads", "rounds", "seconds", "longest", "warm_up", "seed")
    return {
        **{name: getattr(setup, name) for name in kept},
        "arms": list(setup.arms),
        "batches": list(setup.batches),
        "processes": options.processes,
        "photo": "drawn, 960 x 1280" if options.photo is None else options.photo.name,
        "singles": singles.what,
        "clock": "host, time.perf_counter_ns; from pixels to arrays",
    }


def measured(setup: Setup, processes: int, tell: Tell) -> list[dict[str, Any]]:
    """Run the measuring processes one after another, each with its own order of arms."""
    found = []
    for number in range(processes):
        tell(f"process {number + 1} of {processes}")
        found.append(ask(replace(setup, seed=setup.seed + number)))
    return found


def remembered(setup: Setup, tell: Tell) -> dict[str, dict[str, Any]]:
    """Measure the memory of every arm in a process of its own."""
    found = {}
    for arm in setup.arms:
        tell(f"memory of {arm}")
        found[arm] = ask(replace(setup, arms=(arm,), memory=True))
    return found


def ask(setup: Setup) -> dict[str, Any]:
    """Run one measuring process."""
    told = subprocess.run(
        [sys.executable, "-m", "simo_bench.worker"],
        input=setup.to_json(),
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        last = told.stderr.strip().splitlines()[-1:] or [f"exit code {told.returncode}"]
        raise BackendError(f"a measuring process failed: {last[0].removeprefix('Error: ')}")
    return dict(json.loads(told.stdout.splitlines()[-1]))
