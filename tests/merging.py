"""What the tests of merging share: deltas named as in a vision transformer, and parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simo_build.merge import MergeMethod
from simo_build.merge.reading import uniform

Matrix = NDArray[np.float64]

# Parameters under which a method may be called; a new method with required ones adds a line.
PARAMS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"alpha": 0.3},
    "awd": {"alpha": 0.3},
    "consensus": {"alpha": 0.3, "threshold": 0.4},
    "dare": {"alpha": 0.3, "drop": 0.5},
    "dare_ties": {"drop": 0.5},
    "della": {"density": 0.5},
    "lines": {"beta": 0.5},
    "iso_c": {"alpha": 1.0},
    "iso_cts": {"alpha": 1.0},
    "wudi": {"steps": 20},
    "doge": {"steps": 20},
    "esm": {"alpha": 1.0},
}


SHAPES: dict[str, tuple[int, ...]] = {
    "cls_token": (1, 1, 6),
    "mask_token": (1, 6),
    "pos_embed": (1, 5, 6),
    "patch_embed.proj.weight": (6, 3, 2, 2),
    "blocks.0.attn.qkv.weight": (18, 6),
    "blocks.0.attn.qkv.bias": (18,),
    "blocks.1.mlp.fc1.weight": (12, 6),
    "blocks.1.mlp.fc2.weight": (6, 12),
    "blocks.1.ls2.gamma": (1,),
    "scalar": (),
    "empty": (0, 5),
}


def delta(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(s, generator=generator).to(dtype) for name, s in SHAPES.items()}


def vectors(*values: Sequence[float]) -> list[dict[str, Tensor]]:
    return [{"w": torch.tensor(value)} for value in values]


def matrices(*values: Sequence[Sequence[float]]) -> list[dict[str, Tensor]]:
    return [{"blocks.0.w": torch.tensor(value)} for value in values]


def numpy_adam(start: Matrix, slope: Callable[[Matrix], Matrix], lr: float, steps: int) -> Matrix:
    point, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(1, steps + 1):
        gradient = slope(point)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        spread = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        point = point - lr * (first / (1 - 0.9**step)) / spread
    return point


def gram(tensor: Tensor, name: str, rows: int = 40) -> Tensor:
    """Second moments of made-up inputs of a matrix, a 1 at their end; equal for equal ones."""
    width = tensor[0].numel()
    like = torch.zeros(rows, width) + tensor.reshape(-1)[0].float()
    x = uniform(like, seed=1, name=name) - 0.3
    x = torch.cat((x, torch.ones(rows, 1)), dim=1).double()
    return (x.T @ x / rows).float()


def grams(delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Made-up evidence of the kind `grams` for one delta."""
    found = {}
    for name in delta:
        tensor = delta[name]
        if name.endswith(".weight") and tensor.dim() > 1:
            found[name] = gram(tensor, name)
        elif name.endswith((".weight", ".gamma")):
            found[name] = uniform(tensor, seed=2, name=name)
    return found


def information(delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Made-up evidence of the kind `fisher` for one delta."""
    return {name: 1e-3 * uniform(delta[name], seed=3, name=name) for name in delta}


EVIDENCE: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "grams": grams,
    "fisher": information,
    "fisher_labels": information,
}


def merge(
    method: MergeMethod, deltas: Sequence[Mapping[str, Tensor]], **params: Any
) -> dict[str, Tensor]:
    """Merge with the evidence and the parameters that a method cannot do without, made up."""
    evidence = [EVIDENCE[method.needs](one) for one in deltas] if method.needs else None
    return method(deltas, evidence, **{**PARAMS.get(method.name, {}), **params})
