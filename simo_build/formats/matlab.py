"""Numeric arrays from MATLAB's level 5 files (MAT-File Format, MathWorks), the form before HDF5.

A file is a header of 128 bytes and elements: a tag (type, bytes), then the data, padded to eight
bytes. An element of up to four bytes has its size in the upper half of the type. A compressed
element holds another one; a matrix holds flags, dimensions, name and numbers, each an element.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import DataError

MATRIX, COMPRESSED = 14, 15
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
NUMERIC = range(6, 16)  # classes of matrices: double, single, and whole numbers of every size
COMPLEX = 0x0800


def read_matrix(path: Path, name: str) -> NDArray[np.float64]:
    """Read the array of a name; DataError if the file, or the array in it, is not there."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) < 128 or data[126:128] != b"IM":
        raise DataError(f"{path}: not a level 5 MATLAB file of this machine's byte order")
    try:
        found = dict(filter(None, (_matrix(body) for body in _matrices(data[128:]))))
    except (struct.error, zlib.error, ValueError, LookupError) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    if name not in found:
        raise DataError(f"{path}: there is no numeric array {name} (there are: {', '.join(found)})")
    return found[name]


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give the type and the data of every element."""
    at = 0
    while at < len(data):
        (kind,) = struct.unpack_from("<I", data, at)
        small = kind >> 16
        size = small or struct.unpack_from("<I", data, at + 4)[0]
        start = at + (4 if small else 8)
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes goes past the end")
        yield kind & 0xFFFF, data[start : start + size]
        padded = size if kind == COMPRESSED else -(-size // 8) * 8
        at += 8 if small else 8 + padded


def _matrices(data: bytes) -> Iterator[bytes]:
    for kind, body in _elements(data):
        if kind == COMPRESSED:
            yield from _matrices(zlib.decompress(body))
        elif kind == MATRIX:
            yield body


def _matrix(body: bytes) -> tuple[str, NDArray[np.float64]] | None:
    """Give the name and the numbers of a matrix, or None if it is of another class."""
    elements = _elements(body)
    (_, flags), (_, shape), (_, name) = next(elements), next(elements), next(elements)
    (bits,) = struct.unpack_from("<I", flags)
    if bits & 0xFF not in NUMERIC or bits & COMPLEX:
        return None
    kind, numbers = next(elements)
    values = np.frombuffer(numbers, f"<{TYPES[kind]}").astype(np.float64)
    dims = struct.unpack(f"<{len(shape) // 4}i", shape)
    if values.size != math.prod(dims):
        raise ValueError(f"{values.size} numbers for the shape {dims}")
    return name.decode("ascii"), values.reshape(dims, order="F")
