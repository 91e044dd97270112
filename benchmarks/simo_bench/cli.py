"""simo-bench: what does one pass gain, on this machine?"""

import json
import os
from pathlib import Path

import click

from simo_runtime.errors import SimoError


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(min=5), default=30, show_default=True)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all that are available]"
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the report to this file.",
)
def main(bundle: Path, rounds: int, threads: int | None, json_file: Path | None) -> None:
    """Time one pass of BUNDLE with all its heads against one pass per task."""
    from simo_bench.latency import bench, table
    from simo_runtime.bundle import Bundle

    try:
        report = bench(Bundle.open(bundle), rounds=rounds, threads=threads, progress=_progress)
    except SimoError as error:
        raise click.ClickException(str(error)) from error
    click.echo(err=True)
    click.echo(table(report))
    if json_file is not None:
        text = json.dumps(report.to_json(), indent=1, sort_keys=True) + "\n"
        partial = json_file.with_name(f".{json_file.name}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(json_file)


def _progress(line: str) -> None:
    click.echo(f"\r{line}", err=True, nl=False)
