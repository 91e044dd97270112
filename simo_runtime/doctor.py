"""What of this machine the runtime can use: versions, processor, GPU, backends, engines.

`simo-infer --doctor` prints it. Everything is looked at anew, nothing is changed, and nothing that
is missing is an error. All that needs a package which may be broken is imported late, by the
section that uses it, so that the others are still told.
"""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from simo_runtime.cpus import affinity, available_cpus, cgroup_quota
from simo_runtime.errors import SimoError
from simo_runtime.gpu import find_gpu
from simo_runtime.importing import import_fault

if TYPE_CHECKING:
    from simo_runtime.bundle import Bundle

PACKAGES = (
    "simo-runtime",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "pycuda",
    "cuda-bindings",
)
# What is imported, the wheel to install for it, and the wheels that own its folder.
IMPORTS = (
    ("numpy", "numpy", "numpy"),
    ("cv2", "opencv-python-headless", "opencv-python opencv-python-headless"),
    ("onnxruntime", "onnxruntime", "onnxruntime onnxruntime-gpu"),
)
CONFLICTS = (("onnxruntime", "onnxruntime-gpu"), ("opencv-python", "opencv-python-headless"))
# A graph that gives what it is given: enough to see which provider really runs. It is
# onnx.helper.make_model of one Identity, opset 20; a test makes it again.
PROBE = bytes.fromhex(
    "080912003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a0208016"
    "20f0a0179120a0a08080112040a02080142040a001014"
)


@dataclass(frozen=True)
class Section:
    """A heading and its lines, name and finding."""

    title: str
    lines: tuple[tuple[str, str], ...]


def examine(bundle: Path | None = None) -> list[Section]:
    """Look at everything; with a bundle, open it on every backend that can run."""
    sections = [
        _section("versions", _versions()),
        _section("imports", _imports()),
        _section("processor", _processor()),
        _section("GPU", _gpu()),
        _section("ONNX Runtime providers", _providers()),
        _section("backends", _backends()),
        _section("engines", _engines()),
    ]
    if bundle is not None:
        sections.append(_section("bundle", _bundle(bundle)))
    return sections


def _section(title: str, looking: Iterator[tuple[str, str]]) -> Section:
    """Collect what is found; what goes wrong on the way is a finding too."""
    lines = []
    try:
        for line in looking:
            lines.append(line)
    except Exception as error:  # whatever it is: the doctor is asked when something is broken
        lines.append(("cannot be told", f"{type(error).__name__}: {error}"))
    return Section(title, tuple(lines))


def table(sections: Sequence[Section]) -> str:
    """Lay the sections out for people; findings of several lines are indented."""
    text = []
    for section in sections:
        text.append(section.title)
        width = max((len(name) for name, _ in section.lines), default=0)
        for name, found in section.lines:
            first, *rest = found.splitlines() or [""]
            text.append(f"  {name:<{width}}  {first}".rstrip())
            text += [f"  {'':<{width}}  {line.strip()}" for line in rest]
    return "\n".join(text)


