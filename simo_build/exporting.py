"""What a recipe says of export: in which precisions, and how near each must come to PyTorch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from simo_build.parts import Part, Positive
from simo_export.gate import Limits

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Share = Annotated[float, Field(gt=0, le=1)]

# Metrics as the deployment of a fine-tuned model bears them; likeness as NVIDIA holds its ViTs to.
DEFAULTS: dict[str, Limits] = {
    "fp32": Limits(
        cosine=0.9999, patch_cosine=0.999, frobenius=0.001, argmax=0.999, metric_change=0.001
    ),
    "fp16": Limits(
        cosine=0.999, patch_cosine=0.995, frobenius=0.01, argmax=0.99, metric_change=0.005
    ),
    "bf16": Limits(
        cosine=0.999, patch_cosine=0.99, frobenius=0.04, argmax=0.97, metric_change=0.005
    ),
    "int8": Limits(cosine=0.99, patch_cosine=0.95, frobenius=0.15, argmax=0.9, metric_change=0.02),
    "fp8": Limits(cosine=0.99, patch_cosine=0.95, frobenius=0.15, argmax=0.9, metric_change=0.02),
}


class LimitsPart(Part):
    """Limits of one precision that differ from the usual ones."""

    cosine: Share | None = None  # of heads' raw outputs and of features, at least
    patch_cosine: Share | None = None  # of the patch that one in a hundred is worse than
    frobenius: Share | None = None  # |x - y| / |y| of the same, at most
    argmax: Share | None = None  # share of pixels whose class stays, at least
    metric_change: Share | None = None  # of the task's metric, relative, at most


class ExportPart(Part):
    """In which precisions a bundle has its graphs, and the gate before each."""

    precisions: tuple[Precision, ...] = ("fp32",)
    images: Positive = 16  # of the select split, on which the gate compares
    calibration: Positive = 64  # images of the realign split that tell int8 and fp8 their ranges
    gate: dict[Precision, LimitsPart] = Field(default={})

    @field_validator("precisions")
    @classmethod
    def _has_fp32(cls, precisions: tuple[str, ...]) -> tuple[str, ...]:
        if "fp32" not in precisions or len(set(precisions)) < len(precisions):
            raise ValueError("must have fp32, and none twice; the others are made from it")
        return precisions

    def limits(self, precision: str) -> Limits:
        """Give the limits of a precision: the recipe's own, else the usual ones."""
        own = {name: part for name, part in self.gate.items() if name == precision}
        given = own[precision].model_dump(exclude_none=True) if own else {}  # type: ignore[index]  # it is the only key
        return Limits(**{**vars(DEFAULTS[precision]), **given})
