"""Keep the result of a stage under the hash of what went into it, so that a killed build resumes.

A stage's result is a dictionary of tensors and a dictionary of plain values, in one safetensors
file that appears whole or not at all.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from simo_build.checkpoints import read_tensors, write_tensors
from simo_build.hashing import code_hash, digest
from simo_build.progress import Progress
from simo_build.saved import States
from simo_build.statedict import StateDict
from simo_build.took import note, noted
from simo_build.workers import workers
from simo_runtime.errors import CheckpointError


@dataclass(frozen=True)
class Result:
    """What a stage gave: tensors, plain values for the log, the key it is kept under, its time.

    The time is that of the run that made it, in seconds, however often it is read again; what
    killed runs have trained of it before is counted.
    """

    tensors: StateDict
    log: Mapping[str, Any]
    key: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Stages:
    """A folder of kept results."""

    root: Path
    progress: Progress

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[], tuple[StateDict, dict[str, Any]]],
    ) -> Result:
        """Give the kept result of a stage with these inputs, or make it and keep it.

        Of several processes the main one makes it for all.
        """
        return self.run_in_parts(name, inputs, lambda _: workers().from_main(make))

    def run_in_parts(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[States], tuple[StateDict, dict[str, Any]]],
    ) -> Result:
        """Do the same for a stage that trains: it is given where states may lie meanwhile.

        Several processes make it together.
        """
        key = key_of(name, inputs)
        path = self._path(name, key)
        states = States(path, key, self.progress)
        if kept := workers().from_main(lambda: self.kept(name, inputs)):
            self.progress.say(f"{name}: kept from an earlier build")
            return kept
        self.progress.say(f"{name} ...")
        clock = states.clock()
        tensors, log = make(states)
        seconds = round(clock(), 3)
        written = {"log": json.dumps(log, sort_keys=True), "seconds": json.dumps(seconds)}
        if workers().main:
            write_tensors(path, tensors, written)
            states.remove()
        # JSON turns tuples into lists: give what a later build will read.
        return Result(tensors, json.loads(written["log"]), key, seconds)

    def note(self, name: str, key: str, seconds: float) -> None:
        """Remember how long work took that keeps no tensors of its own."""
        note(self._noted(name, key), seconds)

    def noted(self, name: str, key: str) -> float | None:
        """Give the seconds that were noted; None if there are none, or they cannot be read."""
        return noted(self._noted(name, key))

    def _noted(self, name: str, key: str) -> Path:
        return self.root / f"{name}-{key[:16]}.json"

    def kept(self, name: str, inputs: Mapping[str, Any]) -> Result | None:
        """Give the kept result of a stage with these inputs, if there is one."""
        key = key_of(name, inputs)
        found = _kept(self._path(name, key))
        return found and replace(found, key=key)

    def _path(self, name: str, key: str) -> Path:
        return self.root / f"{name}-{key[:16]}.safetensors"


def key_of(name: str, inputs: Mapping[str, Any]) -> str:
    """Give the key of a stage: the hash of its inputs, and of what works on them."""
    return digest({"stage": name, "code": code_hash(), "torch": torch.__version__, **inputs})


def _kept(path: Path) -> Result | None:
    """Read a kept result; one that is missing or damaged is None, since it can be made again."""
    try:
        tensors, metadata = read_tensors(path)
        return Result(tensors, dict(json.loads(metadata["log"])), "", float(metadata["seconds"]))
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None
