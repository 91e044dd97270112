"""What an engine depends on, as a key; where the engine of a key lies; and reading one safely.

An engine is native code for one GPU, made by one version of TensorRT from one graph: any other
needs another engine. So the key is a hash over all of it, and nothing is ever looked up that
could be another machine's or another model's.

    <root>/<GPU>-<hash of the GPU and its driver>/<key>.plan      the engine
                                                  <key>.json      what it is, and how it was checked

Plans run as code when they are loaded. The folder belongs to one user and is closed to all others
(mode 0700), and it is outside the bundle, which refuses files that its manifest does not name.
A plan without a record, one whose record tells of another machine, and one that has changed since
are refused: they came from elsewhere. A record is written before its plan, so that a plan without
one was not written here, and a kill between the two leaves no engine.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError
from simo_runtime.gpu import Gpu
from simo_runtime.onnxfile import read_onnx
from simo_runtime.remembered import cache_root

SCHEMA = "simo.engine/2"  # counts up when the same spec comes to give another engine
# Which other GPUs an engine runs on: none, those of the same compute capability, or all from
# Ampere on. The wider, the slower it may be.
Hardware: TypeAlias = Literal["this", "same_compute_capability", "ampere_plus"]


@dataclass(frozen=True, kw_only=True)
class BatchRange:
    """The batch sizes that an engine takes, and the one that it is tuned for."""

    smallest: int
    tuned: int
    largest: int

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.tuned <= self.largest:
            raise BackendError(
                f"batches {self.smallest}, {self.tuned}, {self.largest}: they must be at least 1 "
                "and in the order smallest, tuned, largest"
            )


USUAL = BatchRange(smallest=1, tuned=1, largest=8)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What can be asked of an engine besides its graph; precision is the graph's."""

    batches: BatchRange = USUAL
    workspace_mib: int = 2048  # scratch memory that kernels may take
    tf32: bool = False  # multiply float32 with 10 bits
    version_compatible: bool = False  # newer TensorRT may run it; it then holds host code
    hardware: Hardware = "this"

    def __post_init__(self) -> None:
        if self.workspace_mib < 1:
            raise BackendError(f"workspace_mib is {self.workspace_mib}; it must be at least 1")
        if self.hardware not in get_args(Hardware):
            raise BackendError(
                f"hardware is {self.hardware!r}; it must be one of {', '.join(get_args(Hardware))}"
            )


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Everything that decides what an engine is."""

    graph: str  # SHA-256 of the graph, from the manifest
    weights: tuple[tuple[str, str], ...]  # the files it takes weights from, each with its SHA-256
    tensorrt: str  # version
    gpu: Gpu
    options: EngineOptions


@dataclass(frozen=True)
class Engine:
    """An engine that lies in the cache, and its record."""

    path: Path
    record: dict[str, Any]


def engine_spec(
    bundle: Bundle,
    name: str,
    *,
    tensorrt: str,
    gpu: Gpu,
    options: EngineOptions,
    precision: str = "fp32",
) -> EngineSpec:
    """Collect what decides the engine of a graph: `encoder`, `joint`, or a task's name."""
    path, files = bundle.graph(name, precision), bundle.manifest.files
    weights = sorted({one.location for one in read_onnx(path).external})
    return EngineSpec(
        graph=files[path.name].sha256,
        weights=tuple((name, files[name].sha256) for name in weights),
        tensorrt=tensorrt,
        gpu=gpu,
        options=options,
    )


def engine_key(spec: EngineSpec) -> str:
    """Hash a spec: equal specs give equal keys, on every machine and in every Python."""
    return _hash(described(spec))


def described(spec: EngineSpec) -> dict[str, Any]:
    """Give a spec as JSON holds it."""
    plain: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **asdict(spec)}))
    return plain


def engine_path(spec: EngineSpec, *, root: Path) -> Path:
    """Give the place of an engine, in a folder of this machine's that is made if need be.

    Raises BackendError if another user could read that folder or put an engine into it.
    """
    return private_folder(root, spec.gpu) / f"{engine_key(spec)}.plan"


