"""The steps of re-alignment as a recipe writes them, told apart by `step`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from simo_build.parts import JitterPart, Part, Positive, Rate, Scales, Seed

Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Layer = Literal["qkv", "proj", "fc1", "fc2"]  # the linear layers of a block


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
        return self

    @model_validator(mode="after")
    def _views_differ(self) -> "JointStep":
        changes = set(self.scales) != {1.0} or any(self.jitter.model_dump().values())
        if self.views > 1 and not changes:
            raise ValueError(f"views: {self.views} are all the same; set scales or jitter")
        if self.views == 1 and changes:
            raise ValueError("scales and jitter make views; set views to how many of an image")
        if self.mirror and not (self.outputs and self.flip):
            raise ValueError("mirror takes the mean of experts' outputs: set outputs and flip")
        if self.unlabelled and not (self.outputs or self.features):
            raise ValueError("images without labels need teachers: set outputs or features")
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


AnyStep = HeadStep | DistillStep | LoraStep | RepresentationStep
Step = Annotated[AnyStep, Field(discriminator="step")]
