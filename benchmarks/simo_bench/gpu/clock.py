"""Times on a GPU by its own events, and by the host's clock; on a CPU by the host's alone."""

import time
from collections.abc import Callable

import torch


def milliseconds(
    work: Callable[[], object], where: torch.device, *, runs: int, warm_up: int
) -> list[float]:
    """Time work by the device's events, one run at a time."""
    for _ in range(warm_up):
        work()
    return [both(work, where)[0] for _ in range(runs)]


def both(work: Callable[[], object], where: torch.device) -> tuple[float, float]:
    """Time one run: milliseconds by the device's events, and by the host until all is done.

    On a CPU both are the host's.
    """
    if where.type != "cuda":
        began = time.perf_counter_ns()
        work()
        spent = (time.perf_counter_ns() - began) / 1e6
        return spent, spent
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began = time.perf_counter_ns()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end), (time.perf_counter_ns() - began) / 1e6
