"""PyTorch arms: the bundle's own model, built again from its recipe, eager and compiled.

The stages that the build kept beside the bundle give its weights; without them, they are made
anew. The equality gate says whether it is the bundle's model.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from simo_bench.arms import Arm, Pixels
from simo_bench.equality import Outputs
from simo_bench.setup import Setup
from simo_build.build import realign
from simo_build.export import FinishedHead, folded_encoder
from simo_build.loading import load_recipe
from simo_build.losses import TORCH_KINDS
from simo_build.merging import check_recipe, merge
from simo_build.progress import Silent
from simo_build.realign import shared_encoder
from simo_build.stages import Stages
from simo_build.workshop import Workshop, split_heads
from simo_runtime.errors import BackendError

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Joint(nn.Module):
    """Encoder and finished heads: uint8 (B, H, W, 3) -> what every task's graph gives."""

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder, self.tasks = encoder, tuple(heads)
        self.heads = nn.ModuleList(heads.values())

    def forward(self, pixels_BHW3: Tensor) -> list[Tensor]:
        taps = self.encoder(pixels_BHW3)
        return [head(*taps)[1] for head in self.heads]


def joint_module(setup: Setup) -> Joint:
    """Build the bundle's model again from its recipe."""
    told = setup.recipe
    if not told.get("recipe"):
        raise BackendError("the PyTorch arms need the bundle's recipe: give --recipe, and --data")
    data, experts = told.get("data"), told.get("experts") or "experts"
    loaded = load_recipe(
        str(told["recipe"]), data=Path(data) if data else None, experts=Path(experts)
    )
    check_recipe(loaded)
    work = Workshop(loaded, Stages(Path(setup.bundle).parent / ".stages", Silent()))
    merged = merge(work)
    aligned = realign(work, merged)
    weights = shared_encoder(merged.tensors, aligned.tensors)
    work.encoder.load(weights, source="the shared encoder", adapters=True)
    heads = split_heads(work, aligned.tensors)
    return Joint(
        folded_encoder(work.encoder.cpu().eval(), work.recipe),
        {
            task: FinishedHead(
                heads[task].cpu().eval().folded(),
                TORCH_KINDS[work.recipe.tasks[task].kind].finish,
            )
            for task in setup.tasks
        },
    ).eval()


def open_torch(name: str, setup: Setup, pixels: Pixels) -> Arm:
    """Open a PyTorch arm on the CPU; BackendError says why it cannot be."""
    if setup.precision != "fp32":
        raise BackendError(f"the PyTorch arms run in fp32 on a CPU, not in {setup.precision}")
    torch.set_num_threads(setup.threads)
    module: nn.Module = joint_module(setup)
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
