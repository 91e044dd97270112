"""Several processes that train as one, each on a GPU of its own: `accelerate launch` or `torchrun`.

Every process takes its part of a batch through the encoder, which is nearly all of the work; the
taps are then gathered, and every process runs the heads and the loss on the whole batch. So a loss
may be any function of the batch, its mean over the pixels that have a truth included, and a
BatchNorm sees the whole batch and needs no synchronising: the optimiser's steps are those of one
process, but for rounding. What a process cannot see, the gradient of its part of the encoder, is
averaged. DistributedDataParallel would average losses over processes instead, which is another
loss wherever pixels without truth are not spread evenly.

Only the main process reads and writes what is kept, measures and speaks.

Shapes: B images of a batch, S tokens, D width.
"""

import atexit
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Made = TypeVar("Made")
PATIENCE = timedelta(days=7)  # how long processes wait for the main one, which measures and merges


class Workers:
    """This process alone: nothing is shared, and nothing is waited for."""

    main = True

    def encode(self, encode: Callable[[Tensor], list[Tensor]], batch: Tensor) -> list[Tensor]:
        """Take a batch (B, ...) through an encoder; give the taps (B, S, D) of all of it."""
        return encode(batch)

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients over all processes."""

    def from_main(self, make: Callable[[], Made]) -> Made:
        """Let the main process make something, and give it to all."""
        return make()


class Several(Workers):
    """One of several processes; all of them call the same methods in the same order.

    What the main process makes for all (`from_main`) it makes alone: while it does, nothing is
    shared.
    """

    def __init__(self) -> None:
        # Imported here: it takes seconds, and one process alone has no use for it.
        from accelerate import PartialState

        cpu = not torch.cuda.is_available()
        self.state = PartialState(cpu=cpu, timeout=PATIENCE)
        atexit.register(self.state.destroy_process_group)
        self.main = bool(self.state.is_main_process)
        self.alone = False

    def encode(self, encode: Callable[[Tensor], list[Tensor]], batch: Tensor) -> list[Tensor]:
        if self.alone:
            return encode(batch)
        rank, count = self.state.process_index, self.state.num_processes
        mine = torch.arange(len(batch)).repeat(count)  # the last parts begin at the front again
        size = -(-len(batch) // count)
        taps = encode(batch[mine[rank * size : (rank + 1) * size].to(batch.device)])
        whole: list[Tensor] = [_Gathered.apply(tap, rank, count) for tap in taps]
        return [tap[: len(batch)] for tap in whole]

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        from accelerate.utils import reduce

        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.alone or not gradients:
            return
        mean = reduce(torch.cat([g.flatten() for g in gradients]), "mean")
        for gradient, part in zip(
            gradients, mean.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def from_main(self, make: Callable[[], Made]) -> Made:
        if self.alone:
            return make()
        from accelerate.utils import broadcast_object_list

        box: list[Any] = [False, None]
        if self.main:
            self.alone = True
            try:
                box = [True, make()]
            finally:  # the others must not wait for what will never come
                self.alone = False
                broadcast_object_list(box)
        else:
            broadcast_object_list(box)
            if not box[0]:
                raise SystemExit(1)
        found: Made = box[1]
        return found


class _Gathered(torch.autograd.Function):
    """All processes' parts of a batch, one after the other.

    Backward, every process has the gradient of the whole batch and takes that of its own part;
    as gradients are averaged afterwards, and this part is in one process only, it counts n times.
    """

    @staticmethod
    def forward(ctx: Any, mine: Tensor, rank: int, count: int) -> Tensor:
        from accelerate.utils import gather

        ctx.rank, ctx.count = rank, count
        whole: Tensor = gather(mine.contiguous())
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].chunk(ctx.count)[ctx.rank] * ctx.count, None, None


@cache
def workers() -> Workers:
    """Give this process's place among those that a launcher has started: mostly it is alone."""
    return Several() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Workers()
