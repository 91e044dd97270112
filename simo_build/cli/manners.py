"""How commands end: errors that people can fix are one line, and several processes are refused."""

import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import click

from simo_runtime.errors import SimoError

Given = ParamSpec("Given")
Result = TypeVar("Result")


def in_one_process(command: Callable[Given, Result]) -> Callable[Given, Result]:
    """Refuse a launcher of several processes: this command would do everything several times."""

    @wraps(command)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        refuse_several()
        return command(*args, **kwargs)

    return run


def refuse_several() -> None:
    """Refuse a launcher of several processes."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.ClickException(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but this runs in one process; simo-train "
            "without --search and simo-build are those that use several"
        )


# What installs a missing module.
EXTRAS = {"matplotlib": "plot", "optuna": "search", "tensorboard": "tensorboard"}


def polite(command: Callable[Given, Result]) -> Callable[Given, Result]:
    """Turn errors that people can fix into one message and exit code 1, never a traceback."""

    @wraps(command)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return command(*args, **kwargs)
        except SimoError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:  # a full disk, a folder without permission
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            extra = EXTRAS.get(missing, "build")
            raise click.ClickException(
                f"this command needs {missing}: pip install 'simo-runtime[{extra}]'"
            ) from error

    return run
