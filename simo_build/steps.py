"""The steps of re-alignment as a recipe writes them, told apart by `step`."""

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from simo_build.parts import JitterPart, Part, Positive, Rate, Scales, Seed

Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Layer = Literal["qkv", "proj", "fc1", "fc2"]  # the linear layers of a block
# What an expert's output of classes teaches: all its probabilities, its most likely class, or that
# class where it is also the student's, or the expert is at least as sure as the student is.
Target = Literal["soft", "pseudo", "trusted"]


class HeadStep(Part):
    """Re-align the heads: freeze the encoder, compute the features once, train every head."""

    step: Literal["head"]
    labels: bool = True  # learn from the truths
    outputs: Weight = 0.0  # how much the experts' outputs count, beside labels' 1
    targets: Target = "soft"  # what an expert's output of classes is taken for
    by: Literal["select", "teachers"] = "select"  # what tells the best epoch
    seed: Seed = 0
    batch: Positive = 16
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.05
    clip: Annotated[float, Field(gt=0)] = 25.0
    epochs: Positive = 12
    lr: Rate = 1e-4
    weight_decay: Weight = 0.05
    flip: bool = True  # train on the mirrored images too
    ema: Share = 0.0  # decay of the average of the weights that is measured and kept; 0: none
    patience: Positive | None = None  # stop after so many epochs without a better one

    @model_validator(mode="after")
    def _learns_from_something(self) -> "HeadStep":
        if not (self.labels or self.outputs):
            raise ValueError("there is nothing to learn from: set labels or outputs")
        if self.by == "teachers" and not self.outputs:
            raise ValueError("by: teachers needs teachers: set outputs")
        if "targets" in self.model_fields_set and not self.outputs:
            raise ValueError("targets says what outputs teach, so it needs outputs")
        return self


class JointStep(Part):
    """What steps share that train the encoder together with the heads, by labels or teachers."""

    labels: bool = False  # learn from the truths
    outputs: Weight = 1.0  # how much the experts' outputs count, beside labels' 1
    targets: Target = "soft"  # what an expert's output of classes is taken for
    features: Weight = 0.0  # how much the experts' tapped features count
    units: Literal["base", "experts"] = "base"  # whose losses those of labels are divided by
    by: Literal["select", "teachers"] = "select"  # what tells the best epoch
    seed: Seed = 0
    batch: Positive = 16
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.05
    clip: Annotated[float, Field(gt=0)] = 25.0
    epochs: Positive = 12
    lr: Rate = 2e-4
    weight_decay: Weight = 0.01
    flip: bool = True  # train on the mirrored images too
    views: Positive = 1  # of every image: itself, and others enlarged, cropped and recoloured
    scales: Scales = (1.0,)  # by how much a view is enlarged
    fresh: bool = False  # draw the views anew for every epoch
    jitter: JitterPart = JitterPart()  # how much the colours of a view change
    mirror: bool = False  # an expert's answer is its mean over the image and the mirrored one
    unlabelled: bool = False  # learn on the images of `data.unlabelled` too, from teachers alone
    ema: Share = 0.0  # decay of the average of the weights that is measured and kept; 0: none
    patience: Positive | None = None  # stop after so many epochs without a better one
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder's forward pass

    @model_validator(mode="after")
    def _learns_from_something(self) -> "JointStep":
        if not (self.labels or self.outputs or self.features):
            raise ValueError("there is nothing to learn from: set labels, outputs or features")
        if self.units == "experts" and not self.labels:
            raise ValueError("units: experts divides the losses of labels, so it needs labels")
        if self.by == "teachers" and not (self.outputs or self.features):
            raise ValueError("by: teachers needs teachers: set outputs or features")
        if "targets" in self.model_fields_set and not self.outputs:
            raise ValueError("targets says what outputs teach, so it needs outputs")
        return self

    @model_validator(mode="after")
    def _views_differ(self) -> "JointStep":
        changes = set(self.scales) != {1.0} or any(self.jitter.model_dump().values())
        if self.views > 1 and not changes:
            raise ValueError(f"views: {self.views} are all the same; set scales or jitter")
        if self.views == 1 and changes:
            raise ValueError("scales and jitter make views; set views to how many of an image")
        if self.fresh and self.views == 1:
            raise ValueError("fresh draws views anew; set views to how many of an image")
        if self.mirror and not (self.outputs and self.flip):
            raise ValueError("mirror takes the mean of experts' outputs: set outputs and flip")
        if self.unlabelled and not (self.outputs or self.features):
            raise ValueError("images without labels need teachers: set outputs or features")
        return self


# The views that were measured on real frames, where they gave the most of all that was tried.
MEASURED: dict[str, Any] = {
    "views": 5,
    "fresh": True,
    "scales": (1.0, 1.2, 1.5),
    "jitter": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.03},
    "mirror": True,
}


class DistillStep(JointStep):
    """Train the whole encoder and all heads together.

    Without a word on views they are those that were measured; `views: 1` leaves images as they are.
    """

    step: Literal["distill"]
    epochs: Positive = 4
    lr: Rate = 3e-4

    @model_validator(mode="before")
    @classmethod
    def _views_as_measured(cls, content: Any) -> Any:
        if not isinstance(content, dict) or MEASURED.keys() & content.keys():
            return content
        mirrors = content.get("outputs", 1) != 0 and content.get("flip", True) is not False
        return {**content, **MEASURED, "mirror": mirrors}


