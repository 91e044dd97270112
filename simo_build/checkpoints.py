"""Weights on disk: read what others wrote, write our own, and refuse what does not fit.

An expert is a safetensors file with the tensors `encoder.<timm name>` and `head.<name>` and one
metadata entry `simo`, JSON: what the encoder is, the hash of the base it was tuned from, and the
task. A merged encoder is the same without head and task, and says what was merged how; a model that
was trained on all tasks together has a prefix for every task's head (`multitask`). Nothing is ever
unpickled: a `.pt` file is read with weights_only=True or not at all.
"""

import json
import os
import pickle
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from simo_build.recipe import ImagePart, Recipe
from simo_build.statedict import StateDict, part, prefixed, state_hash
from simo_build.took import beside, noted
from simo_build.writing import TensorsFile, tensors_file
from simo_runtime.errors import CheckpointError, listing

FORMAT = "simo.expert/1"
ENCODER_FORMAT = "simo.encoder/1"
JOINT_FORMAT = "simo.joint/1"
METADATA = "simo"
PICKLES = {".pt", ".pth", ".bin"}
# What torch.load raises, by and by, when the bytes of a file are changed.
DAMAGE = (
    pickle.UnpicklingError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, kw_only=True)
class Expert:
    """One fine-tuned model: an encoder, a head, and where they come from."""

    task: str
    encoder: StateDict
    head: StateDict
    about: Mapping[str, Any]  # the metadata
    source: str  # its file, as shown to people
    hash: str  # of all its weights
    seconds: float | None = None  # that its training took, if they are known


def read_tensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    """Read a safetensors file, or a `.pt` file of plain tensors; give tensors and metadata."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if path.suffix in PICKLES:
        return _read_pickle(path), {}
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read what a file says of itself, without its tensors if it is a safetensors file."""
    if not path.is_file() or path.suffix in PICKLES:
        return read_tensors(path)[1]
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error


