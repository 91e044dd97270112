"""Keep the result of a stage under the hash of what went into it, so that a killed build resumes.

A stage's result is a dictionary of tensors and a dictionary of plain values, in one safetensors
file that appears whole or not at all.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from simo_build.checkpoints import read_tensors, write_tensors
from simo_build.hashing import code_hash, digest
from simo_build.progress import Progress
from simo_build.statedict import StateDict
from simo_runtime.errors import CheckpointError


@dataclass(frozen=True)
class Result:
    """What a stage gave: tensors, plain values for the log, and the key it is kept under."""

    tensors: StateDict
    log: Mapping[str, Any]
    key: str


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
        """Give the kept result of a stage with these inputs, or make it and keep it."""
        key = digest({"stage": name, "code": code_hash(), "torch": torch.__version__, **inputs})
        path = self.root / f"{name}-{key[:16]}.safetensors"
        if kept := _kept(path):
            self.progress.say(f"{name}: kept from an earlier build")
            return Result(*kept, key)
        self.progress.say(f"{name} ...")
        tensors, log = make()
        write_tensors(path, tensors, {"log": json.dumps(log, sort_keys=True)})
        # JSON turns tuples into lists: give what a later build will read.
        return Result(tensors, json.loads(json.dumps(log)), key)


def _kept(path: Path) -> tuple[StateDict, dict[str, Any]] | None:
    """Read a kept result; one that is missing or damaged is None, since it can be made again."""
    try:
        tensors, metadata = read_tensors(path)
        return tensors, dict(json.loads(metadata["log"]))
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None
