"""Where a pass's time on the device goes: a profile by kind of kernel."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from simo_bench.gpu.ledger import Ledger
from simo_bench.gpu.models import Models, Runner

RUNS = 10
KINDS = {
    "matrix products": ("gemm", "cutlass", "matmul", "addmm", "aten::mm", "aten::bmm", "linear"),
    "attention": ("flash", "attention", "fmha", "sdpa"),
    "convolutions": ("conv", "implicit"),
    "norms and softmax": ("norm", "softmax"),
    "resizing": ("upsample", "interp"),
    "copies": ("copy", "memcpy", "memset", "cat"),
}


def measure(ledger: Ledger, *, work: Path, tiny: bool) -> None:
    """Profile the joint pass with three linear heads in bf16, batch 1 and 16."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = 2 if tiny else 3
    models = Models("toy" if tiny else "vit_base", "linear", count, work, where)
    for way in ("eager",) if tiny else ("eager", "compile"):
        for batch in (1,) if tiny else (1, 16):
            make = partial(one_profile, models, count, batch, way, work)
            ledger.item(f"{way}, batch {batch}", make)


def one_profile(models: Models, count: int, batch: int, way: str, work: Path) -> dict[str, Any]:
    """Give the share of every kind of kernel, and the ten longest."""
    runner = Runner(models.joint(count, "bf16"), models.pixels(batch), way, work)
    cuda = models.where.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.inference_mode(), profile(activities=activities) as found:
        for _ in range(RUNS):
            runner()
        if cuda:
            torch.cuda.synchronize()
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    times = {one.key: float(getattr(one, key)) / RUNS for one in found.key_averages()}
    times = {name: value for name, value in times.items() if value > 0}
    total = sum(times.values())
    longest = sorted(times.items(), key=lambda pair: -pair[1])[:10]
    return {
        "microseconds": total,
        "shares": {kind: value / total for kind, value in by_kind(times).items()},
        "longest": [{"kernel": name[:120], "share": value / total} for name, value in longest],
    }


def by_kind(times: Mapping[str, float]) -> dict[str, float]:
    """Add times up by kind of kernel; the first kind that a name has a word of takes it."""
    found = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for name, value in times.items():
        low = name.lower()
        kind = next((k for k, words in KINDS.items() if any(w in low for w in words)), "the rest")
        found[kind] += value
    return found
