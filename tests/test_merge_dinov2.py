"""Every merging method on the tensors of DINOv2, whose names and shapes have traps of their own."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.merge import METHODS, MergeMethod
from tests.merging import merge

WIDTH = 8
BLOCK: dict[str, tuple[int, ...]] = {
    "norm1.weight": (WIDTH,),
    "norm1.bias": (WIDTH,),
    "attn.qkv.weight": (3 * WIDTH, WIDTH),
    "attn.qkv.bias": (3 * WIDTH,),
    "attn.proj.weight": (WIDTH, WIDTH),
    "attn.proj.bias": (WIDTH,),
    "ls1.gamma": (WIDTH,),
    "norm2.weight": (WIDTH,),
    "norm2.bias": (WIDTH,),
    "ls2.gamma": (WIDTH,),
}
MLP: dict[str, tuple[int, ...]] = {
    "mlp.fc1.weight": (4 * WIDTH, WIDTH),
    "mlp.fc1.bias": (4 * WIDTH,),
    "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
    "mlp.fc2.bias": (WIDTH,),
}
SWIGLU: dict[str, tuple[int, ...]] = {
    "mlp.w12.weight": (2 * 24, WIDTH),
    "mlp.w12.bias": (2 * 24,),
    "mlp.w3.weight": (WIDTH, 24),
    "mlp.w3.bias": (WIDTH,),
}
OUTSIDE: dict[str, tuple[int, ...]] = {
    "cls_token": (1, 1, WIDTH),
    "pos_embed": (1, 1 + 9, WIDTH),
    "mask_token": (1, WIDTH),
    "patch_embed.proj.weight": (WIDTH, 3, 4, 4),
    "patch_embed.proj.bias": (WIDTH,),
    "norm.weight": (WIDTH,),
    "norm.bias": (WIDTH,),
}
# mask_token is not used in fine-tuning, and the final norm comes after the last tap.
STILL = ("mask_token", "norm.weight", "norm.bias")
# In published experts a layer scale moves a hundred times less than a matrix.
SCALES = {"ls1.gamma": 1e-4, "ls2.gamma": 1e-4}


def names(prefix: str, mlp: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    blocks = {f"{prefix}{i}.{n}": shape for i in range(3) for n, shape in (BLOCK | mlp).items()}
    return OUTSIDE | blocks


VARIANTS = {
    "plain": names("blocks.", MLP),
    "registers": names("blocks.", MLP) | {"register_tokens": (1, 4, WIDTH)},
    "swiglu": names("blocks.", SWIGLU),
    "chunks": names("blocks.0.", MLP),
}


def expert(seed: int, variant: str) -> dict[str, Tensor]:
    """A delta of one task; what fine-tuning does not touch is zero."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in VARIANTS[variant].items():
        scale = SCALES.get(".".join(name.split(".")[-2:]), 1e-2)
        made[name] = scale * torch.randn(shape, generator=generator) * (name not in STILL)
    return made


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
class TestEveryMethod:
    def merge(self, method: MergeMethod, variant: str, **params: Any) -> dict[str, Tensor]:
        deltas = [expert(seed, variant) for seed in range(3)]
        return merge(method, deltas, **params)

    def test_gives_finite_values_of_the_same_shapes(
        self, method: MergeMethod, variant: str
    ) -> None:
        merged = self.merge(method, variant)
        assert {name: tuple(t.shape) for name, t in merged.items()} == VARIANTS[variant]
        assert all(bool(tensor.isfinite().all()) for tensor in merged.values())

    def test_leaves_alone_what_no_expert_moved(self, method: MergeMethod, variant: str) -> None:
        merged = self.merge(method, variant)
        assert not any(bool(merged[name].any()) for name in STILL)

    def test_moves_every_matrix_that_experts_moved(self, method: MergeMethod, variant: str) -> None:
        merged = self.merge(method, variant)
        matrices = [name for name, s in VARIANTS[variant].items() if len(s) == 2 and min(s) > 1]
        assert matrices
        assert all(bool(merged[name].any()) for name in matrices)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "wudi", "doge"])
def test_a_token_of_one_row_is_no_matrix(name: str) -> None:
    # (1, D) would be a matrix of rank one; as none it takes the mean
    deltas = [{"mask_token": torch.full((1, 4), value)} for value in (1.0, 3.0)]
    params = {"rest": "mean"} if name in ("wudi", "doge") else {}
    if name != "doge":
        params["alpha"] = 1.0
    merged = METHODS[name](deltas, **params)["mask_token"]
    assert_close(merged, torch.full((1, 4), 2.0))


def test_trimming_over_the_whole_vector_drops_layer_scales_and_by_tensor_keeps_them() -> None:
    # they move a hundred times less than matrices, so no vector's top fifth holds one
    deltas = [expert(seed, "plain") for seed in range(3)]
    vector = METHODS["ties"](deltas, density=0.2)
    tensor = METHODS["ties"](deltas, density=0.2, trim="tensor")
    assert not vector["blocks.1.ls1.gamma"].any()
    assert tensor["blocks.1.ls1.gamma"].any()


def test_blocks_in_chunks_are_scaled_by_their_own_number() -> None:
    # alpha 1 and beta 1 over three blocks: 1, 1.5, 2 times the sum
    deltas = [expert(0, "chunks")]
    merged = METHODS["lines"](deltas, alpha=1.0, beta=1.0)
    for block, scale in enumerate((1.0, 1.5, 2.0)):
        name = f"blocks.0.{block}.attn.proj.weight"
        assert_close(merged[name], scale * deltas[0][name])
