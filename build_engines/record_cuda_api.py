"""Hold what this project uses of pycuda and cuda.bindings to the real packages.

    python build_engines/record_cuda_api.py tests/cuda-api.json

pycuda is a source package that cannot be built without CUDA's headers. What it gives Python is
written in its source, `src/wrapper/wrap_cudadrv.cpp`, in calls of Boost.Python, and so the names
are read from there: of modules' functions, classes, their members and the values of enumerations.
cuda.bindings is a wheel that can be imported without a GPU. Names are checked, behaviour is not.
"""

import importlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

PYCUDA = "pycuda==2026.1"
SOURCE = "src/wrapper/wrap_cudadrv.cpp"
# What is looked for: of pycuda's module and its classes, and of cuda.bindings.driver.
WANTED = {
    "pycuda": [
        "Context", "Context.pop", "Context.push", "Device", "Device.retain_primary_context",
        "Error", "Event", "Event.record", "MemoryError", "Stream", "Stream.handle",
        "Stream.synchronize", "Stream.wait_for_event", "event_flags",
        "event_flags.DISABLE_TIMING", "init", "mem_alloc", "memcpy_dtoh_async",
        "memcpy_htod_async", "pagelocked_empty",
    ],
    "cuda-bindings": [
        "CUresult", "CUresult.CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "CUresult.CUDA_SUCCESS",
        "CUstream", "CUstreamCaptureMode",
        "CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL", "cuGraphDestroy",
        "cuGraphExecDestroy", "cuGraphInstantiate", "cuGraphLaunch", "cuStreamBeginCapture",
        "cuStreamEndCapture",
    ],
}  # fmt: skip


def source_of_pycuda() -> str:
    """Download the source package and give the file that defines its names."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        options = ["--no-binary", ":all:", "--no-build-isolation", "--dest", folder, PYCUDA]
        subprocess.run([*pip, *options], check=True)
        (archive,) = Path(folder).glob("pycuda*.tar.gz")
        with tarfile.open(archive) as opened:
            (member,) = (one for one in opened.getmembers() if one.name.endswith(SOURCE))
            file = opened.extractfile(member)
            assert file is not None  # it is a regular file of the package
            return file.read().decode("utf-8")


def names_of(source: str) -> set[str]:
    """Read the names that a file of Boost.Python gives: `Class`, `Class.member`, `function`."""
    found, owner = set[str](), ""
    plain = re.sub(r"//[^\n]*", "", source)
    pattern = re.compile(
        r'class_<[^;]*?\(\s*"(?P<made>\w+)"|enum_<\w+>\("(?P<enum>\w+)"'
        r'|py::def\("(?P<function>\w+)"|DEF_SIMPLE_FUNCTION\((?P<simple>\w+)\)'
        r'|\.def\("(?P<method>\w+)"|\.value\("(?P<value>\w+)"|\.add_property\("(?P<property>\w+)"'
        r"|DEF_SIMPLE_METHOD\((?P<plain>\w+)\)|DECLARE_EXC\((?P<error>\w+),"
    )
    for match in pattern.finditer(plain):
        kind, name = next((kind, name) for kind, name in match.groupdict().items() if name)
        if kind in ("made", "enum"):
            owner = name
        inside = kind in ("method", "value", "property", "plain")
        found.add(f"{owner}.{name}" if inside else name)
    return found


def main() -> None:
    """Write the table; a name that a package does not have is an error."""
    (target,) = map(Path, sys.argv[1:])
    there = {"pycuda": names_of(source_of_pycuda())}
    driver = importlib.import_module("cuda.bindings.driver")
    there["cuda-bindings"] = {
        name
        for name in WANTED["cuda-bindings"]
        if hasattr(getattr(driver, name.split(".")[0], None), name.partition(".")[2] or "__doc__")
    }
    for package, wanted in WANTED.items():
        if missing := sorted(set(wanted) - there[package]):
            sys.exit(f"{package} does not have {', '.join(missing)}")
    numbers = {"pycuda": PYCUDA.split("==")[1], "cuda-bindings": version("cuda-bindings")}
    table = {package: {"names": WANTED[package], "version": numbers[package]} for package in WANTED}
    target.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
