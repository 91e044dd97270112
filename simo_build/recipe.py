"""A recipe: the YAML file that says what to merge, how, and from what.

Paths in a recipe that start with `$DATA` are taken from the folder given with `--data` or in the
environment variable SIMO_DATA; any other relative path is relative to the recipe's own folder.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from simo_build.exporting import ExportPart
from simo_build.parts import JitterPart, Part, Positive, Rate, Scales, Seed, Triple
from simo_build.proxies import SELECT, check_choice
from simo_build.sources import KEYS_OF, UNTARGETED, DataPart, Target
from simo_build.steps import Step, check_order
from simo_runtime.errors import SimoError
from simo_runtime.metrics import metric_named
from simo_runtime.tasks import TaskSpec, kind_named

RANDOM = re.compile(r"random\(([0-9]{1,9})\)")
# Names of files and of graph inputs and outputs, and words with another meaning.
RESERVED = re.compile(r"encoder|manifest|joint|all|image|raw|tap[0-9]+")
# Keys of a task that say what its loss is: the kinds that have them, and the usual value.
LOSS_KEYS = {
    "loss": (("normals",), "cosine"),
    "denominator": (("segmentation", "parts"), "valid"),
}


class EncoderPart(Part):
    """Which vision transformer, and where its features are taken."""

    model: str  # a name that timm knows
    options: dict[str, Any] = Field(default={})  # keyword arguments for timm.create_model
    taps: tuple[Positive, ...] = (3, 6, 9, 12)  # blocks after which features are taken, from 1
    norm: bool = False  # whether the encoder's final norm is applied to the taps
    positions: Literal["timm", "dinov2"] = "timm"  # whose way to resample the position embedding

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `positions` where it is the default: files from before it keep their hashes."""
        told: dict[str, Any] = plain(self)
        if self.positions == "timm":
            told.pop("positions", None)
        return told

    @field_validator("taps")
    @classmethod
    def _ascending(cls, taps: tuple[int, ...]) -> tuple[int, ...]:
        if not taps or list(taps) != sorted(set(taps)):
            raise ValueError("must be block numbers in ascending order, at least one")
        return taps


class ImagePart(Part):
    """The network's image, and how a photo becomes it."""

    size: tuple[Positive, Positive]  # height, width in pixels
    fit: Literal["stretch", "letterbox"] = "stretch"
    mean: Triple = (0.5, 0.5, 0.5)  # RGB, 0 to 1; the paper's own normalisation is 2x - 1
    std: Triple = (0.5, 0.5, 0.5)

    @field_validator("mean")
    @classmethod
    def _on_the_scale(cls, mean: Triple) -> Triple:
        if not all(0 <= value <= 1 for value in mean):
            raise ValueError("must be on a scale of 0 to 1, not of 0 to 255")
        return mean

    @field_validator("std")
    @classmethod
    def _divides(cls, std: Triple) -> Triple:
        if not all(value > 0 for value in std):
            raise ValueError("must be greater than 0")
        return std


class PhaseChange(Part):
    """What is to differ from a phase of `train`; a key that is left out stays as it is there."""

    epochs: Positive | None = None
    lr: Rate | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None

    def of(self, phase: "Phase") -> "Phase":
        """Give the phase with the changes."""
        keys = ("epochs", "lr", "weight_decay")
        given = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        return phase.model_copy(update=given)


class TaskTrainPart(Part):
    """How the training of one task's expert differs from that of all."""

    head: PhaseChange = PhaseChange()
    full: PhaseChange = PhaseChange()


class JointPart(PhaseChange):
    """How one encoder and all heads are trained together; epochs and rate are else `full`'s."""

    # of the tasks' losses; experts: their mean, each divided by its expert's on select
    loss: Literal["mean", "sum", "experts"] = "mean"
    by: Literal["base", "experts"] = "base"  # whose metrics equation 1 compares epochs with


