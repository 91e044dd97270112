"""Pass images through several encoders side by side, one part after another, embedding first.

What flows between parts is kept on the CPU, float32 (n, S, D) an encoder, in files if it is large;
of the encoders only one part each is held beside that.

Shapes: n images, B of a batch, S tokens, D width, R rows (the tokens of a batch), N inputs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from simo_build.data import Samples
from simo_build.devices import device
from simo_build.encoder import Encoder
from simo_build.features import BATCH
from simo_build.moments import hooked, inputs_of, observed_layers
from simo_build.room import room_for
from simo_build.statedict import StateDict, part


class Reached(Exception):  # no error: it ends a pass early
    """A layer that was waited for has got its inputs."""

    def __init__(self, layer: nn.Module, inputs: Tensor) -> None:
        super().__init__("a layer has got its inputs")
        self.layer, self.inputs = layer, inputs


def caught(module: nn.Module, layer: nn.Module, given: Tensor) -> Tensor:
    """Run a module until one of its layers gets its inputs, and give them."""

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise Reached(layer, inputs[0])

    handle = layer.register_forward_pre_hook(stop)
    try:
        module(given)
    except Reached as reached:
        if reached.layer is not layer:
            raise
        return reached.inputs
    finally:
        handle.remove()
    raise AssertionError("the layer is not run")


class Embedding(nn.Module):
    """What an encoder does before its first block: pixels in, tokens out."""

    def __init__(self, encoder: Encoder, weights: StateDict) -> None:
        super().__init__()
        blocks = encoder.vit.blocks
        self.encoder: Encoder = deepcopy(encoder, {id(blocks): blocks})  # blocks are not copied
        own = {name: t for name, t in weights.items() if not name.startswith("blocks.")}
        self.encoder.vit.load_state_dict(own, strict=False)

    def forward(self, pixels_BHW3: Tensor) -> Tensor:
        return caught(self.encoder, self.encoder.vit.blocks[0], pixels_BHW3)


@dataclass
class Stretch:
    """A part of one encoder, and what goes into it for every image, on the CPU.

    `layers` are those that multiply, by the names of their weights in the whole encoder, and in
    the order in which they run.
    """

    module: nn.Module
    given: Tensor
    layers: Mapping[str, nn.Module]

    def batches(self) -> Iterator[slice]:
        """Give the rows of all images, some at a time."""
        for start in range(0, len(self.given), BATCH):
            yield slice(start, start + BATCH)

    def inputs(self, name: str, rows: slice) -> Tensor:
        """Give what goes into a layer for some images, (R, N), as `inputs_of` sees it."""
        layer = self.layers[name]
        return inputs_of(layer, caught(self.module, layer, self.given[rows].to(device()))).float()

    def passed(self) -> Tensor:
        """Give what the part puts out for every image; tokens take the place of those given."""
        whole = self.given if self.given.is_floating_point() else None
        for rows in self.batches():
            out_BSD = self.module(self.given[rows].to(device())).cpu()
            if whole is None:
                shape = (len(self.given), *out_BSD.shape[1:])
                whole = torch.from_numpy(room_for(shape, np.float32))
            whole[rows] = out_BSD
        assert whole is not None
        return whole


def side_by_side(
    encoder: Encoder, states: Sequence[StateDict], samples: Samples
) -> Iterator[list[Stretch]]:
    """Give the same part of every encoder at a time: the embedding, every block, and then nothing.

    What is given to a part is what the one before has put out, with the weights that it had when
    the next was asked for; the last one is what the last block puts out.
    """
    encoder.eval()
    images = torch.from_numpy(samples.images)
    now = [_embedding(encoder, state, images) for state in states]
    yield now
    for number, block in enumerate(encoder.vit.blocks):
        given = [one.passed() for one in now]
        prefix = f"blocks.{number}."
        now = [_block(block, s, x, prefix) for s, x in zip(states, given, strict=True)]
        yield now
    yield [Stretch(nn.Identity(), one.passed(), {}) for one in now]


def _embedding(encoder: Encoder, weights: StateDict, images: Tensor) -> Stretch:
    module = Embedding(encoder, weights)
    layers = observed_layers(module.encoder.vit)
    own = {name: one for name, one in layers.items() if not name.startswith("blocks.")}
    return Stretch(module, images, in_order(module, own, images))


def _block(block: nn.Module, weights: StateDict, x_nSD: Tensor, prefix: str) -> Stretch:
    own = deepcopy(block)
    own.load_state_dict(part(weights, prefix))
    layers = {f"{prefix}{name}": one for name, one in observed_layers(own).items()}
    return Stretch(own, x_nSD, in_order(own, layers, x_nSD))


def in_order(
    module: nn.Module, layers: Mapping[str, nn.Module], given: Tensor
) -> dict[str, nn.Module]:
    """Give the layers that run, in the order in which they do; others are left out."""
    ran: dict[str, nn.Module] = {}

    def see(name: str, layer: nn.Module, *_: object) -> None:
        ran.setdefault(name, layer)

    with hooked(layers, see):
        module(given[:1].to(device()))
    return ran


def distances(
    encoder: Encoder, states: Sequence[StateDict], experts: Sequence[StateDict], samples: Samples
) -> list[list[float]]:
    """Tell how far tokens are from the experts', |x - x_e| / |x_e|: the mean over the experts.

    For each of some encoders it is one number a block.
    """
    found: list[list[float]] = [[] for _ in states]
    with torch.inference_mode():
        for number, now in enumerate(side_by_side(encoder, [*states, *experts], samples)):
            own, others = now[: len(states)], now[len(states) :]
            for one, told in zip(own, found, strict=True) if number > 1 else ():
                # what is given is what the block before has put out
                told.append(math.fsum(_distance(one, other) for other in others) / len(others))
    return found


def _distance(own: Stretch, other: Stretch) -> float:
    apart = whole = 0.0
    for rows in own.batches():
        x_BSD, e_BSD = own.given[rows].double(), other.given[rows].double()
        apart += float((x_BSD - e_BSD).square().sum())
        whole += float(e_BSD.square().sum())
    return math.sqrt(apart / whole) if whole else 0.0
