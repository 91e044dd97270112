"""Files that appear whole or not at all: written under another name, then renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import ImageError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name to write to; after the block it becomes `path`, after an error it is gone.

    The suffix stays, because encoders look at it.
    """
    partial = partial_name(path)
    with becoming(path, partial):
        yield partial


@contextmanager
def becoming(path: Path, partial: Path) -> Iterator[None]:
    """Finish what has been written to `partial`: after the block it becomes `path`, or is gone."""
    try:
        yield
        partial.replace(path)
    except OSError as error:
        if error.filename in (None, str(partial)):
            raise at(path, error) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def partial_name(path: Path) -> Path:
    """Make up a hidden name beside a path to write it under; no other call gives the same.

    It is short, since the path's own name may be as long as the file system allows.
    """
    return path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.partial{path.suffix}")


def at(path: Path, error: OSError) -> OSError:
    """Give an error the path that people know; a full disk does not say where."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def write_npy(path: Path, values: NDArray[np.generic]) -> Path:
    """Write an array as .npy; ValueError for one of Python objects, which would need pickle."""
    if values.dtype.hasobject:
        raise ValueError(f"{path}: an array of objects would need pickle")
    plain = np.ascontiguousarray(values)
    with whole(path) as partial, partial.open("wb") as file:
        # Not np.save: what it raises on a full disk has no reason in it.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(plain))
        file.write(plain.data)
    return path


def write_image(path: Path, pixels: NDArray[np.generic]) -> Path:
    """Write pixels (grey or BGR) in the format that the file's suffix names."""
    encoded, data = cv2.imencode(path.suffix, np.ascontiguousarray(pixels))
    if not encoded:
        raise ImageError(f"{path}: OpenCV cannot encode {pixels.dtype} {pixels.shape}")
    with whole(path) as partial:
        partial.write_bytes(data.data)
    return path
