"""Inference backends: the narrow protocol, the ones there are, and how one is chosen.

Device buffers never cross this line: pixels go in and finished maps come out as numpy arrays,
while features stay wherever the backend keeps them.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Literal, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError, BundleError, unknown
from simo_runtime.graphs import JOINT

Pixels = NDArray[np.uint8]
Outputs = Mapping[str, NDArray[Any]]
# Whether one graph of encoder and all heads runs when all tasks are asked for: "auto" times both
# ways at the first use and remembers the faster one.
Joint: TypeAlias = bool | Literal["auto"]


class Session(Protocol):
    """A bundle that is loaded and ready to run; it may be used from several threads at once."""

    def run(self, pixels_BHW3: Pixels, tasks: Sequence[str]) -> Outputs:
        """Run the encoder once and the heads of `tasks` on its features.

        Pixels are uint8 RGB at the network's size. Raises BackendError if the device fails, for
        example because its memory is full, and if the session is closed.
        """
        ...

    def identity(self) -> Mapping[str, str]:
        """Say what decides the outputs beside the bundle: options, the device, its driver, engines.

        A self-test that has passed holds for sessions of the same identity.
        """
        ...

    def close(self) -> None:
        """Let go of the memory; the session cannot run afterwards."""
        ...


class Backend(Protocol):
    """A way to run bundles."""

    name: str

    def why_not(self) -> str | None:
        """Say why this backend cannot run here and what to install, or None if it can."""
        ...

    def facts(self) -> Mapping[str, str]:
        """Give versions, devices and libraries, for people; it never fails."""
        ...

    def open(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        precision: str = "fp32",
        joint: Joint = "auto",
        arena: bool = True,
    ) -> Session:
        """Load a bundle.

        `threads` is the number of CPU threads, None for every available one. `precision` is one
        that the bundle has. Without `arena`, memory goes back to the system after every run, which
        is slower and takes less of it. What a backend has no use for, it passes over.
        """
        ...


# In order of preference. Modules, not classes: each imports its engine late.
# The CPU's comes first because everything was measured on it; the GPU's are to be asked for.
BACKENDS = {
    "onnxruntime-cpu": "simo_runtime.backends.onnxruntime_cpu",
    "onnxruntime-cuda": "simo_runtime.backends.onnxruntime_cuda",
    "onnxruntime-tensorrt": "simo_runtime.backends.onnxruntime_tensorrt",
    "tensorrt": "simo_runtime.backends.tensorrt",
}


def load_backend(name: str) -> Backend:
    """Import a backend by name, or say which ones there are."""
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    return cast("Backend", import_module(BACKENDS[name]).BACKEND)


def check_joint(bundle: Bundle, precision: str, joint: Joint) -> None:
    """Raise BundleError if all tasks must run in one graph and the bundle has none."""
    if joint is True and JOINT not in bundle.manifest.graph_files(precision).named():
        raise BundleError(
            f"{bundle.root}: there is no joint graph in {precision}; build the bundle again, "
            "or leave joint at auto"
        )


def choose(wanted: str | Backend | None) -> Backend:
    """Give the backend of that name, or without a name the first that can run here.

    A backend that was made with options of its own is taken as it is. One that was asked for and
    cannot run is an error: nothing falls back in silence.
    """
    reasons = []
    for candidate in list(BACKENDS) if wanted is None else [wanted]:
        backend = load_backend(candidate) if isinstance(candidate, str) else candidate
        reason = backend.why_not()
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise BackendError("no backend can run here\n" + "\n".join(f"  {line}" for line in reasons))
