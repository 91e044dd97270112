"""A GPU's peak and bandwidth, measured by matrix products and a copy; or a CPU's, to try it."""

import platform
from typing import Any

import torch

from simo_bench.devices import Device
from simo_bench.gpu.clock import milliseconds
from simo_bench.gpu.float32 import exact, tf32

SIDES = (4096, 8192)  # of the matrices; the best of them counts
COPIED = 1 << 30  # bytes
TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def measure(*, tiny: bool = False) -> Device:
    """Measure the device that this process runs on, and give it as a roofline has it."""
    found = measure_all(tiny=tiny)
    return Device(
        name=found["name"],
        peaks={32: found["peaks"]["fp32"], 16: found["peaks"]["bf16"]},
        bandwidth=found["bandwidth"],
        source=found["source"],
    )


def measure_all(*, tiny: bool = False) -> dict[str, Any]:
    """Measure every number format, and the copy."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sides = (256,) if tiny or where.type == "cpu" else SIDES
    return {
        "name": torch.cuda.get_device_name() if where.type == "cuda" else platform.processor(),
        "peaks": {name: max(peak(name, side, where) for side in sides) for name in TYPES},
        "bandwidth": bandwidth(COPIED >> (8 if tiny or where.type == "cpu" else 0), where),
        "source": "measured: matrix products of "
        f"{' and '.join(map(str, sides))}, float32 without TF32, 16 bits as bf16; a copy",
    }


def peak(name: str, side: int, where: torch.device) -> float:
    """Give the operations a second of a square product."""
    tf32(name == "tf32")
    try:
        draw = torch.Generator().manual_seed(0)
        one, two = (
            torch.randn(side, side, generator=draw).to(where, TYPES[name]) for _ in range(2)
        )
        out = torch.empty_like(one)
        times = milliseconds(lambda: torch.mm(one, two, out=out), where, runs=20, warm_up=3)
    finally:
        exact()
    return 2 * side**3 / (min(times) / 1e3)


def bandwidth(size: int, where: torch.device) -> float:
    """Give the bytes a second that a copy reads and writes."""
    given = torch.ones(size // 4, device=where)
    out = torch.empty_like(given)
    times = milliseconds(lambda: out.copy_(given), where, runs=20, warm_up=3)
    return 2 * size / (min(times) / 1e3)
