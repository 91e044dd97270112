"""Merge without a model: read, merge and write weights piece by piece.

This needs neither images nor timm, and an elementwise method holds a few thousand weights at a
time. It serves recipes that name their experts' files, leave nothing to be chosen, and whose base
is stored as the experts were tuned from it; `merging.merge` serves all.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simo_build.checkpoints import (
    METADATA,
    PICKLES,
    claim,
    description,
    encoder_file,
    finite,
    image_part,
    merged_description,
    metadata_of,
    open_expert,
    read_metadata,
    read_tensors,
)
from simo_build.devices import device
from simo_build.loading import LoadedRecipe
from simo_build.merge import METHODS, Delta, MergeMethod, Moved, by_weight, combined, rehearse
from simo_build.merge.reading import Cuttable
from simo_build.statedict import StateDict, misfits, part, state_hash
from simo_build.writing import TensorsFile
from simo_runtime.errors import CheckpointError, listing

# Weights: those of base, experts and result fit into a core's cache together, and torch leaves so
# few to one thread, which is faster here than two that wait for each other.
PIECE = 1 << 15
NO_HASH = "0" * 64


class OtherBaseError(Exception):
    """The base is not stored as the experts were tuned from it; never leaves this module."""


@dataclass(frozen=True)
class Inputs:
    """What is merged, mapped from its files, by task: encoders in float32, experts as stored."""

    base: StateDict
    base_hash: str  # as the experts remember it
    encoders: Mapping[str, StateDict]
    experts: Mapping[str, StateDict]


def open_inputs(loaded: LoadedRecipe) -> Inputs | None:
    """Open base and experts without a model, or give None if a model is needed.

    The base must be a safetensors file that holds tensors of the names and shapes of the experts'
    encoders; `write_merged` sees whether it is theirs. All that files say of themselves is compared
    before any weight is read. Raises CheckpointError for an expert that is damaged, not finite, or
    not the recipe's.
    """
    recipe, files = loaded.recipe, _files(loaded)
    base_hash = _common_base(files.values())
    base = _base(loaded, next(iter(files.values()))) if base_hash else None
    if base_hash is None or base is None:
        return None
    experts = {}
    for task, path in files.items():
        if image_part(read_metadata(path), path, like=recipe.image) != recipe.image:
            return None
        experts[task], _ = open_expert(path, like=description(recipe, task, base_hash))
        _check(claim(experts[task], source=path)["encoder."], base, source=path)
    whole = {task: finite(one, source=files[task]) for task, one in experts.items()}
    encoders = {task: part(one, "encoder.") for task, one in whole.items()}
    return Inputs(base, base_hash, encoders, experts)


def _files(loaded: LoadedRecipe) -> dict[str, Path]:
    """Give the experts' files if they are all that the recipe's method needs, or nothing."""
    choice, tasks = loaded.recipe.merge, loaded.recipe.tasks
    method = METHODS.get(choice.method)
    named = {task: one.expert for task, one in tasks.items()}
    files = {task: loaded.locate(name) for task, name in named.items() if name is not None}
    if method is None or method.needs or choice.choose or len(files) < len(tasks):
        return {}
    mapped = all(path.is_file() and path.suffix not in PICKLES for path in files.values())
    return files if mapped else {}


def _common_base(files: Iterable[Path]) -> str | None:
    """Give the hash of the base that all experts say they were tuned from; None if they differ."""
    hashes = set()
    for path in files:
        try:
            hashes.add(json.loads(read_metadata(path)[METADATA])["base_hash"])
        except (KeyError, TypeError, ValueError):
            return None
    return hashes.pop() if len(hashes) == 1 else None


def _base(loaded: LoadedRecipe, expert: Path) -> StateDict | None:
    """Map the tensors of the base that an expert has; None if some are not there as they are."""
    path = loaded.locate(loaded.recipe.base)
    if loaded.recipe.random_seed is not None or path.suffix in PICKLES:
        return None
    tensors, metadata = read_tensors(path)
    if METADATA in metadata:
        tensors = claim(tensors, source=path)["encoder."]
    names = part(read_tensors(expert)[0], "encoder.")
    if not names or not set(names) <= set(tensors):
        return None
    return finite({name: tensors[name] for name in names}, source=path)


def _check(encoder: StateDict, base: StateDict, *, source: Path) -> None:
    """Refuse an expert whose tensors are not those of the base."""
    faults = list(misfits(encoder, base))
    if faults:
        raise CheckpointError(
            f"{source}: {len(faults)} encoder tensors do not fit the base\n{listing(faults)}"
        )


@dataclass
class Piece:
    """Which part of a tensor its readers see; all of it if `place` is None."""

    place: slice | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Give that part of a tensor."""
        return tensor if self.place is None else tensor.reshape(-1)[self.place]


