"""Options that several commands have, and how what people type is read."""

from math import isfinite
from pathlib import Path

import click

recipe_option = click.option(
    "--recipe", required=True, help="A recipe file, or the name of one that ships."
)
data_option = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="SIMO_DATA",
    show_envvar=True,
    help="What $DATA stands for in the recipe.",
)
experts_option = click.option(
    "--experts",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("experts"),
    show_default=True,
    help="Where trained experts are kept.",
)
tensorboard_option = click.option(
    "--tensorboard",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write loss, rate, metric and time of every epoch to this folder, for TensorBoard.",
)
PICTURES = (".png", ".svg", ".pdf")


def picture(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Refuse the name of a picture in a form that is not written."""
    if path is not None and path.suffix not in PICTURES:
        raise click.BadParameter(f"{path} must end in one of {', '.join(PICTURES)}.")
    return path


def numbers(_context: click.Context, _option: click.Parameter, text: str) -> list[float]:
    """Read numbers with commas between them, each once, in ascending order."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} must be numbers with commas between them.") from error
    if not all(map(isfinite, found)):
        raise click.BadParameter(f"{text!r} must be finite numbers.")
    if twice := [value for value in found if found.count(value) > 1]:
        raise click.BadParameter(f"{twice[0]:g} stands twice.")
    return sorted(found)
