"""ONNX Runtime on the CPU: the default, which works anywhere."""

from simo_runtime.backends import Joint
from simo_runtime.backends.onnxruntime_graph import Settings
from simo_runtime.backends.onnxruntime_session import OnnxRuntimeSession, version
from simo_runtime.bundle import Bundle
from simo_runtime.cpus import available_cpus
from simo_runtime.importing import import_fault


class OnnxRuntimeCpu:
    """The backend; it holds nothing."""

    name = "onnxruntime-cpu"

    def why_not(self) -> str | None:
        owners = "onnxruntime onnxruntime-gpu"
        return import_fault("onnxruntime", wheel="onnxruntime", owners=owners)

    def facts(self) -> dict[str, str]:
        return {"threads": str(available_cpus()), "ONNX Runtime": version()}

    def open(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        precision: str = "fp32",
        joint: Joint = "auto",
        arena: bool = True,
    ) -> OnnxRuntimeSession:
        settings = Settings(
            providers=(("CPUExecutionProvider", ()),),
            threads=threads or available_cpus(),
            arena=arena,
        )
        return OnnxRuntimeSession(bundle, settings, precision=precision, joint=joint)


BACKEND = OnnxRuntimeCpu()
