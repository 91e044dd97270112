"""What benchmarks/gpu/run_all.sh runs: every step in order, resumed where it was, a table last.

Only the standard library is needed to begin; what a step lacks is said, and the others run.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simo_bench import nvml
from simo_bench.gpu.steps import MINUTES, Plan, Step
from simo_build.origin import origin, without_paths

DONE, LATE, FAILED, SKIPPED = "done", "partial", "failed", "skipped"
CODES = {0: DONE, 3: LATE, 4: FAILED}
STATE = "steps.json"


class Run:
    """A plan that is carried out; what happened is written after every step."""

    def __init__(self, plan: Plan, tell: Callable[[str], None], minutes: float = MINUTES) -> None:
        self.plan, self.tell, self.minutes = plan, tell, minutes
        self.states: dict[str, dict[str, Any]] = {}
        path = plan.out / STATE
        if path.is_file():
            self.states = dict(json.loads(path.read_text(encoding="utf-8"))["steps"])

    def all(self, only: Iterable[str] = ()) -> None:
        """Run every step that is not done; `only` names some by how they begin."""
        self.plan.out.mkdir(parents=True, exist_ok=True)
        chosen = tuple(only)
        for step in self.plan.steps():
            if chosen and not step.name.startswith(chosen):
                continue
            if self.states.get(step.name, {}).get("state") == DONE:
                self.tell(f"{step.name}: done before")
                continue
            reason = self.why_not(step)
            if reason:
                self.note(step, SKIPPED, reason, 0.0)
            else:
                self.one(step)

    def why_not(self, step: Step) -> str | None:
        """Say why a step cannot run here; None if it can."""
        missing = [name for name in step.needs if find_spec(name) is None]
        if missing:
            return f"not installed: {', '.join(missing)}; bring wheels, see benchmarks/gpu"
        if step.data and self.plan.data is None:
            return "needs --data, the folder of the recipe's $DATA"
        if step.gpu and not self.plan.tiny and not has_gpu():
            return "there is no NVIDIA GPU that PyTorch can use"
        return None

    def one(self, step: Step) -> None:
        """Run a step within its minutes; what it had written by then stays."""
        self.tell(f"{step.name} ...")
        began, log = time.monotonic(), self.plan.out / f"{step.file}.log"
        with log.open("ab") as out:
            try:
                told = subprocess.run(
                    step.command, stdout=out, stderr=out, timeout=60 * self.minutes, check=False
                )
                state = CODES.get(told.returncode, FAILED)
                reason = "" if state == DONE else last_line(log)
            except subprocess.TimeoutExpired:
                state, reason = LATE, f"stopped after {self.minutes:g} minutes; run again to go on"
        self.note(step, state, reason, time.monotonic() - began)

    def note(self, step: Step, state: str, reason: str, seconds: float) -> None:
        """Write down what became of a step."""
        self.tell(f"{step.name}: {state}{f', {reason}' if reason else ''} ({seconds:.0f} s)")
        self.states[step.name] = {
            "state": state,
            "reason": reason,
            "seconds": round(seconds, 1),
            "command": without_paths(step.command),
        }
        text = json.dumps(
            {"schema": "simo.gpu/1", **about(), "steps": self.states}, indent=1, sort_keys=True
        )
        partial = self.plan.out / f".{STATE}.{os.getpid()}.partial"
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(self.plan.out / STATE)


def about() -> dict[str, Any]:
    """Say what this runs on."""
    found, gpu = origin("benchmarks/gpu/run_all.sh"), nvml.find()
    found["machine"]["gpu"] = gpu and gpu.about()
    return found


def has_gpu() -> bool:
    """Ask PyTorch, in a process of its own: this one is to hold no memory of the GPU."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def last_line(log: Path) -> str:
    """Give the last line of a log, which says what went wrong."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def unpack(wheels: Path, site: Path) -> None:
    """Unpack wheels beside the results; the machine's own packages stay as they are."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise SystemExit(f"{wheels}: there are no wheels in it")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--upgrade", "--target", str(site), *files], check=True)
    os.environ["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', '')}:{site}"
    sys.path.append(str(site))


def main() -> None:
    """Carry out the plan and print the table."""
    parser = argparse.ArgumentParser(description="Measure everything that needs an NVIDIA GPU.")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--data", type=Path, default=os.environ.get("SIMO_DATA"))
    parser.add_argument("--experts", type=Path, default=Path("experts"))
    parser.add_argument("--recipe", default="nyuv2-vit-tiny")
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--only", default="", help="steps by how their names begin, with commas")
    parser.add_argument("--tiny", action="store_true", help="small models, on a CPU")
    told = parser.parse_args()
    if told.wheels:
        unpack(told.wheels, told.out.resolve() / "site")
    plan = Plan(
        out=told.out,
        tiny=told.tiny,
        data=Path(told.data) if told.data else None,
        experts=told.experts,
        recipe=told.recipe,
    )
    run = Run(plan, lambda line: print(line, file=sys.stderr, flush=True))
    run.all([name for name in told.only.split(",") if name])
    from simo_bench.gpu.table import table

    print(table(told.out))


if __name__ == "__main__":
    main()
