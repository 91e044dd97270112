"""Where a measured number comes from: command, commit, versions, machine; how it is written down.

Nothing here needs torch.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from simo_runtime.files import whole

# What a result tells of what is installed.
PACKAGES = (
    "simo-runtime",
    "numpy",
    "opencv-python-headless",
    "torch",
    "timm",
    "safetensors",
    "pydantic",
    "peft",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "transformers",
    "optimum-onnx",
)


def origin(command: str) -> dict[str, Any]:
    """Say where a result comes from; no name and no folder of the machine is told."""
    return {
        "command": command,
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }


def command_of(program: str) -> str:
    """Give a program with the arguments of this process, as another machine could run it."""
    return shlex.join([*shlex.split(program), *without_paths(sys.argv[1:])])


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Give the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Say what something is measured on."""
    return {"cpu": cpu_name(), "cpus": os.cpu_count(), "system": platform.system()}


def write_json(found: Mapping[str, Any], path: Path) -> None:
    """Write the study as JSON with sorted keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def without_paths(arguments: Sequence[str]) -> list[str]:
    """Replace the folders of this machine in a command, which must mean the same elsewhere.

    Of other absolute paths the name stays.
    """
    shown_as = {"--data": "DATA", "--experts": "EXPERTS", "-o": "OUT", "--out": "OUT"}
    shown = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        joined = argument.startswith("--") and "=" in argument
        option, _, value = argument.partition("=") if joined else (before, "", argument)
        told = shown_as.get(option, Path(value).name if Path(value).is_absolute() else value)
        shown.append(f"{option}={told}" if joined else told)
    return shown


def commit() -> str | None:
    """Give the commit of the code, marked when files differ from it.

    Outside a checkout it is what SIMO_COMMIT says, for code that travels without its history, or
    None.
    """
    where = Path(__file__).parent
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty"],
            cwd=where,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SIMO_COMMIT") or None
    return told.stdout.strip()


def cpu_name() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
