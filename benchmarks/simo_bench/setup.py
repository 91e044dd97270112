"""What a measuring process is told: which models, which arms, how long. It travels as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# In the order of the report. The baseline is what people have without a shared encoder.
ARMS = {
    "joint": "one graph: encoder and heads",
    "split": "encoder, then its heads",
    "sequential": "one model per task, in turn",
    "concurrent": "one model per task, at once",
    "torch_eager": "PyTorch, eager",
    "torch_compile": "PyTorch, torch.compile",
}
USUAL = ("joint", "split", "sequential", "concurrent")
TORCH = ("torch_eager", "torch_compile")
BASELINES = ("sequential", "concurrent")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One measuring process. Paths are absolute."""

    bundle: str
    singles: Mapping[str, str]  # a bundle for every task
    tasks: tuple[str, ...]
    backend: str
    precision: str
    threads: int
    arms: tuple[str, ...]
    rounds: int
    seconds: float  # of all rounds; at least `rounds` are measured in any case
    longest: float  # seconds after which no more rounds start
    warm_up: int  # runs of every arm
    seed: int
    photo: str
    batches: tuple[int, ...]
    extras: bool = True  # stages, the whole way from a file, and every number of tasks
    memory: bool = False  # open the arms and run them a few times, and say what memory that took

    def to_json(self) -> str:
        """Write it down."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Setup":
        """Read it."""
        found: dict[str, Any] = json.loads(text)
        lists = {name: tuple(found[name]) for name in ("tasks", "arms", "batches")}
        return cls(**{**found, **lists})