class TaskPart(Part):
    """One task: what it predicts, with which head, from which expert."""

    kind: str
    head: str = "linear"
    labels: tuple[str, ...] = ()
    metric: str = ""
    target: Target | None = None
    loss: Literal["cosine", "l1"] | None = None  # of normals; None: cosine
    denominator: Literal["valid", "all"] | None = None  # pixels in cross entropy's; None: valid
    expert: str | None = None  # a checkpoint; by default the one that simo-train writes
    train: TaskTrainPart = TaskTrainPart()

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, name: str) -> str:
        return _checked(kind_named, name)

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"{twice[0]!r} stands twice")
        return labels

    @model_validator(mode="after")
    def _target_fits_kind(self) -> "TaskPart":
        if self.target is None:
            return self
        if self.kind in UNTARGETED:
            raise ValueError(f"the truth of kind {self.kind} is the image; `target` has no meaning")
        for key in sorted(self.target.given() & set(KEYS_OF)):
            if self.kind not in KEYS_OF[key]:
                raise ValueError(f"target.{key} has no meaning for kind {self.kind}")
        classes = self.target.classes
        if classes is not None and not len(set(classes)) == len(classes) == len(self.labels):
            raise ValueError(
                f"target.classes must be {len(self.labels)} different numbers, one for each label"
            )
        return self

    @model_validator(mode="after")
    def _fits_kind(self) -> "TaskPart":
        kind = kind_named(self.kind)
        if kind.channels is None and not 2 <= len(self.labels) <= 255:
            raise ValueError(f"kind {self.kind} needs `labels`, 2 to 255 class names")
        if kind.channels is not None and self.labels:
            raise ValueError(f"kind {self.kind} has no classes, so `labels` has no meaning")
        if self.metric:
            _checked(metric_named, self.metric)
        if self.metric not in ("", *kind.metrics):
            raise ValueError(
                f"metric {self.metric}: kind {self.kind} has {', '.join(kind.metrics)}"
            )
        return self

    @model_validator(mode="after")
    def _loss_fits_kind(self) -> "TaskPart":
        for key, (kinds, _) in LOSS_KEYS.items():
            if getattr(self, key) is not None and self.kind not in kinds:
                told = f"{key} has no meaning for kind {self.kind}; it is of {' and '.join(kinds)}"
                raise ValueError(f"{told}, leave it out")
        return self

    def own_loss(self) -> dict[str, str]:
        """Give how the loss differs from the kind's usual one, if it does.

        Names of files depend on it: those that were there before these keys must keep theirs.
        """
        given = {key: getattr(self, key) for key in LOSS_KEYS}
        return {k: v for k, v in given.items() if v not in (None, LOSS_KEYS[k][1])}


class Phase(Part):
    """How long and how fast something is trained: AdamW with one cycle of the learning rate."""

    epochs: Positive
    lr: Rate
    weight_decay: Annotated[float, Field(ge=0)] = 0.01


class TrainPart(Part):
    """How experts are trained: the head on a frozen encoder, then both (paper, section 5)."""

    seed: Seed = 0
    batch: Positive = 16
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.05  # share of the steps
    clip: Annotated[float, Field(gt=0)] = 25.0  # largest norm of the gradient
    flip: bool = True  # mirror half of the images
    scales: Scales = (1.0,)  # enlarge by one, crop
    jitter: JitterPart = JitterPart()
    augment_select: bool = False  # change the images of `select` so too, once
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder's forward pass
    store: Literal["fp32", "fp16"] = "fp32"  # of the expert's file
    head: Phase = Phase(epochs=10, lr=1e-3)
    full: Phase = Phase(epochs=20, lr=1e-4)
    joint: JointPart = JointPart()

    @model_validator(mode="after")
    def _changes_select(self) -> "TrainPart":
        changes = self.flip or set(self.scales) != {1.0} or any(self.jitter.model_dump().values())
        if self.augment_select and not changes:
            raise ValueError(
                "augment_select changes images by flip, scales and jitter; set one of these"
            )
        return self


class LinesPart(Part):
    """LiNeS on top of a merging method: scale what it gives by depth."""

    beta: float | None = None  # how much more the last block gets; None: it is in `choose`
    alpha: float | Literal["balanced"] = "balanced"  # of the first block; balanced: the paper's

    @field_validator("alpha", mode="before")
    @classmethod
    def _number_or_balanced(cls, alpha: object) -> object:
        if alpha != "balanced" and (isinstance(alpha, bool) or not isinstance(alpha, (int, float))):
            raise ValueError("must be a number, or balanced")
        return alpha

    def given(self) -> dict[str, Any]:
        """Give the values that are there, under their names in `choose`."""
        found = {"lines.beta": self.beta, "lines.alpha": self.alpha}
        return {name: value for name, value in found.items() if value is not None}


