"""The steps of re-alignment as a recipe writes them, told apart by `step`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from simo_build.parts import Part, Positive, Rate, Seed

Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Layer = Literal["qkv", "proj", "fc1", "fc2"]  # the linear layers of a block
# What an expert's output of classes teaches: all its probabilities, its most likely class, or that
# class where it is also the student's, or the expert is at least as sure as the student is.
Target = Literal["soft", "pseudo", "trusted"]


class HeadStep(Part):
    """Re-align the heads: freeze the encoder, compute the features once, train every head."""

    step: Literal["head"]
    seed: Seed = 0
    batch: Positive = 16
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.05
    clip: Annotated[float, Field(gt=0)] = 25.0
    epochs: Positive = 12
    lr: Rate = 1e-4
    weight_decay: Weight = 0.05
    flip: bool = True  # train on the mirrored images too


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


class DistillStep(JointStep):
    """Train the whole encoder and all heads together."""

    step: Literal["distill"]


class LoraStep(JointStep):
    """Train low-rank changes of the encoder's linear layers, and all heads; then fold them in."""

    step: Literal["lora"]
    rank: Positive = 16
    scale: Annotated[float, Field(gt=0)] = 1.0  # W + scale B A
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)] = ("qkv", "proj", "fc1", "fc2")
    lr: Rate = 1e-3
    weight_decay: Weight = 0.0


class RepresentationStep(JointStep):
    """Train a linear map of low rank beside every block, f(x) + B A x, and all heads (paper)."""

    step: Literal["representation"]
    rank: Positive = 16
    lr: Rate = 1e-3
    weight_decay: Weight = 0.0


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


AnyStep = HeadStep | DistillStep | LoraStep | RepresentationStep | TintStep
Step = Annotated[AnyStep, Field(discriminator="step")]