def _read_pickle(path: Path) -> StateDict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: cannot be read as plain tensors, and nothing else is unpickled: {reason}"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{path}: not a dictionary of tensors")
    return dict(state)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name and rename it.

    CheckpointError if the disk is full or the folder cannot be written to; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, partial, metadata=dict(metadata))
        partial.chmod(0o644)  # safetensors writes for the owner alone
        partial.replace(path)
    except (SafetensorError, OSError) as error:
        size = sum(tensor.nbytes for tensor in whole.values())
        raise CheckpointError(
            f"{path}: cannot be written, it needs {size / 2**20:.1f} MiB: {error}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def finite(tensors: Mapping[str, Tensor], *, source: Path) -> StateDict:
    """Give weights in float32; one that is not a finite number is refused."""
    broken = [name for name, tensor in sorted(tensors.items()) if not _finite(tensor)]
    if broken:
        raise CheckpointError(
            f"{source}: {len(broken)} tensors hold numbers that are not finite\n{listing(broken)}"
        )
    return {name: tensor.float() for name, tensor in tensors.items()}


def _finite(tensor: Tensor) -> bool:
    """Whether all are finite; a sum that is finite says so in a third of the time."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def claim(tensors: Mapping[str, Tensor], *, source: Path) -> dict[str, StateDict]:
    """Split tensors into `encoder.` and `head.`; every other name is refused."""
    foreign = [name for name in sorted(tensors) if not name.startswith(("encoder.", "head."))]
    if foreign:
        raise CheckpointError(
            f"{source}: {len(foreign)} tensors are neither `encoder.` nor `head.`\n"
            f"{listing(foreign)}"
        )
    return {prefix: part(tensors, prefix) for prefix in ("encoder.", "head.")}


def description(recipe: Recipe, task: str, base_hash: str) -> dict[str, Any]:
    """Say what an expert of this recipe is: what must be equal for it to fit."""
    return {
        "format": FORMAT,
        "base_hash": base_hash,
        "encoder": recipe.encoder.model_dump(mode="json"),
        "image": recipe.image.model_dump(mode="json"),
        "head": recipe.tasks[task].head,
        "task": json.loads(json.dumps(asdict(recipe.specs()[task]))),
    }


def write_expert(
    path: Path,
    *,
    encoder: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    about: Mapping[str, Any],
    half: bool = False,
) -> None:
    """Write an expert; `half` stores float16, for experts that must be small."""
    tensors = prefixed(encoder, "encoder.") | prefixed(head, "head.")
    if half:
        tensors = {name: halved(tensor) for name, tensor in tensors.items()}
    write_tensors(path, tensors, metadata_of(about))


def halved(tensor: Tensor) -> Tensor:
    """Give a tensor in float16, unless it counts, or a value would overflow."""
    half = tensor.half()
    return half if tensor.is_floating_point() and half.isfinite().all() else tensor


def check_target(path: Path) -> None:
    """Refuse to write a merged encoder over a file that is not one."""
    if path.exists():
        try:
            about = about_of(read_metadata(path), path)
        except CheckpointError:
            about = {}
        if about.get("format") != ENCODER_FORMAT:
            raise CheckpointError(
                f"{path}: there is a file that is not a merged encoder; it is not overwritten. "
                "Give another name, or remove it."
            )


@contextmanager
def encoder_file(
    path: Path, like: Mapping[str, Tensor], about: Mapping[str, Any]
) -> Iterator[TensorsFile]:
    """Write a merged encoder piece by piece, with names and shapes as in `like`."""
    shapes = {f"encoder.{name}": tensor.shape for name, tensor in like.items()}
    with tensors_file(path, shapes, metadata_of(about)) as file:
        yield file


def metadata_of(about: Mapping[str, Any]) -> dict[str, str]:
    """Give a file's metadata with what it says of itself."""
    return {METADATA: json.dumps(about, sort_keys=True)}


def merged_description(
    recipe: Recipe, base_hash: str, experts: Mapping[str, str], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Say what a merged encoder is; `experts` are the hashes of their weights by task."""
    return {
        "format": ENCODER_FORMAT,
        "base_hash": base_hash,
        "encoder": recipe.encoder.model_dump(mode="json"),
        "image": recipe.image.model_dump(mode="json"),
        "experts": dict(experts),
        "merge": recipe.merge.model_dump(mode="json"),
        "params": dict(params),
    }


def about_of(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Read what a file of ours says of itself."""
    try:
        about = json.loads(metadata[METADATA])
        whole = about.get("format") in (ENCODER_FORMAT, JOINT_FORMAT)
        if whole or isinstance(about["task"]["name"], str):
            return dict(about)
        reason = "its task has no name"
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise CheckpointError(
        f"{path}: not an expert, its metadata has no `{METADATA}` entry that can be read "
        f"({reason}). simo-train writes experts."
    )


def image_size(metadata: Mapping[str, str], path: Path) -> tuple[int, int]:
    """Give the size (height, width) of the images that a file of ours was made for."""
    try:
        high, wide = (int(side) for side in about_of(metadata, path)["image"]["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata does not say its image's size") from error
    return high, wide


def image_part(metadata: Mapping[str, str], path: Path, *, like: ImagePart) -> ImagePart:
    """Give the recipe's image at the size that a file of ours says of itself."""
    try:
        return ImagePart.model_validate({**like.model_dump(), "size": image_size(metadata, path)})
    except ValueError as error:
        raise CheckpointError(f"{path}: its image's size cannot be: {error}") from error


def open_expert(path: Path, *, like: Mapping[str, Any]) -> tuple[StateDict, dict[str, Any]]:
    """Map an expert's tensors, and compare what it says of itself with what is needed (`like`).

    No weight is read yet, if it is a safetensors file.
    """
    tensors, metadata = read_tensors(path)
    about = about_of(metadata, path)
    differences = list(differences_of(about, like))
    if differences:
        raise CheckpointError(
            f"{path}: the expert does not fit the recipe\n{listing(differences)}\n"
            "All experts of a recipe must be fine-tuned from its `base`, with its `encoder`, "
            "`image` (the size may differ) and task."
        )
    return tensors, about


def read_expert(path: Path, *, like: Mapping[str, Any]) -> Expert:
    """Read an expert that fits the recipe; weights that are not finite are refused."""
    tensors, about = open_expert(path, like=like)
    parts = claim(finite(tensors, source=path), source=path)
    return Expert(
        task=about["task"]["name"],
        encoder=parts["encoder."],
        head=parts["head."],
        about=about,
        source=str(path),
        hash=state_hash(tensors),
        seconds=noted(beside(path)),
    )


def differences_of(about: Mapping[str, Any], like: Mapping[str, Any]) -> list[str]:
    """Name the keys whose values differ, one level deep."""
    lines = []
    for key, wanted in like.items():
        found = about.get(key)
        if found == wanted:
            continue
        if isinstance(found, dict) and isinstance(wanted, dict):
            lines += [
                f"{key}.{inner}: {found.get(inner)} here, {wanted.get(inner)} in the recipe"
                for inner in sorted({*found, *wanted})
                if found.get(inner) != wanted.get(inner)
            ]
        else:
            lines.append(f"{key}: {found} here, {wanted} in the recipe")
    return lines
