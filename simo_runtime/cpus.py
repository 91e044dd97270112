"""How many CPU threads this process may keep busy: what its affinity and its control groups say.

A container is often given a share of a machine and shown all of it. Threads beyond the share wait
for one another, and everything becomes slower.
"""

import os
from pathlib import Path

ROOT = Path("/")


def available_cpus(root: Path = ROOT) -> int:
    """Count the CPUs that affinity and quota leave to this process; at least 1.

    `root` is where `proc` and `sys` are found.
    """
    quota = cgroup_quota(root)
    allowed = affinity()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def affinity() -> int:
    """Count the CPUs on which this process may be scheduled."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_quota(root: Path = ROOT) -> float | None:
    """Give the CPUs that the control groups of this process allow, 1.5 for example.

    None where there is no limit or no control group. Limits of groups further up hold as well, so
    the smallest one counts; a container that sees only its own group finds it at the top.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        read = _quota_v1 if controllers else _quota_v2
        place = base / path.strip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(base) and (quota := read(folder)) is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _quota_v2(folder: Path) -> float | None:
    """Read `cpu.max`: microseconds, or max, and the period."""
    words = _words(folder / "cpu.max")
    return None if len(words) != 2 or words[0] == "max" else _ratio(*words)


def _quota_v1(folder: Path) -> float | None:
    """Read `cpu.cfs_quota_us`: microseconds in a period, or -1."""
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return None if not (quota and period) or quota[0] == "-1" else _ratio(quota[0], period[0])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return int(quota) / int(period)
