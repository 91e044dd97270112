"""The shared libraries that an inference engine is linked against, and which of them are missing.

ONNX Runtime's providers for GPUs are libraries of their own. When one cannot be loaded, ONNX
Runtime says so in a line of its log and runs on the CPU. Here the names are read from the
provider's file and loaded one by one, so that what is missing can be told before a session exists.
The provider itself is never loaded here: it would start without ONNX Runtime and break later.
"""

import ctypes
import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path

# Of the ELF format, 64 bits, little-endian.
LOAD, DYNAMIC = 1, 2  # kinds of segments
NEEDED, STRINGS = 1, 5  # entries of the dynamic segment

# What installs a library, by the start of its name.
SOURCES = {
    "libcuda.so": "it comes with the NVIDIA driver of a machine with a GPU",
    "libcudnn": "pip install 'onnxruntime-gpu[cudnn]'",
    "libcu": "pip install 'onnxruntime-gpu[cuda]'",
    "libnvinfer": "it is TensorRT {version}'s: pip install 'tensorrt-cu13=={version}.*'",
    "libnvonnxparser": "it is TensorRT {version}'s: pip install 'tensorrt-cu13=={version}.*'",
}
WHEELS = ("tensorrt_libs",)  # packages that hold libraries where the loader does not look


def missing(library: Path) -> list[str]:
    """Tell which libraries a library needs and cannot have here, each with what installs it.

    A file that is no ELF file (Windows, macOS) tells nothing: the list is empty.
    """
    faults = []
    for name in needed(library):
        try:
            load(name)
        except OSError as error:
            faults.append(f"{error}{source_of(name)}")
    return faults


def load(name: str) -> ctypes.CDLL:
    """Load a library from a wheel that holds it, or from where the loader looks."""
    for folder in wheel_folders():
        if (folder / name).is_file():
            return ctypes.CDLL(str(folder / name))
    return ctypes.CDLL(name)


def wheel_folders() -> Iterator[Path]:
    """Give the folders of the wheels that hold libraries."""
    for package in WHEELS:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield Path(folder)


def source_of(name: str) -> str:
    """Say what installs a library, as the end of a line; nothing for a system's own."""
    version = name.partition(".so.")[2].partition(".")[0]
    found = next((text for start, text in SOURCES.items() if name.startswith(start)), None)
    return f"; {found.format(version=version)}" if found else ""


def needed(library: Path) -> list[str]:
    """Read the names of the libraries that an ELF file is linked against, in its own order."""
    with library.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
            return []
        start, size, count = _program_headers(header)
        file.seek(start)
        segments = list(struct.iter_unpack("<IIQQQQQQ", file.read(size * count)))
        dynamic = next((segment for segment in segments if segment[0] == DYNAMIC), None)
        if dynamic is None:
            return []
        file.seek(dynamic[2])
        entries = list(struct.iter_unpack("<qQ", file.read(dynamic[5] // 16 * 16)))
        table = next(value for tag, value in entries if tag == STRINGS)
        offset = next(
            place + table - address
            for kind, _, place, address, _, held, _, _ in segments
            if kind == LOAD and address <= table < address + held
        )
        names = []
        for value in (value for tag, value in entries if tag == NEEDED):
            file.seek(offset + value)
            names.append(file.read(256).partition(b"\0")[0].decode())
    return names


def _program_headers(header: bytes) -> tuple[int, int, int]:
    """Give where an ELF file's program headers start, the size of one and their number."""
    (start,) = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    return start, size, count
