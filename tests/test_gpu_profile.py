"""Profiles of a GPU: kinds of kernels, and what a profile says, on a CPU."""

from pathlib import Path

import pytest
import torch

from simo_bench.gpu.models import Models
from simo_bench.gpu.profile import KINDS, PRODUCTS, by_kind, one_profile

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models("toy", "linear", 2, tmp_path_factory.mktemp("models"), CPU)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x64_64x9_1x2_h_bz_coopA_bias_TNT", PRODUCTS),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16>", PRODUCTS),
        ("triton_tem_fused_addmm_gelu_t_view_3", PRODUCTS),
        ("triton_poi_fused_addmm_gelu_view_12", "fused, elementwise"),
        ("triton_per_fused_add_addmm_native_layer_norm_8", "fused, with sums"),
        ("triton_red_fused_addmm_native_layer_norm_2", "fused, with sums"),
        (
            "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<cutlass::bfloat16_t>>",
            "attention",
        ),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwc", "convolutions"),
        (
            "void at::native::vectorized_layer_norm_kernel<c10::BFloat16, float>",
            "norms and softmax",
        ),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>",
            "elementwise",
        ),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
            "copies",
        ),
        ("void at::native::reduce_kernel<512, 1, at::native::ArgMaxOps<float>>", "the rest"),
    ],
)
def test_kernels_of_a_hopper_gpu_have_their_kind(name: str, kind: str) -> None:
    assert by_kind({name: 2.0})[kind] == 2.0


def test_a_profile_says_how_busy_the_device_is_and_what_its_products_reach(
    models: Models, tmp_path: Path
) -> None:
    found = one_profile(models, 2, 1, "eager", tmp_path)
    assert set(found["shares"]) == {*KINDS, "the rest"}
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    assert found["busy"] == pytest.approx(found["microseconds"] / 1e3 / found["device_ms"])
    assert found["products"]["operations"] > 0
    assert found["products"]["share_of_peak"] > 0
    assert found["captured"] is False


def test_kernels_are_sorted_by_kind() -> None:
    found = by_kind({"sm90_gemm_bf16": 3.0, "flash_fwd": 2.0, "vectorized_add": 1.0})
    assert (found["matrix products"], found["attention"], found["the rest"]) == (3.0, 2.0, 1.0)
