"""Representation surgery: what a merged encoder's features lack of an expert's is learnt and added.

Shapes: n images, B of a batch, S tokens, D width, R rank.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_build.encoder import Encoder
from simo_build.features import BATCH, take
from simo_build.fit import shuffled
from simo_build.merge import METHODS, ByLayer, Delta, number
from simo_build.merge.parameters import one_of, whole
from simo_build.several.registry import FLOAT32, SeveralPass, Sight, several, weights
from simo_build.statedict import StateDict, add


class Correction(nn.Module):
    """Take a low-rank part off features: z - up(relu(down(z))); nothing before it is trained."""

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        drawn_RD = torch.rand(rank, width, generator=generator)
        self.down_RD = nn.Parameter((2 * drawn_RD - 1) / width**0.5)
        self.up_DR = nn.Parameter(torch.zeros(width, rank))

    def forward(self, features: Tensor) -> Tensor:
        return features - F.linear(F.relu(F.linear(features, self.down_RD)), self.up_DR)


class Surgery(nn.Module):
    """The corrections of one task: at the taps, or after every block and so on what follows."""

    def __init__(self, encoder: Encoder, at: str, *, rank: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        corrections = [
            Correction(encoder.width, rank, generator) for _ in range(places(encoder, at))
        ]
        self.at, self.corrections = at, nn.ModuleList(corrections)

    def corrected(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Correct the features of all places."""
        return [one(place) for one, place in zip(self.corrections, features, strict=True)]

    @contextmanager
    def attached(self, encoder: Encoder) -> Iterator[None]:
        """Correct what the encoder computes meanwhile."""
        with ExitStack() as hooks:
            if self.at == "taps":
                hook = encoder.register_forward_hook(lambda _, given, taps: self.corrected(taps))
                hooks.callback(hook.remove)
            else:
                for block, correct in zip(encoder.vit.blocks, self.corrections, strict=True):
                    hook = block.register_forward_hook(lambda _, given, out, c=correct: c(out))
                    hooks.callback(hook.remove)
            yield


def places(encoder: Encoder, at: str) -> int:
    """Count the taps, or the blocks."""
    return len(encoder.part.taps if at == "taps" else encoder.vit.blocks)


@several(
    paper="https://arxiv.org/abs/2402.02705",
    keeps="corrections of the features that no weights can take in",
    instead="`task_arithmetic` with `realign`, which fits the heads to the features as they are",
    sees=True,
)
def surgery(
    deltas: Sequence[Delta],
    sight: Sight,
    *,
    alpha: ByLayer,
    at: str = "taps",
    rank: float = 16,
    steps: float = 500,
    lr: float = 1e-3,
    batch: float = 16,
    seed: float = 0,
) -> SeveralPass:
    """Merge by task arithmetic, and correct the features of every task towards its expert's.

    Corrections are trained on images without truths, with Adam, on the L1 distance to the expert's
    features: those of the taps, or with `at: blocks` those after every block (SurgeryV2).
    """
    merged = METHODS["task_arithmetic"].lazily(deltas, alpha=alpha)
    one_of("at", at, ("taps", "blocks"))
    size, salt = whole("rank", rank, least=1), whole("seed", seed, least=0)
    count, rows = whole("steps", steps, least=0), whole("batch", batch, least=1)
    rate = number("lr", lr, above=0, most=1)

    @cache
    def of(task: int) -> Surgery:
        found = Surgery(sight.encoder, at, rank=size, seed=salt)
        trainer = Trainer(sight, add(sight.base, merged), add(sight.base, deltas[task]), found)
        trainer.train(steps=count, lr=rate, batch=rows, seed=salt)
        return found

    def on(task: int, encoder: Encoder) -> AbstractContextManager[None]:
        return of(task).attached(encoder)

    tasks, blocks = len(deltas), len(sight.encoder.vit.blocks)
    extra = tasks * places(sight.encoder, at) * 2 * sight.encoder.width * size
    return SeveralPass(
        deltas=[merged] * tasks,
        bytes=FLOAT32 * (weights(merged) + extra),
        # the first block's inputs are still those of all tasks
        passes=1.0 if at == "taps" else (1 + tasks * (blocks - 1)) / blocks,
        on=on,
    )


class Trainer:
    """Trains the corrections of one task on copies of the encoder, whose weights stay fixed."""

    def __init__(self, sight: Sight, merged: StateDict, expert: StateDict, found: Surgery) -> None:
        self.surgery = found.to(sight.encoder.mean.device)
        self.pixels = torch.from_numpy(sight.images)
        self.encoder = deepcopy(sight.encoder).eval().requires_grad_(False)
        self.encoder.load(expert, source="an expert")
        self.targets = self.seen()
        self.encoder.load(merged, source="the merged encoder")
        # corrections at the taps change nothing that is computed later, so once is enough
        self.taps = self.seen() if found.at == "taps" else []

    @torch.no_grad()
    def seen(self) -> list[Tensor]:
        """Give the features (n, S, D) of all images at every place."""
        batches = [self.features(rows) for rows in torch.arange(len(self.pixels)).split(BATCH)]
        return [torch.cat([one.cpu() for one in place]) for place in zip(*batches, strict=True)]

    def features(self, index: Tensor) -> list[Tensor]:
        """Compute the features (B, S, D) of some images at every place."""
        pixels = self.pixels[index].to(self.encoder.mean.device)
        if self.surgery.at == "taps":
            taps: list[Tensor] = self.encoder(pixels)
            return taps
        found: list[Tensor] = []
        with ExitStack() as hooks:
            for block in self.encoder.vit.blocks:
                hook = block.register_forward_hook(lambda _, given, out: found.append(out))
                hooks.callback(hook.remove)
            self.encoder(pixels)
        return found

    def corrected(self, index: Tensor) -> list[Tensor]:
        """Give the corrected features (B, S, D) of some images at every place."""
        if self.surgery.at == "taps":
            return self.surgery.corrected(take(self.taps, index, self.encoder.mean.device))
        with self.surgery.attached(self.encoder):
            return self.features(index)

    def loss(self, index: Tensor) -> Tensor:
        """Give the L1 distance to the expert's features, a mean a place, added up."""
        wanted = take(self.targets, index, self.encoder.mean.device)
        pairs = zip(self.corrected(index), wanted, strict=True)
        return torch.stack([F.l1_loss(found, target) for found, target in pairs]).sum()

    def train(self, *, steps: int, lr: float, batch: int, seed: int) -> None:
        """Train with Adam on batches drawn from the seed."""
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.Adam(self.surgery.parameters(), lr=lr)
        epochs = (shuffled(len(self.pixels), batch, generator) for _ in itertools.count())
        for index in itertools.islice(itertools.chain.from_iterable(epochs), steps):
            optimiser.zero_grad(set_to_none=True)
            self.loss(index).backward()
            optimiser.step()
