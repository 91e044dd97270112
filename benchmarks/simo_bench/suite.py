"""The project's own benchmarks, one after another: what `make bench` runs.

    python -m simo_bench.suite --out bench-results

merging   our merge stage against reading and writing the files once, and against mergekit
exports   our encoder graph against a plain export of the same model, and int8 against fp32
runtime   the runtime's overhead against bare ONNX Runtime sessions, its start, its pipeline
latency   one shared encoder against one model per task, ViT-Ti and ViT-B: simo-bench
tasks     the same for 1 to 6 tasks, with linear and DPT heads: simo_bench.curve

Models have random weights and real shapes; `--bundle` takes a real one for the small model. There
is no server in this project, and so no benchmark of one. One that fails does not stop the others.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from simo_build.cli import polite
from simo_runtime.errors import SimoError, unknown

TASKS = 3  # of the bundles with random weights


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where results and bundles lie, and how long to measure."""

    out: Path
    work: Path
    bundle: Path | None = None
    mergekit: str | None = None
    quick: bool = False  # small models and few rounds: to see that everything runs

    def small(self) -> Path:
        """Give the small bundle."""
        return self.bundle or self._random("toy" if self.quick else "vit_tiny")

    def large(self) -> Path:
        """Give the large bundle."""
        return self._random("toy" if self.quick else "vit_base")

    def _random(self, shape: str) -> Path:
        from simo_bench.curve import bundle_of

        return bundle_of(shape, "linear", TASKS, self.work)

    def json(self, name: str) -> list[str]:
        """Give the option for a result."""
        return ["--json", str(self.out / f"{name}.json")]


Command = list[str]


def module(name: str, *arguments: str) -> Command:
    """Give the command of a module."""
    return [sys.executable, "-m", f"simo_bench.{name}", *arguments]


def merging(place: Place) -> list[Command]:
    """Give the commands of the merging benchmark."""
    program = ["--mergekit", place.mergekit] if place.mergekit else []
    rounds = ["--rounds", "1" if place.quick else "4", "--no-methods"]
    return [module("merging", *program, *rounds, *place.json("merging-vit-base"))]


def exports(place: Place) -> list[Command]:
    """Give the commands of the export benchmark."""
    rounds = ["--rounds", "3", "--blocks", "1"] if place.quick else ["--rounds", "20"]
    return [module("exports", *rounds, *place.json("exports"))]


def runtime(place: Place) -> list[Command]:
    """Give the commands of the runtime benchmark; the soak of half an hour is run by hand."""
    size = ["--rounds", "3", "--starts", "3", "--photos", "8", "--minutes", "0.05"]
    usual = ["--minutes", "1"]
    bundles = ["--small", str(place.small()), "--large", str(place.large())]
    return [module("runtime", *bundles, *(size if place.quick else usual), *place.json("runtime"))]


def latency(place: Place) -> list[Command]:
    """Give the commands of simo-bench for a small and a large model."""
    size = ["--rounds", "2", "--processes", "1", "--seconds", "0", "--warm-up", "1"]
    usual = ["--rounds", "10", "--longest", "150", "--warm-up", "3", "--batches", "1,2,4"]
    chosen = size if place.quick else usual
    pairs = (("latency-vit-tiny", place.small()), ("latency-vit-base", place.large()))
    return [
        [
            sys.executable, "-c", "from simo_bench.cli import main; main()", str(bundle),
            *chosen, *place.json(name), "--html", str(place.out / f"{name}.html"),
        ]
        for name, bundle in pairs
    ]  # fmt: skip


def tasks(place: Place) -> list[Command]:
    """Give the command of the study over the number of tasks."""
    size = ["--shapes", "toy", "--heads", "linear", "--tasks", "2", "--rounds", "2"]
    chosen = [*size, "--processes", "1"] if place.quick else []
    plot = ["--plot", str(place.out / "latency-tasks.png"), "--work", str(place.work)]
    return [module("curve", *chosen, *plot, *place.json("latency-tasks"))]


BENCHES: dict[str, Callable[[Place], list[Command]]] = {
    "merging": merging,
    "exports": exports,
    "runtime": runtime,
    "latency": latency,
    "tasks": tasks,
}


def run(place: Place, names: Sequence[str], tell: Callable[[str], None]) -> list[str]:
    """Run some of the benchmarks, each command in a process of its own; give what failed."""
    for name in names:
        if name not in BENCHES:
            raise unknown("benchmark", name, BENCHES)
    place.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        began = time.monotonic()
        tell(f"{name} ...")
        codes = [
            subprocess.run(command, check=False).returncode for command in BENCHES[name](place)
        ]
        tell(f"{name}: {time.monotonic() - began:.0f} s{', FAILED' if any(codes) else ''}")
        failed += [name] if any(codes) else []
    return failed


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench-results"))
@click.option("--work", type=click.Path(path_type=Path), default=Path("bench-work"))
@click.option("--only", help=f"Some of: {', '.join(BENCHES)}.")
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), help="A small one.")
@click.option("--mergekit", help="The program mergekit-pytorch, to compare merging with.")
@click.option("--quick", is_flag=True, help="Small models, few rounds: to see that it all runs.")
@polite
def main(
    out: Path, work: Path, only: str | None, bundle: Path | None, mergekit: str | None, quick: bool
) -> None:
    """Run the project's benchmarks and write their results to a folder."""
    names = [name.strip() for name in only.split(",")] if only else list(BENCHES)
    place = Place(out=out, work=work, bundle=bundle, mergekit=mergekit, quick=quick)
    failed = run(place, names, lambda line: click.echo(line, err=True))
    if failed:
        raise SimoError(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
