"""Splits that a seed makes."""

from collections.abc import Sequence

import torch


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """Shuffle names as torch.utils.data.random_split does with a generator of that seed."""
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return [names[place] for place in order]


def parted(names: Sequence[str], shares: Sequence[float], seed: int) -> list[list[str]]:
    """Shuffle names and cut them into parts by their shares, each in its old order."""
    place = {name: index for index, name in enumerate(names)}
    mixed, parts, sofar = shuffled(names, seed), [], 0.0
    for share in shares:
        start, sofar = round(sofar * len(names)), sofar + share
        parts.append(sorted(mixed[start : round(sofar * len(names))], key=place.__getitem__))
    return parts
