"""Arrays that may be larger than memory: past a limit they lie in a file, read as it is needed."""

import math
import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from simo_runtime.errors import DataError

LIMIT = 4 * 2**30  # bytes of one array


def room_for(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Make an array to be filled: in memory, or past LIMIT in a file of the temporary folder.

    The file has no name and is gone with the array. DataError if the folder has no room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= LIMIT:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="simo-") as file:
        try:
            _reserve(file.fileno(), size)
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: no room for {size / 2**30:.1f} GiB of images, truths or "
                f"features: {error.strerror}; set TMPDIR to a folder with more"
            ) from error
        return np.asarray(np.memmap(file, dtype, "r+", shape=shape))


def _reserve(file: int, size: int) -> None:
    """Take the space now: writing to a mapped file on a full disk would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)
