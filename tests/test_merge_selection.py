"""Exact order statistics without a sort."""

import torch

from simo_build.merge.selection import order_statistics


def test_order_statistics_are_those_of_a_full_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(3, 3000, generator=generator) * 10.0 ** torch.arange(3000).remainder(60)
    spread = spread * 1e-45 ** torch.rand(3, 3000, generator=generator)  # subnormal ones as well
    spread[:, ::7] = 0.25  # many that are equal
    spread[1, :50] = 0.0
    ranks = [0, 1, 749, 1500, 2250, 2998, 2999]
    found = order_statistics(lambda: spread.split([1, 999, 0, 2000], dim=1), lambda size: ranks)
    assert torch.equal(found, spread.sort(dim=1).values[:, ranks].T)


def test_order_statistics_know_how_many_weights_there_are() -> None:
    sizes: list[int] = []

    def ranks(size: int) -> list[int]:
        sizes.append(size)
        return [size - 1]

    parts = [torch.tensor([[1.0, -5.0]]), torch.tensor([[3.0]])]
    assert order_statistics(lambda: parts, ranks).tolist() == [[3.0]]
    assert sizes == [3]
