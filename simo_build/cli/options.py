"""Options that several commands have, and how what people type is read."""

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import click

from simo_build.cli.manners import polite

Command = TypeVar("Command", bound=Callable[..., Any])
BUNDLES = Path("bundles")
STAGES = BUNDLES / ".stages"  # what commands keep that make no bundle

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
out_option = click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the bundle.  [default: bundles/<name of the recipe>]",
)
split_option = click.option(
    "--split",
    type=click.Choice(["select", "test"]),
    default="select",
    show_default=True,
    help="Choose on `select`; measure `test` once nothing will be chosen any more.",
)
PICTURES = (".png", ".svg", ".pdf")


def json_option(what: str) -> Callable[[Command], Command]:
    """Make the option --json, which takes the file for what a command has found."""
    return click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, path_type=Path),
        help=f"Also write {what}, to this file.",
    )


def plot_option(what: str) -> Callable[[Command], Command]:
    """Make the option --plot, which takes the file for a picture of what a command has found."""
    return click.option(
        "--plot",
        "plot_file",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=picture,
        help=f"Also draw {what} (.png, .svg or .pdf).",
    )


@polite
def picture(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a picture in a form that is not written, or where nothing draws it."""
    if path is None:
        return None
    if path.suffix not in PICTURES:
        raise click.BadParameter(f"{path} must end in one of {', '.join(PICTURES)}.")
    import simo_build.plots  # noqa: F401  # matplotlib may be missing: say so before any work

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
