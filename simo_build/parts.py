"""What every part of a recipe is, and the numbers that several parts hold."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Triple = tuple[float, float, float]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Part(BaseModel):
    """A part of a recipe: unknown keys are refused, nothing changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
