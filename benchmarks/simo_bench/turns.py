"""Arms that take turns: what slows the machine down for a while slows all of them."""

import random
import time
from collections.abc import Callable, Mapping

WARM_UP = 3  # runs of every arm
Arms = Mapping[str, Callable[[], object]]


def alternating(
    arms: Arms, rounds: int, say: Callable[[str], None] = lambda line: None
) -> dict[str, list[float]]:
    """Time every arm once a round, in an order drawn anew; milliseconds."""
    for arm in arms.values():
        for _ in range(WARM_UP):
            arm()
    samples: dict[str, list[float]] = {name: [] for name in arms}
    draw = random.Random(0)
    for number in range(1, rounds + 1):
        say(f"round {number}/{rounds}")
        for name in draw.sample(list(arms), len(arms)):
            start = time.perf_counter_ns()
            arms[name]()
            samples[name].append((time.perf_counter_ns() - start) / 1e6)
    return samples
