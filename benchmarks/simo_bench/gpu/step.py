"""One step of run_all.sh that is made of items.

    python -m simo_bench.gpu.step "passes linear bf16 compile" --out FILE --work FOLDER

Exit code 0 if all items are there, 3 if some were left for the next time, 4 if some failed.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from simo_bench.gpu import correctness, merged, passes, profile, roofline
from simo_bench.gpu.ledger import Ledger

LATE, FAILED = 3, 4


def _passes(ledger: Ledger, named: list[str], work: Path, tiny: bool) -> None:
    heads, precision, way = named
    passes.measure(ledger, heads=heads, precision=precision, way=way, work=work, tiny=tiny)


# What a step does with its ledger, the rest of its name, the work folder, and whether it is tiny.
STEPS: dict[str, Callable[[Ledger, list[str], Path, bool], object]] = {
    "roofline": lambda ledger, _, __, tiny: ledger.item(
        "device", lambda: roofline.measure_all(tiny=tiny)
    ),
    "merging-equal": lambda ledger, _, __, ___: correctness.merging(ledger),
    "gates": lambda ledger, _, work, tiny: correctness.gates(ledger, work=work, tiny=tiny),
    "passes": _passes,
    "profile": lambda ledger, _, work, tiny: profile.measure(ledger, work=work, tiny=tiny),
    "merging-times": lambda ledger, _, work, tiny: merged.measure(ledger, work=work, tiny=tiny),
}


def run(name: str, out: Path, work: Path, seconds: float, *, tiny: bool) -> int:
    """Do what is left of a step."""
    ledger, (kind, *named) = Ledger(out, seconds), name.split()
    if kind not in STEPS:
        raise SystemExit(f"unknown step {name!r} (there are: {', '.join(STEPS)})")
    work.mkdir(parents=True, exist_ok=True)
    STEPS[kind](ledger, named, work, tiny)
    ledger.write()
    for key, reason in ledger.failed.items():
        print(f"{key}: {reason}", file=sys.stderr)
    if ledger.late:
        return LATE
    return FAILED if ledger.failed else 0


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--tiny", action="store_true")
    told = parser.parse_args()
    sys.exit(run(told.name, told.out, told.work, told.seconds, tiny=told.tiny))


if __name__ == "__main__":
    main()