def private_folder(root: Path, gpu: Gpu, name: str = "") -> Path:
    """Give the folder of a machine's engines, or one in it; it is made if need be.

    Raises BackendError if another user could read it or put an engine into it.
    """
    folder = machine_folder(root, gpu)
    for path in (folder, folder / name):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(path)
    return folder / name


def machine_folder(root: Path, gpu: Gpu) -> Path:
    """Name the folder of a machine's engines."""
    model = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-") or "gpu"
    return root / f"{model}-{_hash(asdict(gpu))[:12]}"


def default_root() -> Path:
    """Give the folder of all engines: under XDG_CACHE_HOME, or .cache in the home folder."""
    return cache_root() / "engines"


def check_private(folder: Path) -> None:
    """Refuse a folder in which somebody else could leave an engine."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise BackendError(f"{folder}: this must be a folder; engines are not kept behind a link")
    if os.name != "posix":
        return  # there are no such modes; a home folder is private by its own rules
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise BackendError(
            f"{folder}: engines run as code, and this folder is not yours alone\n"
            f"Run: chmod 700 {folder}, or give a folder that only you own."
        )


def record_path(plan: Path) -> Path:
    """Give the place of an engine's record."""
    return plan.with_suffix(".json")


def find_record(spec: EngineSpec, path: Path) -> dict[str, Any] | None:
    """Give the record of an engine that is there and is what it says; None if there is none.

    Raises BackendError for a plan that came from elsewhere: no record, another's record, a link,
    another's file, or other bytes than were written.
    """
    if not path.exists() and not path.is_symlink():
        return None
    read_plan(path, spec)
    return _record(path)


def read_plan(path: Path, spec: EngineSpec | None = None) -> bytes:
    """Read a plan that was built here; BackendError for one that was not.

    With `spec`, it must be the engine of just that.
    """
    check_private(path.parent)
    _check_file(path)
    record = _record(path)
    if spec is not None and record.get("spec") != described(spec):
        raise _elsewhere(path, "its record tells of another graph, machine or TensorRT")
    plan = path.read_bytes()
    if hashlib.sha256(plan).hexdigest() != record["plan"]["sha256"]:
        raise _elsewhere(path, "it is not what was built here, its SHA-256 has changed")
    return plan


def engines_of(
    bundle: Bundle,
    name: str,
    *,
    tensorrt: str | None,
    gpu: Gpu,
    precision: str,
    root: Path | None = None,
) -> Iterator[Engine]:
    """List the engines of a graph that this machine has, whatever was asked of them.

    Without a version of TensorRT, those of all versions. They come with the widest range of batches
    first. Their plans are not read yet: `read_plan` does that, and refuses what came from
    elsewhere.
    """
    folder = machine_folder(root or default_root(), gpu)
    if not folder.is_dir():
        return
    check_private(folder)
    spec = engine_spec(
        bundle, name, tensorrt=tensorrt or "", gpu=gpu, options=EngineOptions(), precision=precision
    )
    free = {"options"} if tensorrt else {"options", "tensorrt"}
    wanted = {key: value for key, value in described(spec).items() if key not in free}
    found = []
    for path in sorted(folder.glob("*.plan")):
        record = _record(path)
        if all(record["spec"].get(key) == value for key, value in wanted.items()):
            found.append(Engine(path, record))
    yield from sorted(found, key=_width, reverse=True)


def _width(engine: Engine) -> int:
    batches = engine.record["spec"]["options"]["batches"]
    return int(batches["largest"]) - int(batches["smallest"])


def _check_file(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise _elsewhere(path, "it is a link")
    if os.name == "posix" and (found.st_uid != os.getuid() or found.st_mode & 0o077):
        raise _elsewhere(path, "it is not yours alone")


def _record(plan: Path) -> dict[str, Any]:
    path = record_path(plan)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found["spec"], dict) and isinstance(found["plan"]["sha256"], str):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise _elsewhere(plan, f"there is no record of it in {path.name}")


def _elsewhere(path: Path, why: str) -> BackendError:
    return BackendError(
        f"{path}: this engine was not built here: {why}\n"
        "An engine runs as code when it is loaded. Delete the file, and run simo-engines again."
    )


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
