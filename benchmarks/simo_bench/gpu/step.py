"""One step of run_all.sh that is made of items.

    python -m simo_bench.gpu.step "passes linear bf16 compile" --out FILE --work FOLDER

Exit code 0 if all items are there, 3 if some were left for the next time, 4 if some failed or came
out wrong. What a step imports it imports itself: measuring the device needs little more than torch.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from simo_bench.gpu.ledger import Ledger

LATE, FAILED = 3, 4


def _roofline(ledger: Ledger, _: list[str], __: Path, tiny: bool) -> None:
    from simo_bench.gpu.roofline import measure_all

    ledger.item("device", lambda: measure_all(tiny=tiny))


def _merging_equal(ledger: Ledger, _: list[str], __: Path, ___: bool) -> None:
    from simo_bench.gpu.correctness import merging

    merging(ledger)


def _gates(ledger: Ledger, _: list[str], work: Path, tiny: bool) -> None:
    from simo_bench.gpu.correctness import gates

    gates(ledger, work=work, tiny=tiny)


def _passes(ledger: Ledger, named: list[str], work: Path, tiny: bool) -> None:
    from simo_bench.gpu.passes import measure

    heads, precision, way = named
    measure(ledger, heads=heads, precision=precision, way=way, work=work, tiny=tiny)


def _profile(ledger: Ledger, _: list[str], work: Path, tiny: bool) -> None:
    from simo_bench.gpu.profile import measure

    measure(ledger, work=work, tiny=tiny)


def _merging_times(ledger: Ledger, _: list[str], work: Path, tiny: bool) -> None:
    from simo_bench.gpu.merged import measure

    measure(ledger, work=work, tiny=tiny)


# What a step does with its ledger, the rest of its name, the work folder, and whether it is tiny.
STEPS: dict[str, Callable[[Ledger, list[str], Path, bool], None]] = {
    "roofline": _roofline,
    "merging-equal": _merging_equal,
    "gates": _gates,
    "passes": _passes,
    "profile": _profile,
    "merging-times": _merging_times,
}


def run(name: str, out: Path, work: Path, seconds: float, *, tiny: bool, only: str = "") -> int:
    """Do what is left of a step, or of those of its items that are asked for."""
    ledger, (kind, *named) = Ledger(out, seconds, only), name.split()
    if kind not in STEPS:
        raise SystemExit(f"unknown step {name!r} (there are: {', '.join(STEPS)})")
    work.mkdir(parents=True, exist_ok=True)
    STEPS[kind](ledger, named, work, tiny)
    ledger.write()
    for key, reason in ledger.faults.items():
        print(f"{key}: {reason}", file=sys.stderr)
    if ledger.late:
        return LATE
    return FAILED if ledger.faults else 0


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=420.0, help="for its items")
    parser.add_argument("--items", default="", help="a regular expression; the others wait")
    parser.add_argument("--tiny", action="store_true")
    told = parser.parse_args()
    code = run(told.name, told.out, told.work, told.seconds, tiny=told.tiny, only=told.items)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # PyTorch, after a capture that failed, may crash in an orderly end


if __name__ == "__main__":
    main()
