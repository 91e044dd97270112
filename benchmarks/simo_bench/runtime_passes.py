"""One pass against one model a task."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from simo_bench.limits import counted, ideal
from simo_bench.samples import rounded
from simo_bench.singles import copies_of, experts_of
from simo_bench.turns import alternating
from simo_runtime.backends import load_backend
from simo_runtime.backends.onnxruntime_graph import OpenGraph, Settings, open_graph
from simo_runtime.bundle import Bundle
from simo_runtime.cpus import available_cpus
from simo_runtime.graphs import ENCODER, IMAGE

SHARE = 0.95  # the bar


def graphs_of(bundle: Bundle, threads: int) -> dict[str, OpenGraph]:
    """Open encoder, heads and, if there is one, the joint graph."""
    settings = Settings(providers=(("CPUExecutionProvider", ()),), threads=threads)
    files = bundle.manifest.graph_files("fp32").named()
    return {
        name: open_graph(bundle.root / file, bundle.content(), settings)
        for name, file in files.items()
    }


def one_pass(bundle: Bundle, rounds: int) -> dict[str, Any]:
    """Time all tasks in one pass against a model for every task, one after another.

    The ideal is T (E + H) / (E + T H), with the encoder E and the mean H of the heads timed in the
    same run. Models of single tasks are the experts' own bundles, or copies of the encoder with one
    head each; they have memory of their own and may take the faster of their two ways as well.
    """
    names = [task.name for task in bundle.manifest.tasks]
    threads = available_cpus()
    pixels = np.random.default_rng(0).integers(
        0, 256, (1, *bundle.manifest.image_size, 3), np.uint8
    )
    with tempfile.TemporaryDirectory() as folder:
        singles = experts_of(bundle, names) or copies_of(bundle, names, Path(folder), "fp32")
        backend = load_backend("onnxruntime-cpu")
        ours = backend.open(bundle, threads=threads)
        theirs = {name: backend.open(one, threads=threads) for name, one in singles.bundles.items()}
        graphs = graphs_of(bundle, threads)
        features = graphs[ENCODER].values({IMAGE: pixels})

        def per_task() -> None:
            for name, session in theirs.items():
                session.run(pixels, [name])

        arms: dict[str, Callable[[], object]] = {
            "one_pass": lambda: ours.run(pixels, names),
            "per_task": per_task,
            "encoder": lambda: graphs[ENCODER].values({IMAGE: pixels}),
        }
        for name in names:
            arms[f"head {name}"] = partial(graphs[name].arrays, features, 1)
        samples = alternating(arms, rounds)
        for session in (ours, *theirs.values()):
            session.close()
    middle = {name: float(np.median(values)) for name, values in samples.items()}
    heads = [middle[f"head {name}"] for name in names]
    best = ideal([middle["encoder"]] * len(names), heads, middle["encoder"])
    pairs = zip(samples["per_task"], samples["one_pass"], strict=True)
    ratio = rounded([one / other for one, other in pairs])
    return {
        "ms": {name: rounded(values) for name, values in samples.items()},
        "singles": singles.what,
        "ratio": ratio,
        "ideal": round(best, 4),
        "ideal_from_operations": counted_ideal(bundle),
        "share_of_ideal": round(ratio["median"] / best, 4),
        "bar": f"at least {SHARE} of the ideal",
        "met": ratio["median"] >= SHARE * best,
    }


def counted_ideal(bundle: Bundle) -> float:
    """Give T (E + H) / (E + T H) from counted operations."""
    counts = counted(bundle)
    encoder = counts.encoder.operations
    heads = [head.operations for head in counts.heads.values()]
    return round(ideal([encoder] * len(heads), heads, encoder), 4)
