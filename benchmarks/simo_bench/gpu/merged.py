"""How long merging takes on a GPU at ViT-B shapes: the methods of matrices, against the CPU."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simo_bench.curve import recipe_of
from simo_bench.gpu.ledger import Ledger
from simo_bench.merging import NEEDED
from simo_build.encoder import Encoder
from simo_build.loading import load_recipe
from simo_build.merge import METHODS, Moved

SLOW = ("wudi", "doge")  # hundreds of gradient steps a matrix: on the GPU alone
NAMES = ("wudi", "doge", "awd", "tsv_m", "iso_c", "iso_cts", "task_arithmetic")
COUNT = 3  # tasks


def measure(ledger: Ledger, *, work: Path, tiny: bool) -> None:
    """Time every method on the GPU and, but for the slowest, on the CPU."""
    deltas = [delta("toy" if tiny else "vit_base", seed, work) for seed in range(COUNT)]
    gpu = "cuda" if torch.cuda.is_available() else "cpu"
    for name in NAMES:
        make = partial(timed, name, deltas, gpu, tiny)
        ledger.item(f"{name} {gpu}", make)
    for name in NAMES if gpu == "cuda" else ():
        if name not in SLOW:
            make = partial(timed, name, deltas, "cpu", tiny)
            ledger.item(f"{name} cpu", make)


def delta(shape: str, seed: int, work: Path) -> dict[str, Tensor]:
    """Give a random delta of an encoder's shapes."""
    recipe = load_recipe(str(recipe_of(shape, "linear", 1, work))).recipe
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in Encoder(recipe.encoder, recipe.image).weights().items()}
    draw = torch.Generator().manual_seed(seed)
    return {name: 0.002 * torch.randn(size, generator=draw) for name, size in shapes.items()}


def timed(name: str, deltas: list[dict[str, Tensor]], where: str, tiny: bool) -> dict[str, Any]:
    """Merge once with the clock running, after the libraries were opened."""
    device, method = torch.device(where), METHODS[name]
    params = dict(NEEDED.get(name, {}))
    if tiny and name in SLOW:
        params["steps"] = 2
    if where == "cuda":
        torch.linalg.svd(torch.randn(64, 64, device=device))  # opens the libraries
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    merged = method([Moved(one, device) for one in deltas], None, **params)
    for tensor in merged.values():
        tensor.sum()
    if where == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    memory = torch.cuda.max_memory_allocated() if where == "cuda" else None
    return {"seconds": seconds, "params": params, "device_memory": memory}