class MergePart(Part):
    """The merging method, its parameters, and which of them are chosen, by what."""

    method: str = "task_arithmetic"
    params: dict[str, Any] = Field(default={})
    choose: dict[str, tuple[float, ...]] = Field(default={})
    by: str = SELECT  # how candidates are judged: on the select split, or by a proxy without labels
    lines: LinesPart | None = None
    images: Positive = 128  # how many unlabelled images a method or a proxy may look at

    @field_validator("by")
    @classmethod
    def _known_choice(cls, name: str) -> str:
        return _checked(check_choice, name)

    @model_validator(mode="after")
    def _chooses_by(self) -> "MergePart":
        if self.by != SELECT and not self.choose:
            raise ValueError(f"by: {self.by} has nothing to choose; give candidates in `choose`")
        if self.by != SELECT and self.images < 2:
            raise ValueError(f"images is {self.images}; a choice by {self.by} needs at least 2")
        return self

    @model_validator(mode="after")
    def _not_both(self) -> "MergePart":
        both = set(self.params) & set(self.choose)
        if both:
            raise ValueError(f"{', '.join(sorted(both))} is in both `params` and `choose`")
        if any(not values for values in self.choose.values()):
            raise ValueError("`choose` needs at least one value for each parameter")
        return self

    @model_validator(mode="after")
    def _lines_on_top(self) -> "MergePart":
        chosen = {name for name in self.choose if name.startswith("lines.")}
        if self.lines is None:
            if chosen:
                raise ValueError(f"{min(chosen)} is in `choose`, but there is no `lines`")
            return self
        if self.method == "lines":
            raise ValueError("`lines` goes on top of another method; `method: lines` is one itself")
        if foreign := chosen - {"lines.alpha", "lines.beta"}:
            raise ValueError(f"{min(foreign)}: `lines` has alpha and beta")
        if both := {f"lines.{key}" for key in self.lines.model_fields_set} & chosen:
            raise ValueError(f"{min(both)} is in both `lines` and `choose`")
        if self.lines.beta is None and "lines.beta" not in chosen:
            raise ValueError(
                "`lines` needs beta; give it, or candidates for lines.beta in `choose`"
            )
        return self

    def fixed(self) -> dict[str, Any]:
        """Give the parameters that are not chosen, those of `lines` as `lines.<name>`."""
        return {**self.params, **(self.lines.given() if self.lines else {})}


class ReportPart(Part):
    """What the report beside a bundle shows."""

    images: Annotated[int, Field(ge=0, le=64)] = 4  # of the select split; 0: no pictures


class Recipe(Part):
    """A whole recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    encoder: EncoderPart
    base: str  # a checkpoint of the encoder that the experts came from, or random(seed)
    image: ImagePart
    tasks: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], TaskPart]
    data: DataPart | None = None
    train_missing: bool = False  # whether simo-build may train an expert that is not there
    train: TrainPart = TrainPart()
    merge: MergePart = MergePart()
    realign: tuple[Step, ...] = ()
    export: ExportPart = ExportPart()
    report: ReportPart = ReportPart()

    @field_validator("base")
    @classmethod
    def _file_or_seed(cls, base: str) -> str:
        if base.strip().startswith("random(") and not RANDOM.fullmatch(base.strip()):
            raise ValueError("a random base is random(seed), the seed at most nine digits")
        return base

    @model_validator(mode="after")
    def _hangs_together(self) -> "Recipe":
        if not self.tasks:
            raise ValueError("tasks: there must be at least one")
        if taken := [name for name in self.tasks if RESERVED.fullmatch(name)]:
            raise ValueError(f"tasks: {taken[0]} is a reserved name")
        if self.data is None and (self.realign or self.merge.choose):
            raise ValueError("`realign` and `merge.choose` need `data`")
        check_order(self.realign)
        return self

    @model_validator(mode="after")
    def _has_images_for_all_steps(self) -> "Recipe":
        unlabelled = any(getattr(step, "unlabelled", False) for step in self.realign)
        if self.data is not None and unlabelled and self.data.unlabelled is None:
            raise ValueError(
                "realign: a step with `unlabelled` needs `data.unlabelled`, a split's name"
            )
        return self

    @property
    def blind(self) -> list[str]:
        """The tasks whose truth is nowhere; if there are any, no truth is ever read."""
        return [
            name
            for name, task in self.tasks.items()
            if task.target is None and task.kind not in UNTARGETED
        ]

    @property
    def random_seed(self) -> int | None:
        """The seed of a random base, or None for a real one."""
        match = RANDOM.fullmatch(self.base.strip())
        return int(match.group(1)) if match else None

    def training(self, task: str) -> TrainPart:
        """Give how the expert of a task is trained: `train` with the task's own changes.

        What experts do not depend on is as if it had not been given.
        """
        own = self.tasks[task].train
        phases = {"head": own.head.of(self.train.head), "full": own.full.of(self.train.full)}
        return self.train.model_copy(update={**phases, "joint": JointPart()})

    def own_losses(self) -> dict[str, dict[str, dict[str, str]]]:
        """Give, for hashes, which tasks' losses are not their kinds' usual ones, if any is."""
        found = {task: own for task, part in self.tasks.items() if (own := part.own_loss())}
        return {"losses": found} if found else {}

    def specs(self) -> dict[str, TaskSpec]:
        """Give the tasks as the runtime knows them."""
        return {name: _spec(name, task) for name, task in self.tasks.items()}


def _spec(name: str, task: TaskPart) -> TaskSpec:
    kind = kind_named(task.kind)
    return TaskSpec(
        name=name,
        kind=task.kind,
        channels=len(task.labels) if kind.channels is None else kind.channels,
        metric=task.metric or kind.metrics[0],
        labels=task.labels,
    )


def _checked(look_up: Any, name: str) -> str:
    try:
        look_up(name)
    except SimoError as error:  # pydantic keeps the path of the key only for a ValueError
        raise ValueError(str(error)) from error
    return name
