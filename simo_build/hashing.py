"""Hashes of what goes into a result: plain values, and the code itself."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any


def digest(content: Mapping[str, Any]) -> str:
    """Hash plain values; equal content gives an equal hash, whatever its order."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_hash() -> str:
    """Hash the source of the build side: other code may give other results."""
    sha = hashlib.sha256()
    for package in ("simo_build", "simo_export", "simo_runtime"):
        for path in sorted(Path(str(files(package))).rglob("*.py")):
            sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()
