"""Whether a package can be imported: that it is installed says little of its libraries."""

from importlib import import_module


def import_fault(module: str, *, wheel: str, owners: str) -> str | None:
    """Say why a package cannot be imported and what to install, or None if it can.

    `wheel` is what is to be installed, `owners` all wheels whose folder is the package.
    """
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return f"{module} is not installed: pip install {wheel}"
        reason = str(error)
    except (ImportError, OSError) as error:
        reason = str(error).strip()
    else:
        if found.__file__ is not None:
            return None
        reason = "its folder is left of a wheel that was uninstalled"
    again = f"pip uninstall {owners}, then pip install {wheel}"
    return f"{module} cannot be imported: {reason}; install it again: {again}"
