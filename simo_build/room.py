"""Arrays that may be larger than memory: past a limit in all they lie in files, read as needed."""

import math
import os
import tempfile
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from simo_runtime.errors import DataError


def _half_of_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):  # a system that does not say
        return 4 * 2**30


LIMIT = _half_of_memory()  # bytes of all arrays together


class _Held:
    """How many bytes the arrays take that lie in memory."""

    bytes = 0

    @classmethod
    def hold(cls, array: NDArray[Any]) -> NDArray[Any]:
        cls.bytes += array.nbytes
        weakref.finalize(array, cls._release, array.nbytes)  # views of it keep it, too
        return array

    @classmethod
    def _release(cls, count: int) -> None:
        cls.bytes -= count


def room_for(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Make an array to be filled: in memory, or in a file of the temporary folder.

    It is a file if this array and those that are still held would take more than LIMIT.

    The file has no name and is gone with the array. DataError if the folder has no room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if _Held.bytes + size <= LIMIT:
        return _Held.hold(np.empty(shape, dtype))
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
