"""The whole state of a training in one file, so that a killed one goes on as if nothing had been.

The file is safetensors: tensors, and plain values as JSON. It carries the key of what is trained
and a checksum of all its tensors; without both it is not used.
"""

import glob
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simo_build.checkpoints import read_metadata, read_tensors, write_tensors
from simo_build.progress import Progress
from simo_build.statedict import StateDict
from simo_runtime.errors import CheckpointError

METADATA = "simo.state"


@dataclass(frozen=True)
class Saved:
    """Where the state of one fit is kept, and the key of everything that it depends on."""

    path: Path
    key: str
    progress: Progress

    def read(self) -> tuple[StateDict, dict[str, Any]] | None:
        """Give the tensors and plain values that are kept; None if there are none to go on with.

        One line says so if there is a file that is damaged, or of another configuration.
        """
        if not self.path.is_file():
            return None
        try:
            tensors, metadata = read_tensors(self.path)
            about = json.loads(metadata[METADATA])
            key, checksum, plain = about["key"], about["checksum"], dict(about["plain"])
        except (CheckpointError, KeyError, TypeError, ValueError, RecursionError):
            tensors, key, checksum, plain = {}, self.key, "", {}
        if checksum == checksum_of(tensors) and key == self.key:
            return tensors, plain
        why = "it is damaged" if key == self.key else "it is of another configuration or version"
        self.progress.say(f"{self.path}: not used, {why}; training starts afresh")
        return None

    def write(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Put a state in the place of the last one, which stays if this fails."""
        about = {"key": self.key, "checksum": checksum_of(tensors), "plain": plain}
        write_tensors(self.path, tensors, {METADATA: json.dumps(about)})

    def mark(self, failure: str) -> None:
        """Write into the state that is kept why training cannot go on from it."""
        if found := self.read():
            self.write(found[0], {**found[1], "failure": failure})


@dataclass(frozen=True)
class States:
    """The states of all fits that one file is made by; they lie beside it until it is there."""

    target: Path
    key: str
    progress: Progress

    def of(self, name: str) -> Saved:
        """Give the place of one fit's state."""
        path = self.target.with_name(f"{self.target.stem}.{name}.state")
        return Saved(path, f"{self.key} {name}", self.progress)

    def clock(self) -> Callable[[], float]:
        """Start to count seconds; what is given tells them, with those that killed runs trained."""
        before = sum(self._seconds(path) for path in self._paths())
        started = time.perf_counter()
        return lambda: before + time.perf_counter() - started

    def remove(self) -> None:
        """Remove all of them: what they led to is there."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return [*self.target.parent.glob(f"{glob.escape(self.target.stem)}.*.state")]

    def _seconds(self, path: Path) -> float:
        """Give the seconds of training that a state tells of; none if it is not gone on with."""
        try:
            about = json.loads(read_metadata(path)[METADATA])
            own = about["key"].startswith(f"{self.key} ")
            return float(about["plain"]["seconds"]) if own else 0.0
        except (AttributeError, CheckpointError, KeyError, TypeError, ValueError, RecursionError):
            return 0.0


def checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and all bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
