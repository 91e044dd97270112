"""What benchmarks/gpu/run_all.sh runs: every step in order, resumed where it was, a table last.

Only numpy and OpenCV are needed to begin; what a step lacks is said, and the others run.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simo_bench.gpu.ledger import about
from simo_bench.gpu.steps import MINUTES, SPARE, WORK, Plan, Step
from simo_bench.gpu.table import STATE, collected, table
from simo_build.origin import without_paths, write_json
from simo_runtime.files import whole

DONE, LATE, FAILED, SKIPPED = "done", "partial", "failed", "skipped"
CODES = {0: DONE, 3: LATE, 4: FAILED}
LEAST = 20  # seconds: in less no step comes to anything


class Run:
    """A plan that is carried out; what happened is written after every step.

    `minutes` is the limit of a step, `total` that of all steps together, from now on. All results
    are put into the archive `pack` after every step.
    """

    def __init__(
        self,
        plan: Plan,
        tell: Callable[[str], None],
        *,
        minutes: float = MINUTES,
        total: float = math.inf,
        pack: Path | None = None,
    ) -> None:
        self.plan, self.tell, self.minutes, self.pack = plan, tell, minutes, pack
        self.end = time.monotonic() + 60 * total
        self.states: dict[str, dict[str, Any]] = {}
        path = plan.out / STATE
        if path.is_file():
            self.states = dict(json.loads(path.read_text(encoding="utf-8"))["steps"])

    def all(self, only: Iterable[str] = ()) -> None:
        """Run every step that is not done; `only` names some by how they begin.

        What failed before comes last: the time is for what has not had its turn.
        """
        self.plan.out.mkdir(parents=True, exist_ok=True)
        chosen = tuple(only)
        steps = [one for one in self.plan.steps() if not chosen or one.name.startswith(chosen)]
        for step in sorted(steps, key=lambda one: self.state(one) == FAILED):
            if self.state(step) == DONE:
                self.tell(f"{step.name}: done before")
            elif reason := self.why_not(step):
                self.note(step, SKIPPED, reason, 0.0)
            elif self.left() < LEAST:
                self.tell(f"{step.name}: no time was left; run again to go on")
            else:
                self.one(step)

    def state(self, step: Step) -> str | None:
        """Say what became of a step; None if it was not begun."""
        found: str | None = self.states.get(step.name, {}).get("state")
        return found

    def left(self) -> float:
        """Give the seconds that are left of all."""
        return self.end - time.monotonic()

    def why_not(self, step: Step) -> str | None:
        """Say why a step cannot run here; None if it can."""
        missing = [name for name in step.needs if find_spec(name) is None]
        if missing:
            return f"not installed: {', '.join(missing)}; bring wheels, see benchmarks/gpu"
        if step.data and self.plan.data is None:
            return "needs --data, the folder of the recipe's $DATA"
        if step.gpu and not self.plan.tiny and not has_gpu():
            return "there is no NVIDIA GPU that PyTorch can use"
        return backend_fault(step.backend) if step.backend else None

    def one(self, step: Step) -> None:
        """Run a step within its time; what it had written by then stays."""
        self.tell(f"{step.name} ...")
        began, log = time.monotonic(), self.plan.out / f"{step.file}.log"
        limit = min(60 * self.minutes, self.left())
        until = f"{max(limit / 2, limit - SPARE):.0f}"  # what is begun by then may well end
        code = carried_out(
            (*step.command, *(("--seconds", until) if step.items else ())), log, limit
        )
        if code is None:
            state, reason = LATE, f"stopped after {limit / 60:.1f} minutes; run again to go on"
        else:
            state = CODES.get(code, FAILED)
            reason = "" if state == DONE else last_line(log)
        self.note(step, state, reason, time.monotonic() - began)

    def note(self, step: Step, state: str, reason: str, seconds: float) -> None:
        """Write down what became of a step, and pack all results."""
        self.tell(f"{step.name}: {state}{f', {reason}' if reason else ''} ({seconds:.0f} s)")
        self.states[step.name] = {
            "state": state,
            "reason": reason,
            "seconds": round(seconds, 1),
            "command": without_paths(step.command),
        }
        found = {"schema": "simo.gpu.steps/1", **about("benchmarks/gpu/run_all.sh")}
        write_json({**found, "tiny": self.plan.tiny, "steps": self.states}, self.plan.out / STATE)
        if self.pack is not None:
            packed(self.plan.out, self.pack)


def carried_out(command: tuple[str, ...], log: Path, seconds: float) -> int | None:
    """Run a command and give its exit code; None if it was stopped, with all that it had started.

    It is a process group, not a session: who stops this session stops it, too.
    """
    with log.open("ab") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, process_group=0)
        try:
            return child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # also after an end of its own, or of ours: workers that are left would use the GPU on
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def packed(folder: Path, path: Path) -> None:
    """Put the files of a folder into an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, tarfile.open(partial, "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.suffix != path.suffix:
                archive.add(file, arcname=file.name)


@cache
def has_gpu() -> bool:
    """Ask PyTorch, in a process of its own: this one is to hold no memory of the GPU."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@cache
def backend_fault(name: str) -> str | None:
    """Ask a backend of the runtime what it lacks, likewise; None if nothing."""
    code = "import sys; from simo_runtime.backends import load_backend as load; "
    code += "print(load(sys.argv[1]).why_not() or '')"
    asked = [sys.executable, "-c", code, name]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    return " ".join((told.stdout if told.returncode == 0 else told.stderr[-300:]).split()) or None


def last_line(log: Path) -> str:
    """Give the last line of a log, which says what went wrong."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def unpack(wheels: Path, site: Path) -> str | None:
    """Unpack wheels into a folder of their own; the machine's own packages stay as they are.

    What pip has against them is given: there is much that needs none of them.
    """
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        return f"{wheels}: there are no wheels in it"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command = [*pip, "--upgrade", "--target", str(site), *files]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        return f"{wheels}: {told.stderr.strip()[-500:]}"
    os.environ["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', '')}:{site}"
    sys.path.append(str(site))
    return None


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure everything that needs an NVIDIA GPU.")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--work", type=Path, default=WORK, help="for what need not come back")
    parser.add_argument("--pack", type=Path, help="an archive of --out, written after every step")
    parser.add_argument("--data", type=Path, default=os.environ.get("SIMO_DATA"))
    parser.add_argument("--experts", type=Path, default=Path("experts"))
    parser.add_argument("--recipe", default="nyuv2-vit-tiny")
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--only", default="", help="steps by how their names begin, with commas")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for all steps together")
    parser.add_argument("--smoke", action="store_true", help="two minutes: will the rest run?")
    parser.add_argument("--tiny", action="store_true", help="small models, on a CPU")
    return parser.parse_args()


def main() -> None:
    """Carry out the plan and print the table."""
    told = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a step does not outlive it
    plan = Plan(
        out=told.out,
        work=told.work.resolve(),
        tiny=told.tiny,
        smoke=told.smoke,
        data=Path(told.data) if told.data else None,
        experts=told.experts,
        recipe=told.recipe,
    )

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    run = Run(plan, tell, total=told.minutes, pack=told.pack)
    fault = unpack(told.wheels, plan.work / "site") if told.wheels else None
    if fault is not None:
        tell(fault)
    run.all([name for name in told.only.split(",") if name])
    found = collected(told.out)
    write_json(found, told.out / "gpu.json")
    if told.pack is not None:
        packed(told.out, told.pack)
    print(table(found, told.out))


if __name__ == "__main__":
    main()