@dataclass(frozen=True)
class Ends:
    """The weights of one tensor of a delta, laid end to end; a part is computed when it is read."""

    tuned: Tensor
    base: Tensor

    def numel(self) -> int:
        return self.base.numel()

    def __getitem__(self, place: slice) -> Tensor:
        return self.tuned[place] - self.base[place]


@dataclass(frozen=True)
class Difference(Cuttable):
    """A delta that is computed when it is read: tuned - base, of a piece."""

    tuned: StateDict
    base: StateDict
    piece: Piece

    def __getitem__(self, name: str) -> Tensor:
        return self.piece.of(self.tuned[name]) - self.piece.of(self.base[name])

    def vector(self, name: str) -> Ends:
        return Ends(self.tuned[name].reshape(-1), self.base[name].reshape(-1))

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


def write_merged(loaded: LoadedRecipe, inputs: Inputs, out: Path) -> bool:
    """Merge into a file, which appears whole or not at all; tell whether it could be done.

    It cannot if the base's tensors have another hash than the experts remember: it must then be
    brought into the form that they were tuned from, which takes a model. Raises RecipeError, before
    any work, for parameters that the method does not take.
    """
    recipe = loaded.recipe
    method, params = METHODS[recipe.merge.method], recipe.merge.fixed()
    rehearse(method, [*inputs.base], len(inputs.encoders), params)

    def about(hashes: Mapping[str, str]) -> dict[str, Any]:
        return merged_description(recipe, inputs.base_hash, hashes, params)

    unknown = about(dict.fromkeys(inputs.experts, NO_HASH))
    try:
        with ThreadPoolExecutor() as pool, encoder_file(out, inputs.base, unknown) as file:
            base_hash = pool.submit(state_hash, inputs.base)  # while the weights are merged
            hashes = pool.map(state_hash, inputs.experts.values())
            merge_into(file, inputs, method, params)
            if base_hash.result() != inputs.base_hash:
                raise OtherBaseError
            file.describe(metadata_of(about(dict(zip(inputs.experts, hashes, strict=True)))))
    except OtherBaseError:
        return False
    return True


def merge_into(
    file: TensorsFile, inputs: Inputs, method: MergeMethod, params: Mapping[str, Any]
) -> None:
    """Merge and put the shared encoder's weights into a file."""
    piece = Piece()
    deltas: list[Delta] = [Difference(one, inputs.base, piece) for one in inputs.encoders.values()]
    if method.heavy:
        deltas = [Moved(delta, device()) for delta in deltas]
    with torch.inference_mode():
        merged = combined(method, deltas, params=params)
        cut = by_weight(method, params)
        for name, tensor in inputs.base.items():
            for piece.place in _pieces(tensor.numel()) if cut else [None]:
                first = piece.place.start if piece.place else 0
                file.put(f"encoder.{name}", first, piece.of(tensor) + merged[name].cpu())


def _pieces(size: int) -> Iterator[slice]:
    return (slice(start, start + PIECE) for start in range(0, size, PIECE))
