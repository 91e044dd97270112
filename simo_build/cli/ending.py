"""How a command ends that has measured something: a table, JSON of all of it, a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


def finish(
    found: Mapping[str, Any], table: str, json_file: Path | None, plot_file: Path | None = None
) -> None:
    """Print the table of a report; write the report as JSON, and draw it, if that is asked for."""
    click.echo(table)
    if json_file is not None:
        from simo_build.origin import write_json

        write_json(found, json_file)
    if plot_file is not None:
        from simo_build.plots import draw, save

        save(draw(found), plot_file)
