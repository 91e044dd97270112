"""Where a pass's time on the device goes: a profile by kind of kernel."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from simo_bench.gpu.clock import both
from simo_bench.gpu.float32 import exact
from simo_bench.gpu.ledger import Ledger
from simo_bench.gpu.models import Models, Pass, Runner
from simo_bench.gpu.roofline import SIDES, peak

RUNS, WARM_UP = 10, 5
PRODUCTS = "matrix products"
# The first kind that a kernel's name has a word of takes it. Inductor names kernels by all that it
# fused into them, attention's by the numbers that CUTLASS multiplies, convolutions' by GEMM.
KINDS = {
    "fused, elementwise": ("triton_poi",),
    "fused, with sums": ("triton_per", "triton_red"),
    "attention": ("flash", "attention", "fmha", "sdpa"),
    "convolutions": ("conv2d", "convolution", "implicit", "fprop"),
    PRODUCTS: (
        *("nvjet", "gemm", "gemv", "cutlass", "splitk", "triton_tem", "triton_mm"),
        *("matmul", "addmm", "aten::mm", "aten::bmm", "aten::linear"),
    ),
    "norms and softmax": ("norm", "softmax"),
    "resizing": ("upsample", "interp"),
    "copies": ("copy", "memcpy", "memset", "catarray", "aten::cat", "nchwto", "nhwcto"),
    "elementwise": ("elementwise",),
}


def measure(ledger: Ledger, *, work: Path, tiny: bool) -> None:
    """Profile the joint pass with three linear heads in bf16, batch 1 and 16."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = 2 if tiny else 3
    models = Models("toy" if tiny else "vit_base", "linear", count, work, where)
    exact()
    for way in ("eager",) if tiny else ("eager", "compile"):
        for batch in (1,) if tiny else (1, 16):
            make = partial(one_profile, models, count, batch, way, work)
            ledger.item(f"{way}, batch {batch}", make)


def one_profile(models: Models, count: int, batch: int, way: str, work: Path) -> dict[str, Any]:
    """Give the share of every kind of kernel, the ten longest, and what the products reach."""
    model, pixels = models.joint(count, "bf16"), models.pixels(batch)
    operations = products(model, pixels)
    runner = Runner(model, pixels, way, work)
    times = kernels(runner, models.where)
    clocks = [both(runner, models.where) for _ in range(WARM_UP + RUNS)][WARM_UP:]
    device, host = (median(one) for one in zip(*clocks, strict=True))
    total, kinds = sum(times.values()), by_kind(times)
    reached = 1e6 * operations / kinds[PRODUCTS] if kinds[PRODUCTS] else None
    sides = SIDES if models.where.type == "cuda" else (256,)
    most = max(peak("bf16", side, models.where) for side in sides)
    longest = sorted(times.items(), key=lambda pair: -pair[1])[:10]
    return {
        "captured": runner.captured,
        "why_not_captured": runner.why_not,
        "microseconds": total,  # of all kernels
        "device_ms": device,  # of a run without the profiler, what lies between kernels included
        "host_ms": host,
        "busy": total / 1e3 / device,
        "shares": {kind: value / total for kind, value in kinds.items()},
        "products": {
            "operations": operations,
            "per_second": reached,
            "share_of_peak": reached and reached / most,
        },
        "longest": [{"kernel": name[:120], "share": value / total} for name, value in longest],
    }


def kernels(runner: Runner, where: torch.device) -> dict[str, float]:
    """Give the microseconds of every kernel in one run; on a CPU those of every operator."""
    cuda = where.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    # there is one cycle, so that keeping all of them changes nothing but a warning of torch 2.11
    with profile(activities=activities, acc_events=True) as found:
        for _ in range(RUNS):
            runner()
        if cuda:
            torch.cuda.synchronize()
    # an operator on the host has the time of its kernels too, and so have PyTorch's own notes
    kind = "CUDA" if cuda else "CPU"
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    times = {
        one.key: float(getattr(one, key)) / RUNS
        for one in found.key_averages()
        if one.device_type.name == kind and not one.is_user_annotation
    }
    return {name: value for name, value in times.items() if value > 0}


@torch.inference_mode()
def products(model: Pass, pixels: Tensor) -> int:
    """Count the operations of a pass's matrix products, without attention and convolutions."""
    with FlopCounterMode(display=False) as counter:
        model(pixels)
    names = {"mm", "addmm", "bmm", "baddbmm"}
    counts = counter.get_flop_counts()["Global"]
    return sum(int(n) for op, n in counts.items() if str(op).split(".")[-1] in names)


def by_kind(times: Mapping[str, float]) -> dict[str, float]:
    """Add times up by kind of kernel; the first kind that a name has a word of takes it."""
    found = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for name, value in times.items():
        low = name.lower()
        kind = next((k for k, words in KINDS.items() if any(w in low for w in words)), "the rest")
        found[kind] += value
    return found
