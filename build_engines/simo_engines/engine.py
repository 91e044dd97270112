"""From a bundle's graphs to engines in the cache: built once on a machine, checked, found again.

One engine is built at a time on a machine: builders time kernels, and two at once would measure
each other. Whoever comes second waits, and finds the engine or builds its own.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simo_engines.availability import tensorrt_version, why_not
from simo_engines.gate import Reference, check_engine, check_layers
from simo_engines.layers import read_layers
from simo_engines.locks import locked
from simo_runtime.bundle import Bundle
from simo_runtime.engines import (
    SCHEMA,
    Engine,
    EngineOptions,
    EngineSpec,
    default_root,
    described,
    engine_path,
    engine_spec,
    find_record,
    record_path,
)
from simo_runtime.errors import BackendError
from simo_runtime.gpu import find_gpu

LOCK = "build.lock"


def _nothing(*told: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Telling:
    """Who is told what: lines, and how far a phase of a build is."""

    say: Callable[[str], None] = _nothing
    steps: Callable[[str, int, int], None] = _nothing


SILENT = Telling()


def find_engine(
    bundle: Bundle,
    name: str,
    reference: Reference,
    *,
    options: EngineOptions,
    precision: str = "fp32",
    root: Path | None = None,
    telling: Telling = SILENT,
) -> Engine:
    """Give the engine of a graph, `encoder`, `joint` or a task's name; build it if need be.

    Building takes minutes. An engine is kept once it has passed the gate (`reference`). `root` is
    the folder of all engines, by default the one in the user's cache; it may not be inside the
    bundle. Raises BackendError, and OSError for a full disk; neither leaves anything behind.
    """
    reason = why_not()
    if reason is not None:
        raise BackendError(reason)
    folder = (root or default_root()).resolve()
    if folder.is_relative_to(bundle.root.resolve()):
        raise BackendError(f"{folder}: engines cannot lie in a bundle; give a folder outside it")
    spec = engine_spec(
        bundle,
        name,
        tensorrt=tensorrt_version(),
        gpu=find_gpu(),
        options=options,
        precision=precision,
    )
    path = engine_path(spec, root=folder)
    record = find_record(spec, path)
    if record is None:
        waiting = f"{name}: another process builds an engine on this machine; waiting for it"
        with locked(path.parent / LOCK, lambda: telling.say(waiting)):
            sweep(path.parent)
            record = find_record(spec, path)
            if record is None:
                record = _build(spec, path, name, precision, reference, telling)
    return Engine(path, record)


def _build(
    spec: EngineSpec,
    path: Path,
    name: str,
    precision: str,
    reference: Reference,
    telling: Telling,
) -> dict[str, Any]:
    from simo_engines.plan import make_plan  # here, because it imports TensorRT

    telling.say(f"{name}: building the {precision} engine; this takes minutes")
    started = time.perf_counter()
    timings = path.parent / f"timings-{spec.tensorrt}.cache"
    graph = reference.bundle.graph(name, precision)
    before = timings.read_bytes() if timings.is_file() else b""
    built = make_plan(graph, spec.options, timings=before, steps=telling.steps)
    write_whole(timings, built.timings)  # kept whatever the gate says
    layers = read_layers(built.layers)
    telling.say(f"{name}: {layers.summary()}")
    check_layers(layers, name, precision)
    gate = check_engine(
        built.plan, name, precision=precision, options=spec.options, reference=reference
    )
    record = {
        "schema": SCHEMA,
        "spec": described(spec),
        "graph": graph.name,
        "precision": precision,
        "plan": {"sha256": hashlib.sha256(built.plan).hexdigest(), "bytes": len(built.plan)},
        "seconds": round(time.perf_counter() - started, 1),
        "layers": asdict(layers),
        "gate": gate,
    }
    write_whole(record_path(path), (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    write_whole(path, built.plan)
    return record


def sweep(folder: Path) -> None:
    """Remove what killed builders have left behind; to be called by the one who has the lock."""
    for left in folder.glob(".*.partial"):
        left.unlink(missing_ok=True)
    for record in folder.glob("*.json"):
        if not record.with_suffix(".plan").exists():
            record.unlink(missing_ok=True)


def write_whole(target: Path, content: bytes) -> None:
    """Write a file that is never seen half-written; only its owner may read it."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # of a killed process that had our number
    try:
        # A plan runs as code: nobody else may write it, from the first byte on.
        with open(partial, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
