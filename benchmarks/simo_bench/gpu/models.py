"""The models that are timed in PyTorch: real shapes, random weights, fused attention.

The encoder is timm's own with `scaled_dot_product_attention`, the heads are folded, as anyone would
run them; what comes out is what a bundle gives. Ways to run a model:

    eager     as it is
    compile   torch.compile, max-autotune
    aot       AOTInductor: exported, compiled ahead, loaded

Each is captured as a CUDA graph, and replayed, if it can be: launches would hide what it costs.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from simo_bench.curve import recipe_of
from simo_build.encoder import Encoder, randomise
from simo_build.heads import make_head
from simo_build.loading import load_recipe
from simo_build.losses import TORCH_KINDS
from simo_build.train import feature_shape

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WAYS = ("eager", "compile", "aot")


class Pass(nn.Module):
    """One encoder and some heads: uint8 (B, H, W, 3) -> every head's finished output."""

    def __init__(
        self,
        encoder: Encoder,
        heads: Sequence[nn.Module],
        finishes: Sequence[Callable[[Tensor], Tensor]],
    ) -> None:
        super().__init__()
        self.encoder, self.heads, self.finishes = encoder, nn.ModuleList(heads), list(finishes)

    def forward(self, pixels_BHW3: Tensor) -> list[Tensor]:
        taps = self.encoder(pixels_BHW3)
        pairs = zip(self.heads, self.finishes, strict=True)
        return [finish(head(*taps).float()) for head, finish in pairs]


class Models:
    """The parts of a shape, from which passes are put together."""

    def __init__(self, shape: str, heads: str, most: int, work: Path, where: torch.device) -> None:
        recipe = load_recipe(str(recipe_of(shape, heads, most, work))).recipe
        self.where, self.size = where, recipe.image.size
        self.encoder = Encoder(recipe.encoder, recipe.image).eval()
        randomise(self.encoder, 0)
        specs, features = recipe.specs(), feature_shape(self.encoder)
        self.tasks = tuple(specs)
        self.heads = {
            task: make_head(heads, spec, features, seed=0).eval().folded()
            for task, spec in specs.items()
        }
        self.finishes = {task: TORCH_KINDS[spec.kind].finish for task, spec in specs.items()}

    def joint(self, count: int, precision: str) -> Pass:
        """Give one pass with the first heads, with weights of its own on the device."""
        tasks = self.tasks[:count]
        made = Pass(
            deepcopy(self.encoder),
            [deepcopy(self.heads[task]) for task in tasks],
            [self.finishes[task] for task in tasks],
        )
        return in_precision(made.eval(), precision).to(self.where)

    def single(self, task: str, precision: str) -> Pass:
        """Give the model of one task."""
        made = Pass(deepcopy(self.encoder), [deepcopy(self.heads[task])], [self.finishes[task]])
        return in_precision(made.eval(), precision).to(self.where)

    def pixels(self, batch: int) -> Tensor:
        """Give noise that is the same every time."""
        draw = torch.Generator().manual_seed(0)
        shape = (batch, *self.size, 3)
        return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8).to(self.where)


def in_precision(model: Pass, precision: str) -> Pass:
    """Bring weights to a precision; pixels become it where they meet the first layer."""
    kind = TYPES[precision]
    if kind is torch.float32:
        return model
    model.encoder.vit.to(kind)
    model.heads.to(kind)
    model.encoder.vit.patch_embed.register_forward_pre_hook(
        lambda _, given: (given[0].to(kind), *given[1:])
    )
    return model


class Runner:
    """A model that is ready to run in one of the ways, on pixels at a place of its own."""

    def __init__(self, model: Pass, pixels: Tensor, way: str, work: Path) -> None:
        self.given = pixels.clone()
        self._run: Callable[[Tensor], Any] = prepared(model, self.given, way, work)
        self.stream = torch.cuda.Stream() if pixels.is_cuda else None
        self.graph = torch.cuda.CUDAGraph() if pixels.is_cuda else None
        self.why_not: str | None = "there are no CUDA graphs on a CPU"  # None: captured
        with torch.inference_mode():
            self.out = self._run(self.given)
            if self.graph is not None:
                self.why_not = self._capture(self.graph)
            self._host = [in_host_memory(one) for one in (self.given, *self.out)]

    @property
    def captured(self) -> bool:
        """Tell whether a graph is replayed."""
        return self.why_not is None

    def _capture(self, graph: torch.cuda.CUDAGraph) -> str | None:
        """Record the model in a graph; give the reason if it cannot be."""
        before = torch.cuda.current_stream()
        assert self.stream is not None
        try:
            self.stream.wait_stream(before)
            with torch.cuda.stream(self.stream):
                for _ in range(3):
                    self._run(self.given)
            before.wait_stream(self.stream)
            with torch.cuda.graph(graph, stream=self.stream):
                self.out = self._run(self.given)
        except RuntimeError as error:
            # a capture that fails leaves its own stream behind; the graph stays, since the
            # allocator of memory goes on asking it
            torch.cuda.set_stream(before)
            torch.cuda.synchronize()
            self.out = self._run(self.given)
            return str(error)[:200]
        return None

    @torch.inference_mode()
    def __call__(self) -> list[Tensor]:
        """Run on the pixels; on a GPU the results are there when the stream is done."""
        if self.captured and self.graph is not None:
            self.graph.replay()
        else:
            self.out = self._run(self.given)
        return list(self.out)

    @torch.inference_mode()
    def with_copies(self) -> list[Tensor]:
        """Run on pixels in the host's memory, and bring the results there."""
        pixels, *results = self._host
        self.given.copy_(pixels, non_blocking=True)
        for result, one in zip(results, self(), strict=True):
            result.copy_(one, non_blocking=True)
        return results


def in_host_memory(like: Tensor) -> Tensor:
    """Give a copy in the host's memory; a GPU's is pinned, for copies that nothing waits for."""
    return like.cpu().pin_memory() if like.is_cuda else like.clone()


def prepared(model: Pass, pixels: Tensor, way: str, work: Path) -> Callable[[Tensor], Any]:
    """Make a model ready: as it is, compiled, or compiled ahead."""
    if way == "compile":
        from torch._dynamo import config

        # All models share one code object, of which PyTorch would compile 8 and leave the others as
        # they are; a step has 33 that differ. With fullgraph, what is not compiled raises.
        config.recompile_limit = 64
        mode = "max-autotune-no-cudagraphs" if pixels.is_cuda else "default"
        compiled = torch.compile(model, mode=mode, dynamic=False, fullgraph=True)
        return cast("Callable[[Tensor], Any]", compiled)
    if way == "aot":
        from torch._inductor import aoti_compile_and_package, aoti_load_package

        with torch.inference_mode():
            program = torch.export.export(model, (pixels,))
            path = aoti_compile_and_package(program, package_path=str(work / "model.pt2"))
        # made for several threads, it asks for an event in every run, which no capture allows
        loaded = aoti_load_package(path, run_single_threaded=True)
        return cast("Callable[[Tensor], Any]", loaded)
    return model
