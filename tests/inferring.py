"""Running simo-infer as a person does, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits are POSIX's")
COMMAND = Path(sys.executable).parent / "simo-infer"


def infer(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def one_line(told: subprocess.CompletedProcess[str]) -> str:
    assert told.returncode in (1, 2)
    assert "Traceback" not in told.stderr
    assert told.stdout == ""
    lines = [line for line in told.stderr.splitlines() if line]
    assert len(lines) == 1, told.stderr
    return lines[0]
