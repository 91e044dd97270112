"""How fast a device can be: its peak and its bandwidth, from a table or measured here.

    python -m simo_bench.devices --threads 2

Measured peaks are those of a large matrix product, measured bandwidths those of a large copy (what
is read and what is written both count). A program of its own measures, because BLAS reads the
number of its threads once.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from simo_runtime.errors import BackendError, unknown

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SIDE, COPIED = 2048, 256 << 20  # of the matrices; bytes of the array that is copied
SECONDS = 1.0  # for each of the two


@dataclass(frozen=True, kw_only=True)
class Device:
    """Peaks in operations a second by the bits of the numbers, and bytes a second of memory."""

    name: str
    peaks: Mapping[int, float]
    bandwidth: float
    source: str

    def peak(self, bits: int) -> float:
        """Give the peak for numbers of so many bits; that of wider ones where it is not known.

        Who computes with fewer bits is then taken to gain nothing from it, so that the limit is
        too easy to reach, never too hard.
        """
        fitting = [known for known in self.peaks if known >= min(bits, 32)]
        return self.peaks[min(fitting)]

    def plain(self) -> dict[str, Any]:
        """Give plain values."""
        return {**asdict(self), "peaks": {str(bits): peak for bits, peak in self.peaks.items()}}


NVIDIA = "NVIDIA's data sheet: tensor cores, dense; 32 bits without tensor cores"
# Operations a second with 32, 16 and 8 bits, bytes a second.
TABLE = {
    "a100": ("A100 SXM 80 GB", 19.5e12, 312e12, 624e12, 2.039e12),
    "h100": ("H100 SXM", 67e12, 989e12, 1979e12, 3.35e12),
    "h200": ("H200 SXM", 67e12, 989e12, 1979e12, 4.8e12),
    "l4": ("L4", 30.3e12, 121e12, 242e12, 0.3e12),
    "rtx4090": ("GeForce RTX 4090", 82.6e12, 165.2e12, 660.6e12, 1.008e12),
    "t4": ("T4", 8.1e12, 65e12, 130e12, 0.32e12),
}
HERE = "here"


def device_named(name: str, *, threads: int) -> Device:
    """Give a device of the table, or measure the CPU of this machine for the name `here`."""
    if name == HERE:
        return measured(threads)
    if name not in TABLE:
        raise unknown("device", name, [*TABLE, HERE])
    shown, single, half, byte, bandwidth = TABLE[name]
    peaks = {32: single, 16: half, 8: byte}
    return Device(name=shown, peaks=peaks, bandwidth=bandwidth, source=NVIDIA)


def device_for(name: str | None, backend: str | None, *, threads: int) -> Device:
    """Give the device of a name, of a file that `plain` filled, or the one that a backend runs on.

    Raises BackendError where a GPU would have to be measured and PyTorch cannot.
    """
    if name is not None and name.endswith(".json"):
        return from_file(Path(name))
    if name is not None and name != HERE:
        return device_named(name, threads=threads)
    if backend is None or backend == "onnxruntime-cpu":
        return measured(threads)
    from simo_bench.gpu.roofline import measure  # torch and a GPU

    return measure()


def from_file(path: Path) -> Device:
    """Read a device; BackendError if the file holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        peaks = {int(bits): float(peak) for bits, peak in found["peaks"].items()}
        return Device(
            name=found["name"],
            peaks=peaks,
            bandwidth=float(found["bandwidth"]),
            source=found["source"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendError(f"{path}: not a device as simo_bench writes it: {error!r}") from error


def measured(threads: int, seconds: float = SECONDS) -> Device:
    """Measure this machine's CPU with so many threads, in a process of its own."""
    told = subprocess.run(
        [
            sys.executable,
            "-m",
            "simo_bench.devices",
            "--threads",
            str(threads),
            "--seconds",
            str(seconds),
        ],
        env={**os.environ, **dict.fromkeys(THREADS, str(threads))},
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        raise BackendError(f"the machine's speed could not be measured\n{told.stderr[-1000:]}")
    found = json.loads(told.stdout)
    return Device(
        name=f"this machine's CPU, {threads} threads",
        peaks={32: found["peak"]},
        bandwidth=found["bandwidth"],
        source=f"measured: a {SIDE} x {SIDE} matrix product in float32, "
        f"a copy of {COPIED >> 20} MiB",
    )


def fastest(work: Callable[[], object], seconds: float) -> float:
    """Give the shortest time of a piece of work, repeated for a while and at least three times."""
    work()
    times, began = list[float](), time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return min(times)


def matrix_product(seconds: float) -> float:
    """Give the operations a second of a large product of float32 matrices."""
    draw = np.random.default_rng(0)
    one, two = (draw.random((SIDE, SIDE), np.float32) for _ in range(2))
    out = np.empty_like(one)
    return 2 * SIDE**3 / fastest(lambda: np.matmul(one, two, out=out), seconds)


def copy(threads: int, seconds: float) -> float:
    """Give the bytes a second that a copy reads and writes, each thread its part."""
    parts = np.array_split(np.ones(COPIED // 4, np.float32), threads)
    outs = [np.empty_like(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        best = fastest(lambda: list(pool.map(np.copyto, outs, parts)), seconds)
    return 2 * COPIED / best


@click.command()
@click.option("--threads", type=click.IntRange(min=1), required=True)
@click.option("--seconds", type=click.FloatRange(min=0), default=SECONDS, show_default=True)
def main(threads: int, seconds: float) -> None:
    """Measure the CPU and print its peak and its bandwidth as JSON."""
    found = {"peak": matrix_product(seconds), "bandwidth": copy(threads, seconds)}
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
