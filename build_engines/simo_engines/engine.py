"""From a bundle's graph to an engine in a file: built once on a machine, then found again."""

import os
from pathlib import Path

from simo_engines.availability import tensorrt_version, why_not
from simo_runtime.bundle import Bundle
from simo_runtime.engines import BatchRange, default_root, engine_path, engine_spec
from simo_runtime.errors import BackendError
from simo_runtime.gpu import find_gpu


def build_engine(
    graph: Path,
    target: Path,
    *,
    batches: BatchRange,
    workspace_mib: int,
    tf32: bool = False,
) -> None:
    """Build the engine of an ONNX graph, its weights beside it, and write it to `target`.

    Takes minutes. The engine computes in the types of the graph; `tf32` lets it multiply float32
    in TF32, which is faster and rounds to 10 bits. Whatever fails, `target` stays as it was.
    """
    reason = why_not()
    if reason is not None:
        raise BackendError(reason)
    if workspace_mib < 1:
        raise BackendError(f"workspace_mib is {workspace_mib}; it must be at least 1")
    if not graph.is_file():
        raise BackendError(f"{graph}: there is no such graph")
    from simo_engines.plan import make_plan  # here, because it imports TensorRT

    plan = make_plan(graph, batches=batches, workspace_mib=workspace_mib, tf32=tf32)
    write_whole(target, plan)


def find_engine(
    bundle: Bundle,
    name: str,
    *,
    batches: BatchRange,
    workspace_mib: int,
    tf32: bool = False,
    root: Path | None = None,
) -> Path:
    """Give the engine of a graph of a bundle, `encoder` or a task's name; build it if need be.

    `root` is the folder of all engines, by default the one in the user's cache. It may not be
    inside the bundle.
    """
    folder = (root or default_root()).resolve()
    if folder.is_relative_to(bundle.root.resolve()):
        raise BackendError(f"{folder}: engines cannot lie in a bundle; give a folder outside it")
    spec = engine_spec(
        bundle,
        name,
        tensorrt=tensorrt_version(),
        gpu=find_gpu(),
        batches=batches,
        workspace_mib=workspace_mib,
        tf32=tf32,
    )
    path = engine_path(spec, root=folder)
    if not path.is_file():
        build_engine(
            bundle.graph(name), path, batches=batches, workspace_mib=workspace_mib, tf32=tf32
        )
    return path


def write_whole(target: Path, plan: bytes) -> None:
    """Write a file that is never seen half-written; only its owner may read it."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # of a killed process that had our number
    try:
        # A plan runs as code: nobody else may write it, from the first byte on.
        with open(partial, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(plan)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
