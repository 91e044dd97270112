"""PyTorch modules that users bring: found by `module:function`, and held to what a bundle needs.

Shapes: B images, H x W pixels, N tokens, D width, K channels.
encoder: pixels uint8 (B, H, W, 3) RGB  ->  a float32 (B, N, D), or several of them.
head: those of the encoder  ->  raw float32 (B, K, H, W), before what its kind does last.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from simo_build.heads import Head
from simo_runtime.errors import ExportError, RecipeError
from simo_runtime.tasks import TaskSpec


class Tupled(nn.Module):
    """Gives a module's outputs as a tuple, even a single one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels_BHW3: Tensor) -> tuple[Tensor, ...]:
        found = self.module(pixels_BHW3)
        return (found,) if isinstance(found, Tensor) else tuple(found)


class OwnEncoder(nn.Module):
    """An encoder of a user's: as it is, since nothing is known of what could be folded."""

    prefix = 0  # which of its tokens are no patches is not known

    def __init__(self, module: nn.Module, entry: str, size: tuple[int, int]) -> None:
        super().__init__()
        self.tupled, self.entry, self.size = Tupled(module).eval(), entry, size
        self.outputs = self._checked()

    def forward(self, pixels_BHW3: Tensor) -> list[Tensor]:
        return list(self.tupled(pixels_BHW3))

    def folded(self) -> nn.Module:
        """Give the module to export."""
        return self.tupled

    @torch.inference_mode()
    def _checked(self) -> int:
        """Run two images and count the outputs; ExportError for one that no bundle can hold."""
        found = self.tupled(torch.zeros(2, *self.size, 3, dtype=torch.uint8))
        for number, one in enumerate(found, start=1):
            if not (_floats(one) and one.ndim == 3 and len(one) == 2):
                raise ExportError(
                    f"{self.entry}: output {number} for two images is {_said(one)}; it must be "
                    "float32 (2, tokens, width)"
                )
            if not one.isfinite().all():
                raise ExportError(f"{self.entry}: output {number} has numbers that are not finite")
        return len(found)


class OwnHead(Head):
    """A head of a user's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()

    def coarse(self, taps: Sequence[Tensor]) -> Tensor:
        """Give the whole map: it is not known how it would be enlarged."""
        raw: Tensor = self.module(*taps)
        return raw

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        return self.coarse(taps)

    def folded(self) -> nn.Module:
        return self.module


@torch.inference_mode()
def check_head(head: OwnHead, encoder: nn.Module, spec: TaskSpec, size: tuple[int, int]) -> None:
    """Run a head on two images; ExportError if its output is not what its kind needs."""
    raw = head(encoder(torch.zeros(2, *size, 3, dtype=torch.uint8)))
    wanted = (2, spec.channels, *size)
    if not (_floats(raw) and tuple(raw.shape) == wanted):
        raise ExportError(
            f"tasks.{spec.name}: the head's output for two images is {_said(raw)}; it must be "
            f"float32 {wanted}, at the size of the image"
        )


def _floats(found: Any) -> bool:
    return isinstance(found, Tensor) and found.dtype == torch.float32


def _said(found: Any) -> str:
    if not isinstance(found, Tensor):
        return f"a {type(found).__name__}"
    return f"{str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}"


def load_module(entry: str, folder: Path) -> nn.Module:
    """Call `module:function`, looked for beside the model file and where Python looks."""
    name, _, function = entry.partition(":")
    sys.path.insert(0, str(folder.resolve()))
    try:
        found = getattr(importlib.import_module(name), function)
    except ModuleNotFoundError as error:
        raise RecipeError(f"{entry}: there is no module {error.name} in {folder}") from error
    except AttributeError as error:
        raise RecipeError(f"{entry}: {name} has no {function}") from error
    finally:
        sys.path.remove(str(folder.resolve()))
    made = cast("Any", found)()
    if not isinstance(made, nn.Module):
        raise RecipeError(f"{entry}: gives a {type(made).__name__}, not a torch.nn.Module")
    return made
