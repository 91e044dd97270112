"""What merging methods may need beside the experts' weights, gathered on images of `realign`.

KINDS holds one function a kind: an expert and images in, tensors by the names of weights out. A
kind says whether it reads truths too. Results are kept like those of stages, one a task, so that
all candidates of a method, and all methods of a kind, share them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simo_build.data import Samples
from simo_build.fisher import Likelihoods, gather_fisher, of_predictions, of_truths
from simo_build.losses import TorchKind, torch_kind
from simo_build.merge import Evidence
from simo_build.moments import Statistics, gather_grams, gather_statistics
from simo_build.stages import Result
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop


@dataclass(frozen=True)
class Kind:
    """How evidence of a kind is gathered for one task."""

    gather: Callable[[Workshop, str, Samples], StateDict]
    labels: bool = False  # whether the truths of the images are read


def grams(work: Workshop, task: str, samples: Samples) -> StateDict:
    """Give the second moments of the inputs of an expert's layers (`moments.gather_grams`)."""
    work.encoder.load(work.experts[task].encoder, source=f"expert {task}")
    label = f"inputs of expert {task}"
    return gather_grams(work.encoder, samples, label=label, progress=work.stages.progress)


def fisher(work: Workshop, task: str, samples: Samples) -> StateDict:
    """Give the Fisher information of an expert's weights, of its own predictions."""
    return _fisher(work, task, samples, of_predictions(_kind(work, task)))


def fisher_labels(work: Workshop, task: str, samples: Samples) -> StateDict:
    """Give the empirical Fisher information, of the task's loss against the truths."""
    return _fisher(work, task, samples, of_truths(_kind(work, task), samples, task))


def _kind(work: Workshop, task: str) -> TorchKind:
    return torch_kind(work.recipe.tasks[task])


def _fisher(work: Workshop, task: str, samples: Samples, likelihoods: Likelihoods) -> StateDict:
    return gather_fisher(
        work.encoder,
        work.experts[task].encoder,
        work.expert_heads()[task],
        samples,
        likelihoods,
        label=f"information of expert {task}",
        progress=work.stages.progress,
    )


KINDS: dict[str, Kind] = {
    "grams": Kind(grams),
    "fisher": Kind(fisher),
    "fisher_labels": Kind(fisher_labels, labels=True),
}


class Gathered:
    """The evidence of one kind for every task of a recipe, read from the stages or made."""

    def __init__(self, work: Workshop, kind: str) -> None:
        self.work, self.kind = work, kind
        self.images = work.recipe.merge.images

    def about(self) -> dict[str, int]:
        """Say what was looked at: `images`, and how many of them with `labels`."""
        return {"images": self.images, "labels": self.images if KINDS[self.kind].labels else 0}

    def read(self) -> list[Evidence]:
        """Give one mapping a task, in the order of the recipe's tasks."""
        return [self._one(task).tensors for task in self.work.experts]

    def _one(self, task: str) -> Result:
        work, kind = self.work, KINDS[self.kind]

        def make() -> tuple[StateDict, dict[str, Any]]:
            samples = (work.labelled if kind.labels else work.unlabelled)(self.images)
            return kind.gather(work, task, samples), self.about()

        return work.stages.run(f"{self.kind}-{task}", self.inputs(task), make)

    def kept(self) -> bool:
        """Whether an earlier build has gathered it for every task."""
        stages = self.work.stages
        return all(
            stages.kept(f"{self.kind}-{task}", self.inputs(task)) for task in self.work.experts
        )

    def inputs(self, task: str) -> dict[str, Any]:
        """Give everything that one expert's evidence depends on."""
        work, recipe = self.work, self.work.recipe.model_dump(mode="json")
        seen = {key: value for key, value in work.inputs().items() if key != "experts"}
        return {
            **seen,
            "expert": work.experts[task].hash,
            "encoder": recipe["encoder"],
            "image": recipe["image"],
            "task": recipe["tasks"][task],
            "images": self.images,
        }


def statistics(work: Workshop, weights: StateDict, samples: Samples, label: str) -> Statistics:
    """Give mean and covariance of every block's tokens with some encoder weights, on images.

    It serves to compare a merged encoder with its experts, and to calibrate it towards them.
    """
    work.encoder.load(weights, source=label)
    about = f"statistics of {label}"
    return gather_statistics(work.encoder, samples, label=about, progress=work.stages.progress)
