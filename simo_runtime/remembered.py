"""What was found out once on a machine and need not be found out again: small facts in JSON files.

    $XDG_CACHE_HOME/simo/remembered/<what>-<hash of the key>.json     (or under ~/.cache)

The machine's name is part of every key, because home folders are shared. Deleting the folder is
always safe. Where it cannot be written, things are found out anew each time.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simo_runtime.files import whole


def recall(what: str, key: Mapping[str, Any]) -> Any | None:
    """Give what is remembered under a key, or None."""
    try:
        found = json.loads(_path(what, key).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return None
    return found.get("value") if isinstance(found, dict) else None


def remember(what: str, key: Mapping[str, Any], value: Any) -> None:
    """Keep a value that JSON can hold; a folder that cannot be written keeps nothing."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(what, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": dict(key), "value": value}, indent=1, sort_keys=True)
        with whole(path) as partial:
            partial.write_text(text + "\n", encoding="utf-8")


def cache_root() -> Path:
    """Give the folder of this project's caches; RuntimeError where there is no home folder."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is to be ignored, says the XDG Base Directory Specification.
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "simo"


def _path(what: str, key: Mapping[str, Any]) -> Path:
    text = json.dumps({**key, "machine": platform.node()}, sort_keys=True)
    name = f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    return cache_root() / "remembered" / name
