"""What `representation` puts beside a block f of the encoder: it changes the block's output.

No block can take one in, since f is not linear: the exported graph has it beside the block too.

Shapes: B images, S tokens, D width, R rank.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Adapter(nn.Module):
    """B A x of the block's input x, which so becomes f(x) + B A x: the paper's form."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)

    def forward(self, x_BSD: Tensor, out_BSD: Tensor) -> Tensor:
        change_BSD: Tensor = self.up(self.down(x_BSD))
        return out_BSD + change_BSD

    def halves(self) -> tuple[nn.Linear, nn.Linear]:
        """Give A and B."""
        return self.down, self.up


class OutputAdapter(nn.Module):
    """U ReLU(D y) of the block's output y, which becomes y - U ReLU(D y): the released code's form.

    Its tensors have names of their own, so that weights on disk tell which form they are of.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.out_down = nn.Linear(width, rank, bias=False)
        self.out_up = nn.Linear(rank, width, bias=False)

    def forward(self, x_BSD: Tensor, out_BSD: Tensor) -> Tensor:
        change_BSD: Tensor = self.out_up(F.relu(self.out_down(out_BSD)))
        return out_BSD - change_BSD

    def halves(self) -> tuple[nn.Linear, nn.Linear]:
        """Give D and U."""
        return self.out_down, self.out_up


AnyAdapter = Adapter | OutputAdapter
VARIANTS: dict[str, type[AnyAdapter]] = {"paper": Adapter, "released": OutputAdapter}
DOWN = {"paper": "down", "released": "out_down"}


@torch.no_grad()
def begin(adapter: AnyAdapter, generator: torch.Generator) -> None:
    """Start by changing nothing: the first half is random, the second zero."""
    down, up = adapter.halves()
    drawn_RD = torch.rand(down.weight.shape, generator=generator)
    down.weight.copy_((2 * drawn_RD - 1) / down.in_features**0.5)
    up.weight.zero_()


def found_in(state: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Say which variant an encoder's weights bring, and its rank; None if they bring none."""
    for variant, name in DOWN.items():
        down_RD = state.get(f"blocks.0.adapter.{name}.weight")
        if down_RD is not None:
            return variant, len(down_RD)
    return None