class LoraStep(JointStep):
    """Train low-rank changes of the encoder's linear layers, and all heads; then fold them in."""

    step: Literal["lora"]
    rank: Positive = 16
    scale: Annotated[float, Field(gt=0)] = 1.0  # W + scale B A
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)] = ("qkv", "proj", "fc1", "fc2")
    lr: Rate = 3e-4
    weight_decay: Weight = 0.0


class RepresentationStep(JointStep):
    """Train a map of low rank beside every block, and all heads."""

    step: Literal["representation"]
    variant: Literal["paper", "released"] = "paper"  # f(x) + B A x, or y - U ReLU(D y) of y = f(x)
    heads: Literal["all", "none"] = "all"  # none: the maps alone are trained
    rank: Positive = 16
    lr: Rate = 1e-4
    weight_decay: Weight = 0.0


# The parameters of every method of calibration, with the values that papers or `merge` give them;
# but for the ridge, 0.05 in the paper, which was chosen on the select split of NYUv2.
CALIBRATIONS: dict[str, dict[str, float]] = {
    "featcal": {"alpha": 0.3, "rho": 2.0, "ridge": 0.2},
    "regmean": {"alpha": 1.0, "off_diagonal": 0.9},
    "lot": {"alpha": 1.0, "rcond": 1e-6},
}
Mix = Annotated[float, Field(ge=0, le=1)]
Reach = Annotated[float, Field(ge=0, le=16)]
# products are float32 and of a size of 1: a ridge below their rounding would hold nothing
Ridge = Annotated[float, Field(ge=1e-6, le=1e6)]
Cut = Annotated[float, Field(gt=0, lt=1)]


class CalibrateChoice(Part):
    """Candidates for parameters of calibration."""

    alpha: Annotated[tuple[Mix, ...], Field(min_length=1)] | None = None
    rho: Annotated[tuple[Reach, ...], Field(min_length=1)] | None = None
    ridge: Annotated[tuple[Ridge, ...], Field(min_length=1)] | None = None
    off_diagonal: Annotated[tuple[Mix, ...], Field(min_length=1)] | None = None
    rcond: Annotated[tuple[Cut, ...], Field(min_length=1)] | None = None

    def given(self) -> dict[str, tuple[float, ...]]:
        """Give the candidates of every parameter that has some."""
        return {name: values for name, values in dict(self).items() if values is not None}


class CalibrateStep(Part):
    """Solve the encoder's layers in closed form, on images without labels; the heads stay."""

    step: Literal["calibrate"]
    method: Literal["featcal", "regmean", "lot"] = "featcal"
    images: Positive = 128  # how many of `realign`, spread evenly
    alpha: Mix | None = None
    rho: Reach | None = None
    ridge: Ridge | None = None
    off_diagonal: Mix | None = None
    rcond: Cut | None = None
    choose: CalibrateChoice = CalibrateChoice()
    by: Literal["select", "teachers"] = "select"  # how candidates are judged

    @model_validator(mode="after")
    def _fits_method(self) -> "CalibrateStep":
        known, given, chosen = CALIBRATIONS[self.method], self._given(), self.choose.given()
        if foreign := sorted({*given, *chosen} - {*known}):
            raise ValueError(f"{self.method} has no {foreign[0]}; it has {', '.join(known)}")
        if both := sorted({*given} & {*chosen}):
            raise ValueError(f"{both[0]} is given twice, also in `choose`")
        if "by" in self.model_fields_set and not chosen:
            raise ValueError(f"by: {self.by} has nothing to choose; give candidates in `choose`")
        return self

    def candidates(self) -> list[dict[str, float]]:
        """Give the method's parameters, every combination of those that are to be chosen."""
        fixed, chosen = {**CALIBRATIONS[self.method], **self._given()}, self.choose.given()
        grid = itertools.product(*chosen.values())
        return [fixed | dict(zip(chosen, values, strict=True)) for values in grid]

    def _given(self) -> dict[str, float]:
        names = CalibrateChoice.model_fields
        return {
            name: value for name, value in dict(self).items() if name in names and value is not None
        }


class TintStep(JointStep):
    """Train a coefficient for every expert's delta, on top of the encoder, and a layer of heads."""

    step: Literal["tint"]
    granularity: Literal["tensor", "layer", "task"] = "tensor"  # what shares a coefficient
    heads: Literal["last", "all", "none"] = "last"  # which layers of every head are trained
    targets: Target = "trusted"
    lr: Rate = 1e-2  # of the coefficients
    head_lr: Rate = 1e-3
    weight_decay: Weight = 0.0

    @model_validator(mode="after")
    def _trains_heads(self) -> "TintStep":
        if self.heads == "none" and "head_lr" in self.model_fields_set:
            raise ValueError("head_lr has no meaning with heads: none")
        return self


AnyStep = HeadStep | DistillStep | LoraStep | RepresentationStep | CalibrateStep | TintStep
Step = Annotated[AnyStep, Field(discriminator="step")]


def check_order(steps: Sequence[AnyStep]) -> None:
    """Refuse a list of steps in which one cannot work on what those before it leave."""
    names = [step.step for step in steps]
    if names.count("representation") > 1:
        raise ValueError(
            "realign: `representation` stands twice; `distill` trains its maps further"
        )
    if "representation" in names and "calibrate" in names[names.index("representation") :]:
        raise ValueError(
            "realign: `calibrate` solves the weights of blocks that have no maps beside them; "
            "put it before `representation`"
        )
