"""The trials of a search as they are kept: one JSON file, and beside it the best one's weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from simo_build.checkpoints import read_tensors, write_tensors
from simo_build.report import write_json
from simo_build.statedict import StateDict
from simo_runtime.errors import TrainError

SCHEMA = "simo.search/1"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One rate of one phase, and what came of it."""

    phase: str
    after: Mapping[str, float]  # the rates of the phases before it, by phase
    lr: float
    ended: Literal["complete", "pruned", "failed"]  # failed: a loss or score that is no number
    history: tuple[float, ...] = ()  # the score where it begins and after every epoch
    epoch: int = 0  # the best, if complete
    updates: int = 0  # the optimiser's steps
    metrics: Mapping[str, float]  # of that epoch, by task

    @property
    def score(self) -> float:
        """The score of the best epoch, if complete."""
        return self.history[self.epoch]


@dataclass(frozen=True)
class Ledger:
    """A folder with the trials of one search."""

    folder: Path
    stem: str

    @property
    def file(self) -> Path:
        """Where the trials are."""
        return self.folder / f"{self.stem}.json"

    def trials(self) -> list[Trial]:
        """Read all trials, in the order in which they ended."""
        if not self.file.is_file():
            return []
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))["trials"]
            return [Trial(**{**one, "history": tuple(one["history"])}) for one in found]
        except (KeyError, TypeError, ValueError) as error:
            raise TrainError(
                f"{self.file}: not the trials of a search ({error}); remove it to search anew"
            ) from error

    def of(self, phase: str, after: Mapping[str, float]) -> list[Trial]:
        """Give the trials of a phase that start from the best of the phases before it."""
        return [one for one in self.trials() if one.phase == phase and one.after == after]

    def add(self, trial: Trial) -> None:
        """Put a trial behind the others."""
        rows = [asdict(one) for one in [*self.trials(), trial]]
        write_json({"schema": SCHEMA, "trials": rows}, self.file)

    def keep(self, trial: Trial, weights: StateDict) -> None:
        """Keep the weights of a trial that is the best so far."""
        write_tensors(self._weights(trial), weights, {})

    def forget(self, trials: Sequence[Trial]) -> None:
        """Remove the weights of trials that are no longer the best."""
        for trial in trials:
            self._weights(trial).unlink(missing_ok=True)

    def weights(self, trial: Trial) -> StateDict:
        """Read the weights of the best trial of a phase."""
        path = self._weights(trial)
        if not path.is_file():
            raise TrainError(
                f"{path}: the weights of the best trial are gone; remove {self.file} as well, "
                "to search anew"
            )
        return read_tensors(path)[0]

    def _weights(self, trial: Trial) -> Path:
        rates = "-".join(f"{rate:.2e}" for rate in [*trial.after.values(), trial.lr])
        return self.folder / f"{self.stem}-{trial.phase}-{rates}.safetensors"
