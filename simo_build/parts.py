"""What every part of a recipe is, and the numbers that several parts hold."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Triple = tuple[float, float, float]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Scale = Annotated[float, Field(ge=1, le=8)]
Scales = Annotated[tuple[Scale, ...], Field(min_length=1)]


class Part(BaseModel):
    """A part of a recipe: unknown keys are refused, nothing changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class JitterPart(Part):
    """How much the colours of training images change at random, each at most."""

    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0  # factors are 1 - x to 1 + x
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # of the circle, either way
