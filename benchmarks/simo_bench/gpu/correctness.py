"""What has to be right on a GPU before anything is timed: merging, and all precisions."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simo_bench.gpu.float32 import exact
from simo_bench.gpu.ledger import Ledger
from simo_bench.gpu.models import TYPES, Models
from simo_bench.gpu.passes import agreement
from simo_bench.merging import FOR_A_GPU, NEEDED
from simo_build.merge import METHODS, Moved

SHAPES = {"qkv": (96, 32), "proj": (32, 32), "fc1": (128, 32), "fc2": (32, 128), "bias": (96,)}
TOLERANCE = 1e-4  # of a merged tensor's norm
COUNT = 3  # tasks


def merging(ledger: Ledger) -> None:
    """Merge the same deltas on the GPU and on the CPU by every data-free method."""
    names = [name for name, one in METHODS.items() if not one.needs]
    exact()
    for name in names:
        ledger.item(f"merging {name}", partial(merged_both, name))


def merged_both(name: str) -> dict[str, Any]:
    """Give the largest relative difference between the two; `reason` if it is too large."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deltas = [small_delta(seed) for seed in range(COUNT)]
    method, params = METHODS[name], dict(NEEDED.get(name, {}))
    if name in FOR_A_GPU:
        params["steps"] = 20
    here = method(deltas, None, **params)
    there = method([Moved(one, where) for one in deltas], None, **params)
    apart = {
        n: float((there[n].cpu() - t).norm() / t.norm().clamp_min(1e-12)) for n, t in here.items()
    }
    wrong = [f"{n}: {one:.2g}" for n, one in apart.items() if not one <= TOLERANCE]  # nor NaN
    reason = {"reason": f"over {TOLERANCE} apart: {'; '.join(wrong)}"} if wrong else {}
    worst = max(apart.values())
    return {"difference": worst, "passed": not wrong, **reason, "device": where.type}


def small_delta(seed: int) -> dict[str, Tensor]:
    """Give a delta of the shapes of one small block."""
    draw = torch.Generator().manual_seed(seed)
    names = {"qkv": "attn.qkv.weight", "proj": "attn.proj.weight", "fc1": "mlp.fc1.weight",
             "fc2": "mlp.fc2.weight", "bias": "attn.qkv.bias"}  # fmt: skip
    return {
        f"blocks.0.{names[key]}": 0.01 * torch.randn(shape, generator=draw)
        for key, shape in SHAPES.items()
    }


def gates(ledger: Ledger, *, work: Path, tiny: bool) -> None:
    """Hold every precision on this device to float32 on the CPU."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exact()
    for heads in ("linear", "dpt_small"):
        for precision in TYPES:
            make = partial(gate, heads, precision, where, work, tiny=tiny)
            ledger.item(f"gate {heads} {precision}", make)


@torch.inference_mode()
def gate(
    heads: str, precision: str, where: torch.device, work: Path, *, tiny: bool
) -> dict[str, Any]:
    """Compare one precision with float32 on the CPU, head by head."""
    shape = "toy" if tiny else "vit_base"
    here = Models(shape, heads, COUNT, work, torch.device("cpu"))
    there = Models(shape, heads, COUNT, work, where)
    wanted = here.joint(COUNT, "fp32")(here.pixels(2))
    found = [one.cpu() for one in there.joint(COUNT, precision)(there.pixels(2))]
    return {**agreement(here.tasks, found, wanted, precision), "device": where.type}
