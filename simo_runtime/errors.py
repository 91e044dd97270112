"""The errors that people can fix, one class for each thing a caller may want to catch.

    SimoError
        RecipeError        a recipe that cannot be read, or that asks for something impossible
        DataError          a data set that is missing, incomplete or of another format
        CheckpointError    weights that do not fit, or cannot be read
        TrainError         training that cannot go on
        ExportError        a model that cannot be exported, or whose graph gives other answers
        BundleError        a bundle that is damaged, incomplete or foreign
        BackendError       an inference backend that cannot run here
        ImageError         an image that cannot be read
        UnknownNameError   a task, method or other name that does not exist

Each message says where the fault is, what was found, what is allowed and what to do.
"""

import difflib
from collections.abc import Iterable


class SimoError(Exception):
    """Base of every error that this project raises on purpose."""


class RecipeError(SimoError):
    """A recipe cannot be read, or asks for something impossible."""


class DataError(SimoError):
    """A data set is missing, incomplete or of another format."""


class CheckpointError(SimoError):
    """Weights do not fit the model, or cannot be read."""


class TrainError(SimoError):
    """Training cannot go on."""


class ExportError(SimoError):
    """A model cannot be exported, or its graph gives other answers than PyTorch."""


class BundleError(SimoError):
    """A bundle is damaged, incomplete or foreign."""


class BackendError(SimoError):
    """An inference backend cannot run here."""


class ImageError(SimoError):
    """An image cannot be read."""


class UnknownNameError(SimoError):
    """A task, method or other name does not exist."""


def unknown(what: str, name: str, allowed: Iterable[str]) -> UnknownNameError:
    """Make the error for a name that is not one of `allowed`, with the closest one that is."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UnknownNameError(f"unknown {what} {name!r}{hint} (there are: {', '.join(names)})")


def listing(lines: Iterable[str], *, limit: int = 5) -> str:
    """Join offenders as indented lines, at most `limit` of them and the count of the rest."""
    every = list(lines)
    shown = [f"  {line}" for line in every[:limit]]
    if len(every) > limit:
        shown.append(f"  and {len(every) - limit} more")
    return "\n".join(shown)
