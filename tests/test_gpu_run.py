"""run_all.sh: in a tiny mode on a CPU; what is resumed, skipped and stopped, and the table."""

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from simo_bench.curve import recipe_of
from simo_bench.gpu.ledger import Ledger
from simo_bench.gpu.passes import cosines
from simo_bench.gpu.profile import by_kind
from simo_bench.gpu.run import DONE, FAILED, LATE, SKIPPED, Run, backend_fault, unpack
from simo_bench.gpu.step import run as run_step
from simo_bench.gpu.steps import BACKENDS, BARS, ONE, PRECISIONS, STUDIES, TESTS, Plan, Step
from simo_bench.gpu.table import ENCODER_FLOP, HEAD_FLOP, SCHEMA, bars, collected, faults, table
from simo_bench.readme import section
from simo_build.loading import load_recipe
from simo_build.size import sizes_of

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run_all.sh"


def script(out: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    places = ("--out", out, "--work", out.parent / "work", "--pack", out.parent / "results.tgz")
    return subprocess.run(
        [SCRIPT, *places, *arguments, "--tiny"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )


def test_the_script_measures_writes_packs_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = script(out, "--only", "roofline,gates")
    assert told.returncode == 0, told.stderr
    assert "gates" in told.stdout
    written = (out / "gpu.json").read_text()
    assert str(tmp_path) not in written
    found = json.loads(written)
    assert {"command", "commit", "versions", "machine"} <= set(found)
    assert {name: one["state"] for name, one in found["steps"].items()} == {
        "roofline": DONE,
        "gates": DONE,
    }
    assert len(found["items"]["gates"]) == 2 * len(PRECISIONS)
    assert all(item["passed"] for item in found["items"]["gates"].values())
    assert "measured here" in section("gpu.json", found)
    with tarfile.open(tmp_path / "results.tgz") as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "again", filter="data")
    assert {"steps.json", "roofline.json", "gates.json", "gpu.json"} <= set(names)
    again = script(tmp_path / "again", "--only", "roofline,gates")
    assert "roofline: done before" in again.stderr


def test_a_smoke_test_runs_a_toy_of_every_way_and_then_the_question(tmp_path: Path) -> None:
    names = [step.name for step in Plan(out=tmp_path, smoke=True).steps()]
    assert names[:3] == ["roofline", "tests-gpu", "merging-equal"]
    assert names[3:6] == [f"toy linear bf16 {way}" for way in ("compile", "eager", "aot")]
    told = script(tmp_path / "out", "--smoke", "--only", "toy linear bf16 eager,passes")
    assert told.returncode == 0, told.stderr
    assert "toy linear bf16 eager 2 tasks, batch 1" in told.stdout
    parts = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert {"toy-linear-bf16-eager.json", "passes-linear-bf16-eager.json"} <= parts


def test_the_whole_script_in_its_tiny_mode(tmp_path: Path) -> None:
    from tests.tiny import write_workplace

    recipe = write_workplace(tmp_path)
    told = script(tmp_path / "out", "--recipe", recipe)
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

    def item(ledger: Ledger, key: str, made: dict[str, object]) -> object:
        return (ledger.item(key, lambda: made) or {}).get("n")

    first = Ledger(path, 60)
    assert item(first, "a", {"n": 1}) == 1
    assert first.item("b", fails) is None
    item(first, "c", {"n": 1, "passed": False})
    item(first, "d", {"n": 1, "reason": "a cosine of 0.5; no latency"})
    assert first.faults == {
        "b": "RuntimeError: CUDA out of memory",
        "c": "not passed",
        "d": "a cosine of 0.5; no latency",
    }
    second = Ledger(path, 60)
    assert [item(second, key, {"n": 2, "passed": True}) for key in "abcd"] == [1, 2, 2, 2]
    assert not second.faults
    assert calls == ["fails"]


def test_a_file_of_items_tells_where_they_come_from(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.json", 60)
    ledger.item("a", lambda: {"n": 1})
    found = json.loads((tmp_path / "l.json").read_text())
    assert {"command", "commit", "versions", "machine"} <= set(found)
    assert found["items"]["a"] == {"n": 1, "commit": found["commit"]}


def test_only_items_that_are_asked_for_are_made(tmp_path: Path) -> None:
    keys = [f"linear bf16 eager {tasks} tasks, batch {batch}" for tasks, batch in
            ((3, 1), (3, 16), (3, 4), (13, 1), (1, 16))]  # fmt: skip
    asked = [[key for key in keys if re.search(only, key)] for only in (ONE, BARS)]
    assert [len(one) for one in asked] == [2, 3]  # there are never 13 tasks
    ledger = Ledger(tmp_path / "l.json", 60, BARS)
    for key in keys:
        ledger.item(key, lambda: {"passed": False})
    assert list(ledger.items) == list(ledger.faults) == asked[1]
    assert not ledger.late


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
            Step(name="asks", command=("true",), backend="tensorrt"),
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
    assert states["asks"] == (SKIPPED, backend_fault("tensorrt"))
    assert states["works"][0] == DONE
    assert "no luck" in table(collected(tmp_path))


def test_what_failed_waits_for_what_had_no_turn(tmp_path: Path) -> None:
    lines: list[str] = []
    Run(Fixed(out=tmp_path), lines.append).all(["fails"])
    Run(Fixed(out=tmp_path), lines.append).all(["fails", "works"])
    assert [line for line in lines if line.endswith(" ...")] == [
        "fails ...",
        "works ...",
        "fails ...",
    ]


def test_when_all_minutes_are_over_no_step_is_begun(tmp_path: Path) -> None:
    lines: list[str] = []
    run = Run(Fixed(out=tmp_path), lines.append, total=0.1)
    run.all(["works"])
    assert lines == ["works: no time was left; run again to go on"]
    assert run.states == {}


class Counting(Plan):
    """A plan of a step that tells what it is told."""

    def steps(self) -> list[Step]:
        code = "import sys; raise SystemExit(' '.join(sys.argv[1:]))"
        return [Step(name="tells", command=(sys.executable, "-c", code), items=True)]


@pytest.mark.parametrize(("total", "seconds"), [(1e9, 420), (5, 240), (1, 30)])
def test_a_step_knows_how_long_to_begin_items(tmp_path: Path, total: float, seconds: int) -> None:
    run = Run(Counting(out=tmp_path), lambda _: None, total=total)
    run.all()
    assert run.states["tells"]["reason"] == f"--seconds {seconds}"


class Forking(Plan):
    """A plan of a step that leaves a process behind, whose number it writes down."""

    def steps(self) -> list[Step]:
        code = "import subprocess, sys, time; child = subprocess.Popen(['sleep', '60']); "
        code += "open(sys.argv[1], 'w').write(str(child.pid)); time.sleep(60)"
        return [Step(name="forks", command=(sys.executable, "-c", code, str(self.out / "pid")))]


def alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has asked after does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")
def test_a_step_that_is_stopped_leaves_no_process(tmp_path: Path) -> None:
    Run(Forking(out=tmp_path), lambda _: None, minutes=0.05).all()
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)


def test_wheels_that_pip_refuses_are_told(tmp_path: Path) -> None:
    assert "no wheels" in str(unpack(tmp_path, tmp_path / "site"))
    (tmp_path / "x-1-cp27-none-win32.whl").write_bytes(b"")
    path = os.environ.get("PYTHONPATH")
    assert "x-1-cp27-none-win32.whl" in str(unpack(tmp_path, tmp_path / "site"))
    assert os.environ.get("PYTHONPATH") == path


def test_wheels_are_those_of_the_lock() -> None:
    listed = (ROOT / "benchmarks" / "gpu" / "wheels.txt").read_text().splitlines()
    pins = {line for line in listed if line and not line.startswith("#")}
    lock = (ROOT / "requirements" / "dev.lock").read_text().splitlines()
    assert pins <= {line.removesuffix(" \\") for line in lock}
    assert len(pins) == 4


def test_the_plan_has_everything_in_order(tmp_path: Path) -> None:
    plan = Plan(out=tmp_path, data=tmp_path)
    names = [step.name for step in plan.steps()]
    assert names[:9] == [
        *("roofline", "tests-gpu", "merging-equal", "gates"),
        *("passes linear bf16 eager bars", "passes linear bf16 eager", "profile eager"),
        *("passes linear bf16 compile bars", "profile compile"),
    ]
    assert names.index("merging-times cuda") < names.index("passes dpt_small bf16 eager bars")
    for precision in PRECISIONS:
        for way in ("eager", "compile", "aot"):
            assert f"passes dpt_small {precision} {way}" in names
        for backend in BACKENDS:
            assert f"tasks {backend} linear {precision}" in names
    for study in STUDIES:
        assert study.name in names
    assert names.index("five-drawn") < names.index("five-experts")
    assert len(names) == len(set(names))


def test_parts_of_a_step_are_kept_in_one_file(tmp_path: Path) -> None:
    steps = {step.name: step.command for step in Plan(out=tmp_path).steps()}
    whole, part = steps["passes linear fp16 eager"], steps["passes linear fp16 eager bars"]
    assert part == (*whole, "--items", BARS)


def test_the_tests_of_the_gpu_are_named(tmp_path: Path) -> None:
    (step,) = (one for one in Plan(out=tmp_path).steps() if one.name == "tests-gpu")
    assert set(TESTS) <= set(step.command)
    assert all((ROOT / name).is_file() for name in TESTS)


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
        "tasks": 3,
        "batch": 1,
        "precision": "bf16",
        "commit": "c",
        "host_ms_with_copies": {"joint": [joint]},
        "found": {
            "ms": {name: {"p50": value} for name, value in ms.items()},
            "ratios": {name: {"median": ms[name] / joint} for name in ("sequential", "concurrent")},
            "unstable": {},
        },
    }


