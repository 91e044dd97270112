"""simo-train --search: find the learning rates of a training's phases, one after the other.

As in appendix C of arXiv 2504.11268 rates lie between 1e-8 and 1e-3, all magnitudes alike, and are
proposed by a Bayesian method (TPE), here Optuna's; the first five are spread evenly, one a
magnitude. Trials are judged on the select split; one that is behind half of the others is ended
early. The second phase starts from the best of the first.

Every trial is kept as it ends, and the next one depends on nothing but those and the seed: a
search that was killed goes on to the same end. The weights of the best become the file that
training with the rates found would write, so that nothing is trained again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import optuna

from simo_build.fit import Outcome
from simo_build.hashing import digest
from simo_build.loading import LoadedRecipe
from simo_build.progress import Progress
from simo_build.searched import Searched, Tried, open_searched
from simo_build.statedict import StateDict
from simo_build.trials import SCHEMA, Ledger, Trial
from simo_runtime.errors import TrainError

LOW, HIGH = 1e-8, 1e-3
RATES = optuna.distributions.FloatDistribution(LOW, HIGH, log=True)
FIRST = (3.16e-5, 3.16e-4, 3.16e-6, 3.16e-7, 3.16e-8)  # before there is enough to go by


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found: all trials, the best of every phase, and the file it became."""

    name: str
    metric: str
    trials: Sequence[Trial]
    best: Mapping[str, Trial]
    lines: str  # of the recipe
    path: Path