def installed(package: str) -> str | None:
    """Give the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> Iterator[tuple[str, str]]:
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    found = {package: installed(package) for package in PACKAGES}
    for package, number in found.items():
        yield package, number or "not installed"
    for one, other in CONFLICTS:
        if found[one] and found[other]:
            yield "conflict", f"{one} and {other} own the same folder: uninstall both, install one"
    yield "environment", environment(found["tensorrt"], found["onnxruntime-gpu"])


def _imports() -> Iterator[tuple[str, str]]:
    for module, wheel, owners in IMPORTS:
        yield module, import_fault(module, wheel=wheel, owners=owners) or "works"


def environment(tensorrt: str | None, onnxruntime_gpu: str | None) -> str:
    """Say which of the two environments for TensorRT this is; they exclude each other.

    ONNX Runtime's TensorRT provider is linked to TensorRT 10, and native TensorRT may be 11.
    """
    major = int(tensorrt.split(".")[0]) if tensorrt else None
    if major is None:
        return "without TensorRT: neither the backend tensorrt nor ONNX Runtime's provider can run"
    if major >= 11:
        return f"for native TensorRT {tensorrt}: ONNX Runtime's TensorRT provider needs TensorRT 10"
    also = " and for ONNX Runtime's provider" if onnxruntime_gpu else "; onnxruntime-gpu is missing"
    return f"for TensorRT {tensorrt}, native{also}"


def _processor() -> Iterator[tuple[str, str]]:
    quota = cgroup_quota()
    yield "threads", str(available_cpus())
    yield "affinity", f"{affinity()} CPUs"
    yield "cgroup quota", "none" if quota is None else f"{quota:g} CPUs"


def _gpu() -> Iterator[tuple[str, str]]:
    try:
        gpu = find_gpu()
    except SimoError as error:
        yield "none", str(error)
        return
    yield "name", gpu.name
    yield "compute capability", gpu.compute_capability
    yield "multiprocessors", str(gpu.multiprocessors)
    yield "memory", f"{gpu.memory / 2**30:.1f} GiB"
    yield "driver", f"CUDA {gpu.driver}"


def _providers() -> Iterator[tuple[str, str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    onnxruntime.set_default_logger_severity(4)  # the provider's own words are below, once
    try:
        for name in onnxruntime.get_available_providers():
            yield name, _provider(onnxruntime, options, name)
    finally:
        onnxruntime.set_default_logger_severity(2)


def _provider(onnxruntime: ModuleType, options: object, name: str) -> str:
    """Ask for one provider with the probe, and say which ones are active then."""
    try:
        session = onnxruntime.InferenceSession(PROBE, options, providers=[name], enable_fallback=0)
    except Exception as error:
        # ONNX Runtime's classes have no parent of their own, and the backends, which list them,
        # need OpenCV: it may be what is broken here.
        # ONNX Runtime writes the place in its source before what it has to say.
        said = str(error).partition("\n")[0].rpartition("&) ")[2]
        return f"asked for; it cannot start: {said}"
    active = session.get_providers()
    return "active" if name in active else f"asked for; active instead: {', '.join(active)}"


def _backends() -> Iterator[tuple[str, str]]:
    from simo_runtime.backends import BACKENDS, load_backend

    default = None
    for name in BACKENDS:
        backend = load_backend(name)
        reason = backend.why_not()
        if reason is None and default is None:
            default = name
        state = f"can run{' (default)' if default == name else ''}"
        yield name, (state if reason is None else f"cannot run: {reason}")
        if reason is None:
            yield "", ", ".join(f"{what} {found}" for what, found in backend.facts().items())


def _engines() -> Iterator[tuple[str, str]]:
    from simo_runtime.engines import default_root

    root = default_root()
    yield "folder", str(root)
    plans = sorted(root.glob("*/*.plan")) if root.is_dir() else []
    for plan in plans:
        yield plan.parent.name, f"{plan.stem[:16]}... {plan.stat().st_size / 2**20:.1f} MiB"
    if not plans:
        yield "none", "engines are built by simo-engines"


def _bundle(root: Path) -> Iterator[tuple[str, str]]:
    from simo_runtime.backends import BACKENDS, load_backend
    from simo_runtime.bundle import Bundle

    yield "folder", str(root)
    try:
        bundle = Bundle.open(root)
    except SimoError as error:
        yield "cannot be opened", str(error)
        return
    yield "precisions", ", ".join(bundle.manifest.graphs)
    yield "tasks", ", ".join(f"{task.name} ({task.kind})" for task in bundle.manifest.tasks)
    for name in BACKENDS:
        if load_backend(name).why_not() is None:
            yield name, _opened(name, bundle)


def _opened(name: str, bundle: "Bundle") -> str:
    """Open a bundle on a backend, unless that would build engines, and say how it went."""
    from simo_runtime.backends import load_backend
    from simo_runtime.backends.onnxruntime_tensorrt import OnnxRuntimeTensorrt

    backend = load_backend(name)
    try:
        if isinstance(backend, OnnxRuntimeTensorrt):
            kept = {each: backend.kept(bundle, each) for each in bundle.manifest.graphs}
            counts = ", ".join(f"{each} {count}" for each, count in kept.items())
            return f"not opened, which may build engines for minutes; engines kept: {counts}"
        backend.open(bundle).close()
    except SimoError as error:
        return str(error)
    return "opens it"