def document(**items: dict[str, Any]) -> dict[str, Any]:
    # 103.18 GFLOP at 206.36 TFLOP/s: 0.5 ms, so that 1 ms is twice that
    device = {"name": "G", "peaks": {"bf16": 206.36e12}, "bandwidth": 1e12, "commit": "c"}
    return {
        "steps": {},
        "machine": {"gpu": {"name": "G"}},
        "items": {"roofline": {"device": device}, **items},
    }


def test_bars_by_hand(tmp_path: Path) -> None:
    # three models in 2.85 ms, at once in 2.1, one pass in 1.0: 0.95 and 0.7 of 3
    timed = {
        "linear bf16 compile 3 tasks, batch 1": item(1.0, 2.85, 2.1),
        "linear bf16 aot 3 tasks, batch 1": item(1.25, 3.5, 3.5),
    }
    found = document(**{"passes-linear-bf16-compile": timed})
    told = "\n".join(bars(found, tmp_path))
    assert "compile 3 tasks, batch 1, sequential: 0.95 of 3.00, asked 0.93: met" in told
    assert "compile 3 tasks, batch 1, concurrent: 0.70 of 3.00, asked 0.8: NOT MET" in told
    assert "batch 1: 2.00 times the roofline, asked 3.0: met" in told
    assert "bf16, batch 16, against the roofline: not measured" in told
    assert "linear bf16 aot 3 tasks, batch 1: 0.80 times as fast as torch.compile" in told
    assert "no backend of the runtime was measured" in told


