"""The runtime's benchmark: its arithmetic by hand, and one small run of what is quick."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from simo_bench import runtime_folder, runtime_passes
from simo_bench.runtime import failures
from simo_bench.runtime_overhead import noting
from simo_bench.samples import rounded
from simo_bench.turns import alternating
from simo_runtime.backends.onnxruntime_graph import OpenGraph


def test_the_spread_is_median_and_percentiles() -> None:
    assert rounded(list(range(101))) == {"count": 101, "median": 50, "p05": 5, "p95": 95}


def test_every_arm_runs_once_a_round_in_changing_order() -> None:
    calls: list[str] = []
    arms = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = alternating(arms, 20)
    assert {len(values) for values in samples.values()} == {20}
    rounds = [tuple(calls[9 + 3 * r : 12 + 3 * r]) for r in range(20)]  # after 3 to warm up, each
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 2


def test_bars_that_are_not_met_are_named_by_their_place() -> None:
    found: dict[str, Any] = {
        "one": {"small": {"met": True}, "large": {"met": False}},
        "two": {"met": None},
        "three": {"met": False},
    }
    assert failures(found) == ["one.large", "three"]


def test_the_share_of_the_limit_is_how_busy_the_cpus_were(
    rooms_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simo_runtime.bundle import Bundle

    # 4 photos to warm up, then parts of 4: 2 s of CPU in 1.25 s on 2 CPUs; the loop needs 2 s
    runs = iter([(9.0, 9.0, 4), (9.0, 9.0, 4)] + [(1.25, 2.0, 4), (2.0, 2.0, 4)] * 3)
    monkeypatch.setattr(runtime_folder, "_clock", lambda run: next(runs))
    monkeypatch.setattr(runtime_folder, "available_cpus", lambda: 2)
    monkeypatch.setattr(runtime_folder, "write_photos", lambda folder, count: [Path("x")] * count)
    found = runtime_folder.folder(Bundle.open(rooms_bundle), 12)
    assert found["pipeline"]["share_of_limit"] == 0.8
    assert found["pipeline"]["cpu_s_per_photo"] == 0.5
    assert found["times_faster_than_the_loop"]["median"] == 1.6
    assert found["met"] is False


def test_photos_have_one_to_two_megapixels(tmp_path: Path) -> None:
    for path in runtime_folder.write_photos(tmp_path, 3):
        photo = cv2.imread(str(path))
        assert photo is not None
        assert 1e6 <= photo.shape[0] * photo.shape[1] <= 2e6


def test_the_ideal_by_hand(rooms_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simo_runtime.bundle import Bundle

    # E = 10, H = 2: 3 (10 + 2) / (10 + 3 * 2) = 2.25; measured 36 / 17 is 0.941 of it
    times = {"one_pass": 17.0, "per_task": 36.0, "encoder": 10.0}
    times |= {f"head {name}": 2.0 for name in ("seg", "depth", "normals")}
    monkeypatch.setattr(
        runtime_passes, "alternating", lambda arms, rounds: {a: [times[a]] * 5 for a in arms}
    )
    found = runtime_passes.one_pass(Bundle.open(rooms_bundle), 5)
    assert found["ideal"] == 2.25
    assert found["share_of_ideal"] == pytest.approx(36 / 17 / 2.25, abs=1e-4)
    assert found["met"] is False
    assert 2.9 < found["ideal_from_operations"] < 3


def test_the_command_writes_json(rooms_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simo_bench.runtime", "--small", rooms_bundle]
    options = ["--only", "overhead", "--rounds", "3", "--json", tmp_path / "r.json"]
    told = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, env=_environment()
    )
    assert told.returncode in (0, 1), told.stderr  # a bar may be missed on a busy machine
    written = (tmp_path / "r.json").read_text()
    assert str(tmp_path) not in written  # nor where the bundle lies
    assert str(rooms_bundle.parent) not in written
    report = json.loads(written)
    assert report["schema"] == "simo.bench.runtime/1"
    assert report["command"].startswith("python -m simo_bench.runtime --small ")
    assert {"commit", "versions", "machine"} <= set(report)
    for way in ("split", "joint"):
        found = report["bars"]["overhead"]["small"][way]
        assert found["ms"]["bare"]["count"] == 3
        assert np.isfinite(found["extra_percent"])
        assert 0 < found["extra_ms"]["median"] < found["ms"]["predictor"]["median"]


def test_what_a_call_spends_in_onnx_runtime_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenGraph, "_run", lambda graph, binding: time.sleep(0.02))
    graph, inside = OpenGraph.__new__(OpenGraph), list[float]()

    def call() -> None:
        graph._run(None)
        time.sleep(0.03)
        graph._run(None)

    start = time.perf_counter()
    noting(inside, call)
    whole = (time.perf_counter() - start) * 1e3
    assert len(inside) == 1
    assert 40 <= inside[0] <= whole - 30


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
