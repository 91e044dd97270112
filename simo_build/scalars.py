"""Numbers of a training as it goes, for who wants to watch them: loss, rate, metric, time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Scalars(Protocol):
    """Takes the numbers of an epoch."""

    def write(self, label: str, values: Mapping[str, float], epoch: int) -> None: ...


class Unwritten:
    """Writes nothing."""

    def write(self, label: str, values: Mapping[str, float], epoch: int) -> None:
        """Drop the numbers."""


@dataclass(frozen=True)
class Under:
    """Passes numbers on under a name, so that those of several steps lie apart."""

    name: str
    scalars: Scalars

    def write(self, label: str, values: Mapping[str, float], epoch: int) -> None:
        """Pass them on, with the name before their label."""
        self.scalars.write(f"{self.name}, {label}", values, epoch)


class TensorBoard:
    """Writes event files that TensorBoard shows, in one folder.

    ModuleNotFoundError if tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        # Imported here: it takes seconds, and an extra installs it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, label: str, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            tag = f"{label}/{name}".replace(", ", "/").replace(" ", "_")
            self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()