def test_shares_are_of_what_encoder_and_heads_allow() -> None:
    # DPT heads: three models need 3 x (103.18 + 35.58) = 416.28 GFLOP, one pass 103.18 + 106.74 =
    # 209.92; 1.98 times as much. At 206.36 TFLOP/s one pass takes 1.017 ms at least.
    timed = {"dpt_small bf16 eager 3 tasks, batch 1": item(2.035, 4.036, 2.035)}
    told = table(document(**{"passes-dpt_small-bf16-eager": timed}))
    (row,) = (line for line in told.splitlines() if line.startswith("dpt_small"))
    assert row.split()[-5:] == ["1.98", "(100%)", "1.00", "(50%)", "2.00"]


def test_the_page_of_benchmarks_shows_every_pass_and_every_bar() -> None:
    timed = {"linear bf16 compile 3 tasks, batch 1": item(1.0, 2.85, 2.1)}
    found = {**document(**{"passes-linear-bf16-compile": timed}), "schema": SCHEMA}
    page = section("gpu.json", found)
    assert "| linear bf16 compile 3 tasks, batch 1 | 1.000 | 2.850 | 2.100 | 2.85 (95%) " in page
    assert (
        "- linear bf16 compile 3 tasks, batch 1, concurrent: 0.70 of 3.00, asked 0.8: NOT" in page
    )
    assert "| hardware | G |" in page


@pytest.mark.parametrize("heads", HEAD_FLOP)
def test_operations_are_those_that_the_models_have(heads: str, tmp_path: Path) -> None:
    recipe = load_recipe(str(recipe_of("vit_base", heads, len(HEAD_FLOP[heads]), tmp_path))).recipe
    sizes = sizes_of(recipe)
    assert 2 * sizes.encoder.macs == pytest.approx(ENCODER_FLOP, rel=1e-3)
    counted = [2 * head.macs for head in sizes.heads.values()]
    assert counted == pytest.approx(HEAD_FLOP[heads], rel=1e-3, abs=1e6)


def test_what_was_not_captured_or_is_of_another_commit_is_told() -> None:
    arms = {"joint": True, "singles": [True, False]}
    timed = {"a": {**item(1, 3, 3), "captured": arms, "why_not_captured": "a sync"}}
    told = faults(document(**{"toy-x": timed, "gates": {"b": {"passed": True, "commit": "d"}}}))
    assert told[0] == "NOT CAPTURED: toy-x: a: a sync"
    assert told[1].endswith("several commits: c, d")
    assert faults({**document(**{"toy-x": timed}), "machine": {}}) == []  # on a CPU there are none
