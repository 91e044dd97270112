"""The runtime's bars: what it costs beside the bare network, and what one pass saves.

    python -m simo_bench.runtime --small bundles/nyuv2-vit-tiny --large bundles/speed-vit-base \
        --json benchmarks/results/runtime.json

The bundles are built with `simo-build --recipe nyuv2-vit-tiny` and `--recipe speed-vit-base`. Every
bar has its count and spread; what is compared runs alternating, in one run. `--only` takes some of
the bars, `--minutes` says how long the soak lasts. It says which bars are not met, and its exit
code is 1 then.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from simo_bench import (
    runtime_folder,
    runtime_overhead,
    runtime_passes,
    runtime_processes,
    runtime_soak,
)
from simo_build.cli import polite
from simo_build.origin import command_of, origin, write_json
from simo_runtime.bundle import Bundle

SCHEMA = "simo.bench.runtime/1"


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int = 60
    starts: int = 11  # of processes
    photos: int = 500
    minutes: float = 30.0


Measure = Callable[[dict[str, Bundle], Size], dict[str, Any]]


def _each(measure: Callable[[Bundle, int], dict[str, Any]]) -> Measure:
    """Measure every bundle."""
    return lambda bundles, size: {
        name: measure(bundle, size.rounds) for name, bundle in bundles.items()
    }


BARS: dict[str, Measure] = {
    "one-pass": _each(runtime_passes.one_pass),
    "memory": lambda bundles, size: {
        name: runtime_processes.memory(bundle, max(3, size.starts // 3))
        for name, bundle in bundles.items()
    },
    "overhead": _each(runtime_overhead.overhead),
    "import": lambda bundles, size: runtime_processes.imports(size.starts),
    "start": lambda bundles, size: runtime_processes.start(bundles["small"], size.starts),
    "folder": lambda bundles, size: runtime_folder.folder(bundles["small"], size.photos),
    "soak": lambda bundles, size: runtime_soak.soak(bundles["small"], size.minutes),
}


def failures(found: dict[str, Any], path: str = "") -> list[str]:
    """List the bars that are not met: every `met` that is false, by its place."""
    missed = [path] if found.get("met") is False else []
    for key, value in found.items():
        if isinstance(value, dict):
            missed += failures(value, f"{path}.{key}".lstrip("."))
    return missed


@click.command()
@click.option("--small", required=True, type=click.Path(path_type=Path), help="A ViT-Ti bundle.")
@click.option("--large", type=click.Path(path_type=Path), help="A ViT-B bundle.")
@click.option("--only", help=f"Some bars, separated by commas: {', '.join(BARS)}.")
@click.option("--rounds", type=click.IntRange(min=3), default=Size.rounds, show_default=True)
@click.option("--starts", type=click.IntRange(min=3), default=Size.starts, show_default=True)
@click.option("--photos", type=click.IntRange(min=4), default=Size.photos, show_default=True)
@click.option("--minutes", type=click.FloatRange(min=0.01), default=Size.minutes, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@polite
def main(
    small: Path, large: Path | None, only: str | None, json_file: Path | None, **size: Any
) -> None:
    """Measure the runtime against its bars."""
    chosen = [name.strip() for name in only.split(",")] if only else list(BARS)
    if foreign := sorted(set(chosen) - set(BARS)):
        raise click.UsageError(f"--only {foreign[0]}: there are {', '.join(BARS)}")
    document: dict[str, Any] = {
        "schema": SCHEMA,
        **origin(command_of("python -m simo_bench.runtime")),
        "bars": {},
    }
    bundles = {"small": Bundle.open(small)}
    if large is not None:
        bundles["large"] = Bundle.open(large)
    document["bundles"] = {name: bundle.manifest.name for name, bundle in bundles.items()}
    for name in chosen:
        click.echo(f"measuring {name}", err=True)
        document["bars"][name] = BARS[name](bundles, Size(**size))
        click.echo(json.dumps({name: document["bars"][name]}, indent=1))
    if json_file is not None:
        write_json(document, json_file)
    missed = failures(document["bars"])
    for name in missed:
        click.echo(f"not met: {name}", err=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
