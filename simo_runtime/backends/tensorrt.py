"""Native TensorRT: engines that simo-engines built on this machine, features left on the GPU.

Needs tensorrt, pycuda and cuda-bindings. Not run on a GPU yet: the code is held to the names and
arguments of the real packages, and to a stand-in that computes in ONNX Runtime.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from simo_runtime.backends import Joint, Session, check_joint
from simo_runtime.bundle import Bundle
from simo_runtime.engines import Engine, default_root, engines_of, read_plan
from simo_runtime.errors import BackendError
from simo_runtime.gpu import Gpu, find_gpu
from simo_runtime.graphs import ENCODER, JOINT

INSTALL = "pip install 'simo-runtime[tensorrt]'"
MODULES = {"tensorrt": "tensorrt", "pycuda": "pycuda", "cuda-bindings": "cuda.bindings"}


@dataclass(frozen=True, kw_only=True)
class TensorrtOptions:
    """What can be said of a session; the defaults serve one predictor.

    The GPU is CUDA's first; CUDA_VISIBLE_DEVICES chooses another.
    """

    cuda_graph: bool = True  # record the work for tasks and a batch once, and replay it
    engines: Path | None = None  # the folder of all engines; None: the user's cache


class Tensorrt:
    """The backend; it holds its options and nothing else."""

    name = "tensorrt"

    def __init__(self, options: TensorrtOptions = TensorrtOptions()) -> None:  # frozen
        self.options = options

    def why_not(self) -> str | None:
        for package, module in MODULES.items():
            if not _there(module):
                return f"{package} is not installed: {INSTALL}, on a machine with an NVIDIA GPU"
        try:
            import tensorrt  # noqa: F401  # late, and only to see whether it can be loaded
            from pycuda import driver  # noqa: F401
        except (ImportError, OSError) as error:
            return f"{error}; {INSTALL}"
        try:
            find_gpu()
        except BackendError as error:
            return str(error)
        return None

    def facts(self) -> dict[str, str]:
        found = {}
        for package in MODULES:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "not installed"
        return found

    def open(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        precision: str = "fp32",
        joint: Joint = "auto",
        arena: bool = True,
    ) -> Session:
        """Load the engines of a bundle.

        Raises BackendError if this machine has none for a graph, naming the command that builds it.
        """
        check_joint(bundle, precision, joint)
        from simo_runtime.backends.tensorrt_engine import tensorrt_version
        from simo_runtime.backends.tensorrt_session import TensorrtSession

        gpu = find_gpu()
        find = _finder(bundle, precision, tensorrt_version(), gpu, self.options.engines)
        names = [ENCODER, *(task.name for task in bundle.manifest.tasks)]
        engines = {name: find(name) for name in names}
        if joint is not False and JOINT in bundle.manifest.graph_files(precision).named():
            try:
                engines[JOINT] = find(JOINT)
            except BackendError:
                if joint is True:
                    raise
        return TensorrtSession(
            bundle, engines, gpu=gpu, joint=joint, cuda_graph=self.options.cuda_graph
        )


@dataclass(frozen=True)
class Plan:
    """An engine's bytes, and what its record says of it."""

    data: bytes
    smallest: int  # batch sizes
    largest: int
    host_code: bool  # a version-compatible plan holds code for the processor


def _finder(
    bundle: Bundle, precision: str, tensorrt: str, gpu: Gpu, root: Path | None
) -> Callable[[str], Plan]:
    def find(name: str) -> Plan:
        found: Iterator[Engine] = engines_of(
            bundle, name, tensorrt=tensorrt, gpu=gpu, precision=precision, root=root
        )
        engine = next(found, None)
        if engine is None:
            raise BackendError(
                f"{bundle.root}: there is no {precision} engine of {name} for {gpu.name} and "
                f"TensorRT {tensorrt} in {root or default_root()}\n"
                f"Run: simo-engines {bundle.root} --precision {precision}"
            )
        options = engine.record["spec"]["options"]
        return Plan(
            read_plan(engine.path),
            int(options["batches"]["smallest"]),
            int(options["batches"]["largest"]),
            bool(options["version_compatible"]),
        )

    return find


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


BACKEND = Tensorrt()
