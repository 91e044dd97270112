"""Whether something became slower: new results against the committed ones.

    python -m simo_bench.check bench-results

Ratios are compared, not times. Slower is what lies on the wrong side by more than the intervals of
both; what is UNSTABLE in either is unsure, and says nothing.
"""

import json
from pathlib import Path
from typing import Any

import click

from simo_bench.measured import changes, measured
from simo_build.cli import polite
from simo_runtime.errors import DataError

COMMITTED = Path(__file__).resolve().parents[1] / "results"


def read(path: Path) -> dict[str, Any]:
    """Read a result; DataError if it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or "schema" not in found:
        raise DataError(f"{path}: not a report, it has no schema")
    return found


def compare(before: Path, after: Path) -> dict[str, list[tuple[str, str]]]:
    """Compare every benchmark that is in both folders, by file; DataError if there is none."""
    if not after.is_dir():
        raise DataError(f"{after}: there is no such folder; `make bench` fills bench-results")
    found = {}
    for path in sorted(after.glob("*.json")):
        if (before / path.name).is_file():
            rows = changes(measured(read(before / path.name)), measured(read(path)))
            if rows:
                found[path.name] = rows
    if not found:
        raise DataError(f"{after} and {before} have no benchmark in common")
    return found


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    default=COMMITTED,
    help="Earlier results.  [default: those that are committed]",
)
@click.option("--all", "every", is_flag=True, help="Also show what stayed the same.")
@polite
def main(folder: Path, against: Path, every: bool) -> None:
    """Say what became slower in FOLDER beyond the noise; exit code 1 if anything did."""
    found = compare(against, folder)
    for name, rows in found.items():
        counts = {word: sum(one == word for one, _ in rows) for word in dict(rows)}
        click.echo(f"{name}: {', '.join(f'{n} {word}' for word, n in sorted(counts.items()))}")
        for word, line in rows:
            if every or word != "same":
                click.echo(f"  {word:<7}{line}")
    if any(word == "slower" for rows in found.values() for word, _ in rows):
        raise click.ClickException("some ratios are worse, beyond the noise")


if __name__ == "__main__":
    main()
