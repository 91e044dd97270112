"""run_all.sh: in a tiny mode on a CPU; what is resumed, skipped and stopped."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from simo_bench.gpu.run import DONE, FAILED, LATE, SKIPPED, Run, backend_fault, unpack
from simo_bench.gpu.steps import PRECISIONS, Plan, Step
from simo_bench.gpu.table import collected, table
from simo_bench.readme import section

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
