"""A step of the GPU script, as a process and in this one: what runs on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simo_bench.gpu.step import run as run_step
from simo_bench.gpu.table import collected, table


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


def test_a_step_that_came_out_wrong_says_so(tmp_path: Path) -> None:
    code = "from simo_bench.gpu import step; step.STEPS['wrong'] = lambda ledger, *_: ledger.item("
    code += "'a', lambda: {'passed': False}); step.main()"
    options = ["wrong", "--out", str(tmp_path / "wrong.json"), "--work", str(tmp_path)]
    told = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, check=False)
    assert told.returncode == 4
    assert told.stderr == b"a: not passed\n"
    assert "WRONG: wrong: a: not passed" in table(collected(tmp_path))


def test_measuring_the_device_imports_nothing_of_the_build_side() -> None:
    code = "import sys, simo_bench.gpu.step, simo_bench.gpu.roofline; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "yaml", "onnx", "timm"} & set(told.stdout.split())
