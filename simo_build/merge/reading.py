"""Reading deltas, one tensor name at a time, in float32, in an order of their own.

A delta is tuned - base, name to tensor, of one task. It may be a mapping that reads its tensors
from a file each time it is asked, so no method holds more of them than those of one name.

Shapes: T tasks, ... the shape of one tensor.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Delta = Mapping[str, Tensor]
PASS_PIECE = 1 << 18  # weights that a pass over whole vectors reads at once, of each task


@dataclass(frozen=True)
class Moved(Mapping[str, Tensor]):
    """A delta whose tensors come to a device one by one, when they are read."""

    delta: Delta
    device: torch.device

    def __getitem__(self, name: str) -> Tensor:
        return self.delta[name].to(self.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self.delta)

    def __len__(self) -> int:
        return len(self.delta)


@dataclass(frozen=True)
class Lazily(Mapping[str, Tensor]):
    """A merged delta whose tensors are computed when they are read, and each time anew.

    Methods that look at every weight by itself give one, so that a merge can stream.
    """

    names: Mapping[str, object]
    compute: Callable[[str], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Vector(Protocol):
    """The weights of a tensor, laid end to end, of which a part can be read without the rest."""

    def numel(self) -> int: ...

    def __getitem__(self, place: slice, /) -> Tensor: ...


class Cuttable(Mapping[str, Tensor], ABC):
    """A delta whose tensors are computed when they are read, and can be read in part."""

    @abstractmethod
    def vector(self, name: str) -> Vector:
        """Give a tensor's weights; nothing is computed before a part of them is read."""


def pieces(deltas: Sequence[Delta], name: str) -> Iterator[Tensor]:
    """Read one tensor of every task in float32, as (T, n) pieces that fit into a cache."""
    vectors: list[Vector] = [
        one.vector(name) if isinstance(one, Cuttable) else one[name].reshape(-1) for one in deltas
    ]
    for start in range(0, vectors[0].numel(), PASS_PIECE):
        place = slice(start, start + PASS_PIECE)
        yield torch.stack([vector[place].float() for vector in vectors])


def stacked(deltas: Sequence[Delta], name: str) -> Tensor:
    """Read one tensor of every task in float32, as (T, ...)."""
    return torch.stack([delta[name].float() for delta in deltas])


def flat(stack: Tensor) -> Tensor:
    """See (T, ...) as (T, number of weights); also of a scalar or an empty tensor."""
    return stack.reshape(len(stack), stack[0].numel())


def each(values_T: Tensor, like: Tensor) -> Tensor:
    """Shape one value a task so that it multiplies or bounds a (T, ...) stack."""
    return values_T.reshape(-1, *[1] * (like.dim() - 1))


def total(deltas: Sequence[Delta], name: str) -> Tensor:
    """Add one tensor up over the tasks, in float64, so that the order of tasks changes nothing."""
    return summed(delta[name] for delta in deltas)


def summed(tensors: Iterable[Tensor]) -> Tensor:
    """Add tensors up in float64, without writing to them; give float32."""
    rest = iter(tensors)
    result = next(rest).to(dtype=torch.float64, copy=True)
    for tensor in rest:
        result += tensor
    return result.float()


def fingerprint(tensor: Tensor) -> bytes:
    """Hash the float32 values of a tensor; how it is stored, and where, changes nothing."""
    values = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
    return hashlib.blake2b(values.reshape(-1).numpy().data).digest()


def ordering(deltas: Sequence[Delta], evidence: Sequence[Delta] | None = None) -> list[int]:
    """Sort deltas by what they contain: floating point rounds by order, recipes should not.

    Deltas that are alike are sorted by their evidence, if there is any.
    """
    order = list(range(len(deltas))) if evidence is None else _ordering(evidence)
    return [order[i] for i in _ordering([deltas[i] for i in order])]


def _ordering(given: Sequence[Delta]) -> list[int]:
    """Sort mappings by their tensors, those that are alike by their places.

    Tensors are hashed, in the order of their names, only until no two are alike; mostly that is
    the first one.
    """
    keys: list[tuple[bytes, ...]] = [()] * len(given)
    for name in sorted(given[0]) if len(given) > 1 else ():
        keys = [(*key, fingerprint(one[name])) for key, one in zip(keys, given, strict=True)]
        if len(set(keys)) == len(keys):
            break
    return sorted(range(len(given)), key=keys.__getitem__)


def uniform(tensor: Tensor, *, seed: int, name: str) -> Tensor:
    """Draw a number in [0, 1) for every weight, from the seed, the name and the values alone.

    So neither the order of tasks, nor the other tasks, nor threads, nor the device change a draw.
    Two tasks whose tensor is the same draw the same.
    """
    key = hashlib.blake2b(f"{seed} {name}".encode() + fingerprint(tensor), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
    return torch.rand(tensor.shape, generator=generator).to(tensor.device)
