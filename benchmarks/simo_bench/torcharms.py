"""PyTorch arms: the bundle's own model, eager and compiled. The equality gate holds them to it."""

import torch
from torch import nn

from simo_bench.arms import Arm, Pixels
from simo_bench.equality import Outputs
from simo_bench.rebuilt import rebuilt
from simo_bench.setup import Setup
from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError


def open_torch(name: str, setup: Setup, pixels: Pixels) -> Arm:
    """Open a PyTorch arm on the CPU; BackendError says why it cannot be."""
    if setup.precision != "fp32":
        raise BackendError(f"the PyTorch arms run in fp32 on a CPU, not in {setup.precision}")
    torch.set_num_threads(setup.threads)
    module: nn.Module = rebuilt(Bundle.open(setup.bundle), setup.tasks)
    tasks = setup.tasks
    if name == "torch_compile":
        module = torch.compile(module)  # type: ignore[assignment]  # it is called like a module

    @torch.inference_mode()
    def run(pixels_BHW3: Pixels) -> Outputs:
        found = module(torch.from_numpy(pixels_BHW3))
        return {task: one.numpy() for task, one in zip(tasks, found, strict=True)}

    try:
        run(pixels)
    except RuntimeError as error:  # torch.compile without a compiler, for one
        raise BackendError(f"{name}: {str(error).splitlines()[0]}") from error
    return Arm(name, run, lambda: None, {"torch": torch.__version__})
