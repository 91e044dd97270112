"""How a page is filled with numbers from benchmarks/results, or held to them."""

from collections.abc import Callable
from pathlib import Path

import click

from simo_build.cli import polite
from simo_runtime.errors import DataError


def share(value: float) -> str:
    """Show equation 1 minus 100 %."""
    return f"{value - 1:+.1%}".replace("%", " %")


def command(page: Path, filled: Callable[[str], str], module: str) -> click.Command:
    """Give the command that fills a page; `filled` gives its text with all numbers."""

    @click.command(help=f"Fill {page.parent.name}/{page.name} with what benchmarks/results has.")
    @click.option("--check", is_flag=True, help="Change nothing; fail if it is not up to date.")
    @polite
    def main(check: bool) -> None:
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if check and after != before:
            raise DataError(f"{page}: not up to date; run python -m {module}")
        if not check:
            page.write_text(after, encoding="utf-8")

    return main
