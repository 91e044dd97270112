"""Run a command on the tiny recipe as people do, and look at the JSON that it wrote."""

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result


def invoked(
    command: click.Command, name: str, folder: Path, patch: pytest.MonkeyPatch, *options: str
) -> Result:
    """Run a command in the folder of its recipe."""
    arguments = ["--recipe", str(folder / "tiny.yaml"), *options]
    patch.chdir(folder)
    patch.setattr(sys, "argv", [name, *arguments])
    return CliRunner().invoke(command, arguments)


def report_in(folder: Path) -> dict[str, Any]:
    """Read `a.json`, which must say where it comes from, but not what this machine calls it."""
    text = (folder / "a.json").read_text()
    report: dict[str, Any] = json.loads(text)
    assert {"commit", "versions", "machine", "inputs"} <= set(report)
    assert str(folder) not in text
    assert not list(folder.glob(".*partial*"))
    return report
