"""Write a bundle: graphs, weights and the manifest, whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from simo_runtime.backends import load_backend
from simo_runtime.bundle import MANIFEST, Bundle, FileEntry, Manifest, sha256_of
from simo_runtime.errors import ExportError
from simo_runtime.golden import write_golden

TRIES = 20
RACED = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)  # another build has moved the folder


def check_folder(out: Path) -> None:
    """Refuse to write a bundle where there is something else."""
    if out.exists() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise ExportError(f"{out}: there is something else here; give another folder with -o")


def write_bundle(out: Path, manifest: Manifest, fill: Callable[[Path], None]) -> Bundle:
    """Let `fill` write the graphs into a temporary folder, add the manifest, and move it to `out`.

    The manifest's `files` are filled in here. An older bundle at `out` is replaced in the last
    step; a folder that is no bundle is refused. ExportError for a disk that is full, too.
    """
    check_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        fill(partial)
        keep_golden(Bundle(partial, replace(manifest, files=_entries(partial))))
        text = replace(manifest, files=_entries(partial)).to_json()
        (partial / MANIFEST).write_text(text, encoding="utf-8")
        written = Bundle.open(partial)
        _swap(partial, out)
    except OSError as error:
        raise ExportError(
            f"{out}: the bundle could not be written: {error.strerror or error}; "
            "nothing of it is left, and what was there before stays"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return replace(written, root=out)  # the same files


def keep_golden(bundle: Bundle) -> None:
    """Write down what the graphs say of the golden picture, for the self-test of a runtime.

    One thread, so that the numbers do not depend on how many there are.
    """
    session = load_backend("onnxruntime-cpu").open(bundle, threads=1, joint=False)
    write_golden(session, bundle)
    session.close()


def _entries(folder: Path) -> dict[str, FileEntry]:
    return {
        path.name: FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
    }


def _swap(new: Path, out: Path) -> None:
    """Put a bundle in its place; of two builds that end at once, the later one stays."""
    for left in reversed(range(TRIES)):
        try:
            _swap_once(new, out)
        except OSError as error:
            if not left or error.errno not in RACED or not new.exists():
                raise
        else:
            return


def _swap_once(new: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        if out.exists():
            out.rename(old)
        new.rename(out)
    except OSError:  # another build may have been quicker; else the old one goes back
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    finally:
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)


def sweep(out: Path) -> None:
    """Remove what killed builds of this bundle have left behind; a whole bundle goes back."""
    for left in sorted(out.parent.glob(f".{out.name}.*")):
        number, _, ending = left.name.removeprefix(f".{out.name}.").partition(".")
        if ending not in ("partial", "old") or (number.isdigit() and _alive(int(number))):
            continue
        if ending == "old" and not out.exists():
            left.rename(out)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
