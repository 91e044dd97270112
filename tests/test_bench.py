"""simo-bench: the arithmetic of the report, and the command on the sample's bundle."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simo_bench.latency import ideal, spread


def test_the_spread_is_median_and_percentiles() -> None:
    # 0 .. 100: the median is 50, the 5th and 95th percentile are 5 and 95
    found = spread(list(range(101)))
    assert (found.count, found.median, found.p05, found.p95) == (101, 50.0, 5.0, 95.0)


def test_the_ideal_ratio_is_three_when_heads_cost_nothing() -> None:
    assert ideal({"encoder": [10.0], "joint": [10.0]}, 3) == pytest.approx(3.0)


def test_the_ideal_ratio_by_hand() -> None:
    # E = 10, three heads add 6, so H = 2: 3 * (10 + 2) / (10 + 3 * 2) = 36 / 16
    assert ideal({"encoder": [10.0], "joint": [16.0]}, 3) == pytest.approx(2.25)


def test_the_command_reports_and_writes_json(rooms_bundle: Path, tmp_path: Path) -> None:
    command = [Path(sys.executable).parent / "simo-bench", rooms_bundle]
    told = subprocess.run(
        [*command, "--rounds", "5", "--json", tmp_path / "r.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert "times as fast" in told.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == "simo.bench/1"
    assert report["ratio"]["count"] == 5
    assert 1.0 < report["ratio"]["median"] < 4.0
    assert report["tasks"] == ["seg", "depth", "normals"]


def test_a_folder_that_is_no_bundle_gets_one_line(tmp_path: Path) -> None:
    command = [Path(sys.executable).parent / "simo-bench", tmp_path]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "not a bundle" in told.stderr
    assert "Traceback" not in told.stderr
