"""run_all.sh: in a tiny mode on a CPU; what is resumed, skipped and stopped, and the table."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from simo_bench.gpu.ledger import Ledger
from simo_bench.gpu.passes import cosines
from simo_bench.gpu.profile import by_kind
from simo_bench.gpu.run import DONE, FAILED, LATE, SKIPPED, Run
from simo_bench.gpu.step import run as run_step
from simo_bench.gpu.steps import BACKENDS, PRECISIONS, Plan, Step
from simo_bench.gpu.table import bars, table
from simo_bench.readme import HEADLINES

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run_all.sh"


def script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments, "--tiny"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )


def test_the_script_measures_writes_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = script("--out", out, "--only", "roofline,gates")
    assert told.returncode == 0, told.stderr
    assert "gates" in told.stdout
    written = (out / "steps.json").read_text()
    assert str(tmp_path) not in written
    state = json.loads(written)
    assert state["schema"] in HEADLINES
    assert {"command", "commit", "versions", "machine"} <= set(state)
    assert {name: one["state"] for name, one in state["steps"].items()} == {
        "roofline": DONE,
        "gates": DONE,
    }
    items = json.loads((out / "gates.json").read_text())["items"]
    assert all(item["passed"] for item in items.values())
    assert len(items) == 2 * len(PRECISIONS)
    again = script("--out", out, "--only", "roofline,gates")
    assert "roofline: done before" in again.stderr


@pytest.mark.slow
def test_the_whole_script_in_its_tiny_mode(tmp_path: Path) -> None:
    from tests.tiny import write_workplace

    recipe = write_workplace(tmp_path)
    told = script("--out", tmp_path / "out", "--recipe", recipe)
    assert told.returncode == 0, told.stderr
    state = json.loads((tmp_path / "out" / "steps.json").read_text())["steps"]
    wrong = {name: one for name, one in state.items() if one["state"] != DONE}
    assert not wrong
    assert len(state) == len(Plan(out=tmp_path, tiny=True).steps())
    assert "NOT" not in told.stdout.split("seconds")[0]


@pytest.mark.parametrize("name", ["merging-equal", "passes linear bf16 eager", "profile",
                                  "merging-times"])  # fmt: skip
def test_a_step_of_items_runs_on_a_cpu(name: str, tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    assert run_step(name, out, tmp_path / "work", 300.0, tiny=True) == 0
    items = json.loads(out.read_text())["items"]
    assert items
    assert not any("failed" in item for item in items.values())
    if name == "merging-equal":
        assert all(item["passed"] for item in items.values())
    if name.startswith("passes"):
        one = items["linear bf16 eager 2 tasks, batch 1"]
        assert len(one["device_ms"]["joint"]) == 3
        assert one["found"]["ratios"]["sequential"]["median"] > 0


def test_items_are_kept_and_failures_tried_again(tmp_path: Path) -> None:
    path, calls = tmp_path / "l.json", []

    def fails() -> dict[str, int]:
        calls.append("fails")
        raise RuntimeError("CUDA out of memory")

    first = Ledger(path, 60)
    assert first.item("a", lambda: {"n": 1}) == {"n": 1}
    assert first.item("b", fails) is None
    assert first.failed == {"b": "RuntimeError: CUDA out of memory"}
    second = Ledger(path, 60)
    assert second.item("a", fails) == {"n": 1}  # it is there
    assert second.item("b", lambda: {"n": 2}) == {"n": 2}
    assert calls == ["fails"]


def test_without_time_nothing_more_is_begun(tmp_path: Path) -> None:
    late = Ledger(tmp_path / "l.json", seconds=-1)
    assert late.item("a", lambda: {"n": 1}) is None
    assert late.late
    assert late.items == {}


class Fixed(Plan):
    """A plan of two small steps."""

    def steps(self) -> list[Step]:
        code = "import time; time.sleep(60)"
        return [
            Step(name="sleeps", command=(sys.executable, "-c", code)),
            Step(name="fails", command=(sys.executable, "-c", "raise SystemExit('no luck')")),
            Step(name="lacks", command=("true",), needs=("no_such_module",)),
            Step(name="reads", command=("true",), data=True),
            Step(name="works", command=("true",)),
        ]


def test_a_step_that_hangs_fails_or_lacks_something_does_not_stop_the_others(
    tmp_path: Path,
) -> None:
    lines: list[str] = []
    run = Run(Fixed(out=tmp_path), lines.append, minutes=0.02)
    run.all()
    states = {name: (one["state"], one["reason"]) for name, one in run.states.items()}
    assert states["sleeps"][0] == LATE
    assert "run again" in states["sleeps"][1]
    assert states["fails"] == (FAILED, "no luck")
    assert states["lacks"][0] == states["reads"][0] == SKIPPED
    assert "not installed: no_such_module" in states["lacks"][1]
    assert states["works"][0] == DONE
    assert "no luck" in table(tmp_path)


def test_the_plan_has_everything_in_order(tmp_path: Path) -> None:
    names = [step.name for step in Plan(out=tmp_path).steps()]
    assert names[:4] == ["roofline", "tests-gpu", "merging-equal", "gates"]
    assert names[4].startswith("passes linear bf16")
    assert names[-1] == "merging-times"
    for precision in PRECISIONS:
        for way in ("eager", "compile", "aot"):
            assert f"passes dpt_small {precision} {way}" in names
    for backend in BACKENDS:
        assert f"tasks {backend} linear fp16" in names
    for study in ("experts", "eval", "methods", "realignments", "relations"):
        assert study in names
    assert len(names) == len(set(names))


def test_a_cosine_that_is_no_number_is_none() -> None:
    bad = torch.tensor([float("nan"), 1.0])
    assert cosines([bad], [torch.ones(2)]) == [0.0]
    assert cosines([torch.tensor([1, 2])], [torch.tensor([1, 3])]) == [0.5]


def test_kernels_are_sorted_by_kind() -> None:
    found = by_kind({"sm90_gemm_bf16": 3.0, "flash_fwd": 2.0, "vectorized_add": 1.0})
    assert (found["matrix products"], found["attention"], found["the rest"]) == (3.0, 2.0, 1.0)


def item(joint: float, sequential: float, concurrent: float) -> dict[str, Any]:
    ms = {"joint": joint, "sequential": sequential, "concurrent": concurrent}
    return {
        "host_ms": {"joint": [joint]},
        "found": {
            "ms": {name: {"p50": value} for name, value in ms.items()},
            "ratios": {name: {"median": ms[name] / joint} for name in ("sequential", "concurrent")},
            "unstable": {},
        },
    }


def test_bars_by_hand(tmp_path: Path) -> None:
    # three models in 2.85 ms, at once in 2.1, one pass in 1.0: 0.95 and 0.7 of 3
    items = {"linear bf16 compile 3 tasks, batch 1": item(1.0, 2.85, 2.1)}
    (tmp_path / "passes-linear-bf16-compile.json").write_text(json.dumps({"items": items}))
    # 103.2 GFLOP at 206.4 TFLOP/s: 0.5 ms, so that 1 ms is twice that
    device = {"name": "G", "peaks": {"bf16": 206.4e12}, "bandwidth": 1e12}
    (tmp_path / "roofline.json").write_text(json.dumps({"items": {"device": device}}))
    told = "\n".join(bars(tmp_path))
    assert "sequential: 0.95 of 3, asked 0.93: met" in told
    assert "concurrent: 0.70 of 3, asked 0.8: NOT MET" in told
    assert "batch 1: 2.00 times the roofline, asked 3.0: met" in told
    assert "bf16, batch 16, against the roofline: not measured" in told
    assert "no backend of the runtime was measured" in told
