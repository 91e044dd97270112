"""The models of single tasks that one shared encoder is compared with.

They are the experts' own bundles, `<bundle>.experts/<task>`, which `simo-build --with-experts`
writes. Without them, parts of the bundle itself stand for them: for every task a copy of the
encoder with the task's head, as large and as slow as an expert, and each with memory of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simo_bench.parts import part_of
from simo_runtime.bundle import Bundle
from simo_runtime.errors import BundleError

EXPERTS, COPIES = "the experts' own bundles", "copies of the shared encoder, one a task"


@dataclass(frozen=True)
class Singles:
    """A bundle for every task, and what they are."""

    bundles: Mapping[str, Bundle]
    what: str


def experts_of(bundle: Bundle, tasks: Sequence[str]) -> Singles | None:
    """Open the experts' bundles beside a bundle; None if that folder is not there.

    BundleError says which task is missing, or does not fit the bundle's.
    """
    folder = bundle.root.with_name(f"{bundle.root.name}.experts")
    if not folder.is_dir():
        return None
    found = {task: Bundle.open(folder / task) for task in tasks}
    for task, single in found.items():
        ours, theirs = bundle.manifest.task(task), single.manifest.task(task)
        same = bundle.manifest.image_size == single.manifest.image_size
        if not same or (ours.kind, ours.channels) != (theirs.kind, theirs.channels):
            raise BundleError(
                f"{single.root}: its image size or its task {task} is not that of {bundle.root}; "
                "build both again with simo-build --with-experts"
            )
    return Singles(found, EXPERTS)


def copies_of(bundle: Bundle, tasks: Sequence[str], folder: Path, precision: str) -> Singles:
    """Write a copy for every task into a folder."""
    return Singles(
        {task: part_of(bundle, [task], folder / task, precision) for task in tasks}, COPIES
    )
