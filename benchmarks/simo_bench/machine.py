"""The machine that is measured on: what it is, what else it does, what would make it steadier."""

import os
import platform
import time
from pathlib import Path
from typing import Any

from simo_bench import nvml
from simo_build.origin import machine
from simo_runtime.cpus import available_cpus

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
BUSY = (0, 1, 2, 5, 6, 7)  # of a line of /proc/stat: user, nice, system, irq, softirq, steal


class Watch:
    """Measures what share of the CPUs' time others have used since it was made."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._before = self._now()

    def _now(self) -> tuple[float, float, float] | None:
        """Give the busy seconds of all CPUs, those of this process, and the time."""
        try:
            line = self._stat.read_text(encoding="ascii").splitlines()[0].split()[1:]
        except (OSError, IndexError):
            return None
        busy = sum(int(line[index]) for index in BUSY) / os.sysconf("SC_CLK_TCK")
        return busy, time.process_time(), time.perf_counter()

    def others(self) -> float | None:
        """Give the share, 0 to 1 of all CPUs; None where the system does not tell."""
        now, before = self._now(), self._before
        if now is None or before is None:
            return None
        busy, own, seconds = (one - other for one, other in zip(now, before, strict=True))
        return max(0.0, busy - own) / (seconds * (os.cpu_count() or 1))


def about(threads: int, gpu: nvml.Nvml | None) -> dict[str, Any]:
    """Say what this is measured on; no name of the machine is told."""
    return {
        **machine(),
        "cpus_allowed": available_cpus(),
        "threads": threads,
        "governor": governor(),
        "kernel": platform.release(),
        "gpu": gpu and {**gpu.about(), **gpu.state().plain()},
    }


def governor() -> str | None:
    """Give how the first CPU chooses its clock; None where the system does not tell."""
    try:
        return GOVERNOR.read_text(encoding="ascii").strip()
    except OSError:
        return None


def steadier(machine: dict[str, Any]) -> list[str]:
    """Give the commands that would hold the clocks; they are for the user to run, or not."""
    found = []
    if machine["governor"] not in (None, "performance"):
        found.append("sudo cpupower frequency-set --governor performance")
    if machine["gpu"]:
        clock = machine["gpu"]["sm_mhz_most"] or "CLOCK"
        found.append(f"sudo nvidia-smi --lock-gpu-clocks={clock},{clock}")
    return found
