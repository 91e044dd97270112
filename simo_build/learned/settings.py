"""How merging coefficients are learnt: the parameters that all learned methods share."""

from dataclasses import dataclass
from typing import Any

from simo_build.merge.parameters import number, one_of, whole
from simo_runtime.errors import RecipeError

# What coefficients are learnt from.
# labels    the tasks' own losses against the truths of the re-alignment split
# outputs   distance of every head's output from its expert's
# pseudo    the same, with the expert's predictions for truths, where they can be trusted
# features  distance of the shared features from every expert's
# entropy   of the predictions, with no teacher; for segmentation alone
LOSSES = ("labels", "outputs", "pseudo", "features", "entropy")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How coefficients are learnt; a wrong value is refused in one line."""

    loss: str = "outputs"
    confidence: float = 1.0  # share of every image's pixels whose output teaches, the surest ones
    epochs: float = 20
    lr: float = 1e-2
    weight_decay: float = 0.0
    batch: float = 16
    hold: float = 0.25  # share of the images that the best epoch is told by
    seed: float = 0
    precision: str = "fp32"  # of the encoder's forward pass

    def __post_init__(self) -> None:
        one_of("loss", self.loss, LOSSES)
        number("confidence", self.confidence, above=0, most=1)
        if self.confidence != 1 and self.loss not in ("outputs", "pseudo"):
            raise RecipeError(
                f"merge.confidence is {self.confidence}, but loss: {self.loss} has no teacher's "
                "pixels to choose from; leave it out, or take loss: outputs"
            )
        number("lr", self.lr, above=0, most=1)
        number("weight_decay", self.weight_decay, least=0)
        number("hold", self.hold, above=0, below=1)
        one_of("precision", self.precision, ("fp32", "bf16"))
        for name, least in (("epochs", 1), ("batch", 1), ("seed", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least=least))


def held_out(images: int, share: float) -> int:
    """Give how many of the images are held out: the share, at least one, and not all."""
    return min(max(1, round(share * images)), images - 1)


NAMES = tuple(Settings.__dataclass_fields__)


def parted(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell a method's own parameters from those of `Settings`."""
    shared = {name: value for name, value in params.items() if name in NAMES}
    return {n: v for n, v in params.items() if n not in shared}, shared
