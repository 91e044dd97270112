"""The number of threads: affinity and the quotas of control groups, of both versions."""

from pathlib import Path

import pytest

from simo_runtime import cpus
from simo_runtime.cpus import available_cpus, cgroup_quota


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "300000 100000"}, 1.0),
        ("0::/not/seen/from/inside\n", {"cpu.max": "50000 100000"}, 0.5),
        (
            "5:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n",
            {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (
            "5:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            None,
        ),
        ("0::/\n", {"cpu.max": "nonsense here"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("5:memory:/\n", {}, None),
    ],
)
def test_the_quota_is_the_smallest_of_the_groups_above(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    assert cgroup_quota(machine(tmp_path, groups, files)) == quota


@pytest.mark.parametrize(
    ("allowed", "quota", "threads"), [(8, "250000", 2), (8, "50000", 1), (2, "900000", 2)]
)
def test_threads_are_the_smaller_of_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, quota: str, threads: int
) -> None:
    monkeypatch.setattr(cpus, "affinity", lambda: allowed)
    root = machine(tmp_path, "0::/\n", {"cpu.max": f"{quota} 100000"})
    assert available_cpus(root) == threads


def test_a_machine_without_control_groups_has_its_affinity(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None
    assert available_cpus(tmp_path) == cpus.affinity() >= 1
