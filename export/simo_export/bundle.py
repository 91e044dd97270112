"""Write a bundle: graphs, weights and the manifest, whole or not at all."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from simo_runtime.bundle import MANIFEST, Bundle, FileEntry, Manifest, sha256_of
from simo_runtime.errors import ExportError


def check_folder(out: Path) -> None:
    """Refuse to write a bundle where there is something else."""
    if out.exists() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise ExportError(f"{out}: there is something else here; give another folder with -o")


def write_bundle(out: Path, manifest: Manifest, fill: Callable[[Path], None]) -> Bundle:
    """Let `fill` write the graphs into a temporary folder, add the manifest, and move it to `out`.

    The manifest's `files` are filled in here. An older bundle at `out` is replaced in the last
    step; a folder that is no bundle is refused.
    """
    check_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        fill(partial)
        files = {
            path.name: FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
            for path in sorted(partial.iterdir())
        }
        text = replace(manifest, files=files).to_json()
        (partial / MANIFEST).write_text(text, encoding="utf-8")
        Bundle.open(partial)
        _swap(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Bundle.open(out)


def _swap(new: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def sweep(out: Path) -> None:
    """Remove what killed builds of this bundle have left behind."""
    for left in out.parent.glob(f".{out.name}.*.partial"):
        number = left.name.split(".")[-2]
        if not (number.isdigit() and _alive(int(number))):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
