"""Weights of a single head, from a file that holds them."""

from pathlib import Path

from simo_build.checkpoints import METADATA, claim, finite, read_tensors
from simo_build.heads import Head
from simo_build.statedict import misfits
from simo_runtime.errors import CheckpointError, listing

COUNTER = "num_batches_tracked"  # of a BatchNorm, which no prediction depends on


def load_head(head: Head, path: Path, *, named: str) -> None:
    """Give a head the weights of a file, which must have exactly its names and shapes.

    They may be a head's alone, or in a file that simo-train wrote. CheckpointError if they are not
    those of the head, which is called `named` then.
    """
    tensors, metadata = read_tensors(path)
    if METADATA in metadata:
        tensors = claim(tensors, source=path)["head."]
    state, wanted = finite(tensors, source=path), head.state_dict()
    whole = {key: wanted[key].new_tensor(0) for key in wanted if key.endswith(COUNTER)} | state
    if faults := list(misfits(whole, wanted)):
        raise CheckpointError(
            f"{path}: {len(faults)} tensors do not fit a {named}\n{listing(faults)}"
        )
    head.load_state_dict(whole)
