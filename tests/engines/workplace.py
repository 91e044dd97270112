"""A place to build engines in: a bundle, what its graphs give, a folder for the engines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from simo_engines.engine import Telling, find_engine
from simo_engines.gate import Reference, made_up
from simo_runtime.bundle import Bundle
from simo_runtime.engines import (
    BatchRange,
    Engine,
    EngineOptions,
)

BATCHES = BatchRange(smallest=1, tuned=4, largest=8)
OPTIONS = EngineOptions(batches=BATCHES, workspace_mib=64)


class Workplace:
    """A bundle, its reference, and a folder for engines."""

    def __init__(self, bundle: Bundle, root: Path, answers: Any) -> None:
        self.bundle, self.root, self.answers = bundle, root, answers
        self.reference = Reference(bundle, made_up(bundle.manifest.image_size))
        self.said: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def find(self, name: str = "depth", **changes: Any) -> Engine:
        telling = Telling(self.said.append, lambda *step: self.steps.append(step))
        return find_engine(
            self.bundle,
            name,
            self.reference,
            options=replace(OPTIONS, **changes),
            root=self.root,
            telling=telling,
        )

    def files(self) -> set[str]:
        return {path.suffix for path in self.root.rglob("*") if path.is_file()}
