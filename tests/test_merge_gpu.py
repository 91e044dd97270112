"""Merging on a GPU gives what the CPU gives: `pytest -m gpu`, on a machine that has one."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.learned import LEARNED
from simo_build.merge import METHODS, MergeMethod, Moved
from tests.merging import EVIDENCE, PARAMS, SHAPES, delta, merge

# A GPU may multiply by 1 / x instead of dividing by x, and its exp and tanh round otherwise.
ROUNDED = {"average", "awd", "dare", "dare_ties", "della", "pcb"}


def test_only_methods_of_matrices_are_worth_a_gpu() -> None:
    # the others read and write more than they compute
    heavy = {name for name, method in METHODS.items() if method.heavy}
    assert heavy >= {"tsv_m", "iso_c", "iso_cts", "wudi", "doge"}
    assert not heavy & {"task_arithmetic", "average", "ties", "dare", "awd", "lines"}


def test_a_moved_delta_has_the_names_and_values_of_the_delta() -> None:
    given = delta(0)
    moved = Moved(given, torch.device("cpu"))
    assert list(moved) == list(given)
    assert len(moved) == len(given)
    assert all(torch.equal(moved[name], tensor) for name, tensor in given.items())


def test_a_moved_delta_moves_a_tensor_when_it_is_read() -> None:
    moved = Moved(delta(0), torch.device("meta"))
    assert moved["pos_embed"].device.type == "meta"
    assert moved["pos_embed"].shape == SHAPES["pos_embed"]


def both(method: MergeMethod) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Merge three deltas on the CPU and on the GPU."""
    deltas, gpu = [delta(seed) for seed in range(3)], torch.device("cuda")
    evidence = [EVIDENCE[method.needs](one) for one in deltas] if method.needs else None
    moved = evidence and [Moved(one, gpu) for one in evidence]
    there = method([Moved(one, gpu) for one in deltas], moved, **PARAMS.get(method.name, {}))
    assert {tensor.device.type for tensor in there.values()} == {"cuda"}
    return merge(method, deltas), {name: tensor.cpu() for name, tensor in there.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.heavy])
def test_a_method_of_single_weights_is_the_same_on_a_gpu(name: str) -> None:
    here, there = both(METHODS[name])
    tolerance = 1e-5 if name in ROUNDED else 0.0
    for tensor_name, tensor in here.items():
        assert_close(there[tensor_name], tensor, rtol=tolerance, atol=tolerance * 0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.heavy])
def test_a_method_of_matrices_is_the_same_on_a_gpu_to_rounding(name: str) -> None:
    here, there = both(METHODS[name])
    for tensor_name, tensor in here.items():
        error = float((there[tensor_name] - tensor).norm())
        assert error <= 1e-5 * float(tensor.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("name", LEARNED)
def test_a_mixture_is_the_same_on_a_gpu_to_rounding(name: str) -> None:
    deltas = [delta(0), delta(1)]
    there = [{n: tensor.cuda() for n, tensor in one.items()} for one in deltas]
    mixtures = LEARNED[name].mixture(deltas), LEARNED[name].mixture(there).cuda()
    merged = [mixture() for mixture in mixtures]
    for tensor_name, tensor in merged[0].items():
        assert merged[1][tensor_name].device.type == "cuda"
        assert_close(merged[1][tensor_name].cpu(), tensor, rtol=1e-5, atol=1e-6)
