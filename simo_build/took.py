"""How long making a file took, kept beside it: times differ from run to run, and files must not."""

import json
import os
from pathlib import Path


def beside(path: Path) -> Path:
    """Give the place of the seconds that making a file took."""
    return path.with_name(f"{path.stem}.seconds.json")


def note(path: Path, seconds: float) -> None:
    """Keep some seconds in a file, which appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps({"seconds": round(seconds, 3)}), encoding="utf-8")
    partial.replace(path)


def noted(path: Path) -> float | None:
    """Give the seconds that are kept in a file; None if there are none, or they cannot be read."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
    except (OSError, KeyError, TypeError, ValueError):
        return None
