"""Write a safetensors file of float32 tensors piece by piece; it appears whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path

from torch import Tensor

ALIGNMENT = 8  # bytes; readers map the tensors as they lie in the file
BYTES = 4  # of a float32
FLUSH = 1 << 26  # bytes after which the disk begins to write, while more is computed


class TensorsFile:
    """A safetensors file that is being written; `tensors_file` makes one."""

    def __init__(
        self, path: Path, shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]
    ) -> None:
        self.path, self.shapes, self.written = path, shapes, 0
        header = self._header(metadata)
        self.room, self.starts, end = len(header), {}, len(header)
        for name in sorted(shapes):
            self.starts[name] = end
            end += BYTES * prod(shapes[name])
        self.size = end - self.room
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._flusher = ThreadPoolExecutor(max_workers=1)
        self._write(header, 0)

    def put(self, name: str, first: int, values: Tensor) -> None:
        """Take values of a tensor, float32 on the CPU, from the index `first` on, in any order."""
        data = values.contiguous().numpy().reshape(-1)
        if not data.size:
            return
        self._write(data.data.cast("B"), self.starts[name] + first * BYTES)
        before, self.written = self.written, self.written + data.nbytes
        if before // FLUSH < self.written // FLUSH:
            self._flusher.submit(os.fdatasync, self.descriptor)

    def describe(self, metadata: Mapping[str, str]) -> None:
        """Replace the metadata by one of the same length: what was not yet known at the start."""
        header = self._header(metadata)
        if len(header) != self.room:
            raise ValueError(f"{self.path}: {len(header)} bytes of header where {self.room} are")
        self._write(header, 0)

    def finish(self) -> None:
        """See that all is there, and on the disk."""
        if self.written != self.size:
            raise ValueError(f"{self.path}: {self.written} bytes given, its tensors {self.size}")
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Give the file back; it may be half-written."""
        self._flusher.shutdown(cancel_futures=True)
        os.close(self.descriptor)

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        """Give the bytes before the first tensor."""
        entries: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        for name in sorted(self.shapes):
            begin, end = end, end + BYTES * prod(self.shapes[name])
            entries[name] = {
                "dtype": "F32",
                "shape": [*self.shapes[name]],
                "data_offsets": [begin, end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def _write(self, data: memoryview | bytes, place: int) -> None:
        """Write all of some bytes; the system may take them in several parts."""
        while len(data):
            done = os.pwrite(self.descriptor, data, place)
            data, place = data[done:], place + done


@contextmanager
def tensors_file(
    path: Path, shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]
) -> Iterator[TensorsFile]:
    """Open a file for tensors of these shapes.

    It is on the disk (fsync) under its name when the context ends without an error, and not there
    otherwise. ValueError if not as many values were put as the shapes need.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        file = TensorsFile(partial, shapes, metadata)
        try:
            yield file
            file.finish()
        finally:
            file.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
