"""What an engine depends on, as a key, and where the engine of a key lies.

An engine is native code for one GPU, made by one version of TensorRT from one graph: any other
needs another engine. So the key is a hash over all of it, and nothing is ever looked up that
could be another machine's or another model's.

    <root>/<GPU>-<hash of the GPU and its driver>/<key>.plan

Plans run as code when they are loaded. The folder belongs to one user and is closed to all others
(mode 0700), and it is outside the bundle, which refuses files that its manifest does not name.
"""

import hashlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError
from simo_runtime.gpu import Gpu

SCHEMA = "simo.engine/1"  # counts up when the same spec comes to give another engine


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


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Everything that decides what an engine is."""

    graph: str  # SHA-256 of the graph, from the manifest
    weights: str | None  # SHA-256 of the weights beside it; a small head has none
    tensorrt: str  # version
    gpu: Gpu
    batches: BatchRange
    workspace_mib: int
    tf32: bool


def engine_spec(
    bundle: Bundle,
    name: str,
    *,
    tensorrt: str,
    gpu: Gpu,
    batches: BatchRange,
    workspace_mib: int,
    tf32: bool = False,
) -> EngineSpec:
    """Collect what decides the engine of a graph: `encoder`, or a task's name."""
    files = bundle.manifest.files
    if name != "encoder":
        name = bundle.manifest.task(name).name
    weights = files.get(f"{name}.bin")
    return EngineSpec(
        graph=files[f"{name}.onnx"].sha256,
        weights=weights.sha256 if weights else None,
        tensorrt=tensorrt,
        gpu=gpu,
        batches=batches,
        workspace_mib=workspace_mib,
        tf32=tf32,
    )


def engine_key(spec: EngineSpec) -> str:
    """Hash a spec: equal specs give equal keys, on every machine and in every Python."""
    return _hash({"schema": SCHEMA, **asdict(spec)})


def engine_path(spec: EngineSpec, *, root: Path) -> Path:
    """Give the place of an engine, in a folder of this machine's that is made if need be.

    Raises BackendError if another user could read that folder or put an engine into it.
    """
    model = re.sub(r"[^a-z0-9]+", "-", spec.gpu.name.lower()).strip("-") or "gpu"
    folder = root / f"{model}-{_hash(asdict(spec.gpu))[:12]}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)
    return folder / f"{engine_key(spec)}.plan"


def default_root() -> Path:
    """Give the folder of all engines: under XDG_CACHE_HOME, or .cache in the home folder."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is to be ignored, says the XDG Base Directory Specification.
    base = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return base / "simo" / "engines"


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


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