def search(
    loaded: LoadedRecipe, task: str, count: int, progress: Progress, *, role: str = "train"
) -> Found:
    """Search until every phase has `count` trials, those of earlier runs among them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searched = open_searched(loaded, task, role, progress)
    key = digest({"schema": SCHEMA, "rates": [LOW, HIGH, *FIRST], "training": searched.key})
    ledger = Ledger(loaded.experts / loaded.recipe.name, f"search-{task}-{key[:12]}")
    study = Study(searched, ledger, loaded.recipe.train.seed, progress)
    best: dict[str, Trial] = {}
    trials: list[Trial] = []
    for phase in searched.phases:
        trials += study.run(phase, best, count)
        best[phase] = study.best(phase, trials)
    rates = {phase: trial.lr for phase, trial in best.items()}
    return Found(
        name=task,
        metric=searched.score.name,
        trials=trials,
        best=best,
        lines=searched.lines(rates),
        path=searched.write(rates, {phase: study.tried(trial) for phase, trial in best.items()}),
    )


@dataclass(frozen=True)
class Study:
    """Trials of one training: what is tried next, and which was best."""

    searched: Searched
    ledger: Ledger
    seed: int
    progress: Progress

    def run(self, phase: str, before: Mapping[str, Trial], count: int) -> list[Trial]:
        """Give the trials of a phase, which starts from the best of those before it."""
        after = {name: trial.lr for name, trial in before.items()}
        done = self.ledger.of(phase, after)
        start = self.ledger.weights(list(before.values())[-1]) if before else {}
        for number in range(len(done) + 1, count + 1):
            asked = self._asked(phase, done)
            lr = float(f"{asked.params['lr']:.2e}")  # what the recipe's line will say
            blank = Trial(phase=phase, after=after, lr=lr, ended="failed", metrics={})
            trial, weights = self._trained(blank, asked, start)
            self._keep(trial, weights, done)
            done.append(trial)
            score = f"{self.searched.score.name} {trial.score:.4f}" if weights else trial.ended
            name = f"{self.searched.name}, {phase}, trial {number}/{count}"
            self.progress.say(f"{name}: lr {lr:.2e}, {score}")
        return done

    def best(self, phase: str, trials: Sequence[Trial]) -> Trial:
        """Give the first of the best trials of a phase."""
        best = self._best([trial for trial in trials if trial.phase == phase])
        if best is None:
            raise TrainError(
                f"{self.searched.name}, {phase}: not one rate gave a score that is a number, see "
                f"{self.ledger.file}. Look at the truths of the data and at `train.clip`, or "
                "search with more trials."
            )
        return best

    def tried(self, trial: Trial) -> Tried:
        """Give what the best trial of a phase gave."""
        outcome = Outcome(
            epoch=trial.epoch, metric=trial.score, history=trial.history, updates=trial.updates
        )
        return Tried(self.ledger.weights(trial), outcome, trial.metrics)

    def _best(self, trials: Sequence[Trial]) -> Trial | None:
        best: Trial | None = None
        for trial in trials:
            leads = best is None or self.searched.score.better(trial.score, best.score)
            best = trial if trial.ended == "complete" and leads else best
        return best

    def _keep(self, trial: Trial, weights: StateDict | None, done: Sequence[Trial]) -> None:
        """Keep a trial; if it is the best its weights first, so that they are never missing."""
        leads = weights is not None and self._best([*done, trial]) is trial
        if weights is not None and leads:
            self.ledger.keep(trial, weights)
        self.ledger.add(trial)
        if leads:
            self.ledger.forget([one for one in done if one.lr != trial.lr])

    def _asked(self, phase: str, done: Sequence[Trial]) -> optuna.Trial:
        """Let Optuna choose a rate, by nothing but the trials so far and the seed."""
        study = optuna.create_study(
            direction="minimize" if self.searched.score.better(0.0, 1.0) else "maximize",
            sampler=optuna.samplers.TPESampler(
                seed=self.seed + len(done), n_startup_trials=len(FIRST)
            ),
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=len(FIRST), n_warmup_steps=self.searched.epochs(phase) // 3
            ),
        )
        study.add_trials([known(trial) for trial in done])
        for lr in FIRST[len(done) :][:1]:
            study.enqueue_trial({"lr": lr})
        return study.ask({"lr": RATES})

    def _trained(
        self, trial: Trial, asked: optuna.Trial, start: StateDict
    ) -> tuple[Trial, StateDict | None]:
        """Train with the rate of a trial, unless it falls behind; weights only if it did not."""
        history: list[float] = []

        def watch(score: float) -> None:
            history.append(score)
            epoch = len(history) - 1
            if epoch and isfinite(score):
                asked.report(score, epoch)
                if epoch < self.searched.epochs(trial.phase) and asked.should_prune():
                    raise optuna.TrialPruned

        try:
            tried = self.searched.train(trial.phase, trial.lr, start, watch)
        except optuna.TrialPruned:
            return replace(trial, ended="pruned", history=tuple(history)), None
        except TrainError as error:  # the loss is not a number
            self.progress.say(str(error))
            return replace(trial, history=tuple(history)), None
        one = tried.outcome
        trial = replace(
            trial,
            history=one.history,
            epoch=one.epoch,
            updates=one.updates,
            metrics=dict(tried.metrics),
        )
        if not isfinite(one.metric):
            return trial, None
        return replace(trial, ended="complete"), tried.weights


def known(trial: Trial) -> optuna.trial.FrozenTrial:
    """Give a trial as Optuna knows it; one that was not trained to the end counts as behind."""
    complete = trial.ended == "complete"
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED,
        value=trial.score if complete else None,
        params={"lr": trial.lr},
        distributions={"lr": RATES},
        intermediate_values={
            epoch: score for epoch, score in enumerate(trial.history) if epoch and isfinite(score)
        },
    )


def table(found: Found) -> str:
    """Lay all trials out for people, and what to copy into the recipe."""
    lines = [("phase", "lr", found.metric.replace("_", " "), "epoch", "")]
    for trial in found.trials:
        complete, epochs = trial.ended == "complete", max(0, len(trial.history) - 1)
        score, epoch = (
            (f"{trial.score:.4f}", f"{trial.epoch} of {epochs}") if complete else ("", "")
        )
        leads = "best" if trial in found.best.values() else ""
        told = leads if complete else f"{trial.ended} after {epochs}"
        lines.append((trial.phase, f"{trial.lr:.2e}", score, epoch, told))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    body = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    title = f"{found.name}: learning rates, judged on the select split"
    return "\n".join(
        [title, "", body[0], "-" * sum(widths), *body[1:], "", "For the recipe:", "", found.lines]
    )
