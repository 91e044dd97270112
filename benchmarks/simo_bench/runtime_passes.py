"""One pass against one model a task, and the predictor against bare calls of ONNX Runtime."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from simo_bench.limits import counted, ideal
from simo_bench.samples import spread as spread_of
from simo_bench.singles import copies_of, experts_of
from simo_bench.turns import Arms, alternating
from simo_runtime.backends import load_backend
from simo_runtime.backends.onnxruntime_graph import OpenGraph, Settings, open_graph
from simo_runtime.bundle import Bundle
from simo_runtime.cpus import available_cpus
from simo_runtime.graphs import ENCODER, IMAGE, JOINT
from simo_runtime.image import Pixels
from simo_runtime.predictor import Predictor

SHARE, PERCENT, MILLISECONDS = 0.95, 2.0, 1.0  # the bars


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Give count, median, and the 5th and 95th percentile, to six decimals."""
    return {name: round(value, 6) for name, value in vars(spread_of(samples)).items()}


def noise(bundle: Bundle) -> Pixels:
    """Give an image of the network's size; the time does not depend on what is in it."""
    shape = (*bundle.manifest.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def graphs_of(bundle: Bundle, threads: int) -> dict[str, OpenGraph]:
    """Open encoder, heads and, if there is one, the joint graph."""
    settings = Settings(providers=(("CPUExecutionProvider", ()),), threads=threads)
    files = bundle.manifest.graph_files("fp32").named()
    return {
        name: open_graph(bundle.root / file, bundle.manifest.files[file].sha256, settings)
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
    ratio = spread([one / other for one, other in pairs])
    return {
        "ms": {name: spread(values) for name, values in samples.items()},
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


def overhead(bundle: Bundle, rounds: int) -> dict[str, Any]:
    """Time the predictor on an array of the network's size against the calls it must make.

    Bare calls are `run` of ONNX Runtime's own sessions, arrays in and arrays out, in the way that
    the predictor takes: the joint graph, or the encoder and every head. `extra_ms` is a call of the
    predictor less what of it was spent in ONNX Runtime; the difference to the bare calls, which
    are other runs of a network that takes hundreds of times as long, stands beside it.
    """
    threads = available_cpus()
    photo = noise(bundle)
    graphs = graphs_of(bundle, threads)
    found: dict[str, Any] = {}
    for way, joint in (("split", False), ("joint", True)):
        if joint and JOINT not in graphs:
            continue
        with Predictor.open(bundle, threads=threads, joint=joint) as predict:
            inside: list[float] = []
            arms: Arms = {
                "predictor": partial(noting, inside, partial(predict, photo, colours="RGB")),
                "bare": (lambda: bare_joint(graphs, photo))
                if joint
                else lambda: bare(graphs, photo),
            }
            samples = alternating(arms, rounds)
        extras = np.subtract(samples["predictor"], inside[-rounds:])
        differences = np.subtract(samples["predictor"], samples["bare"])
        extra, whole = float(np.median(extras)), float(np.median(samples["bare"]))
        found[way] = {
            "ms": {name: spread(values) for name, values in samples.items()},
            "extra_ms": spread(extras.tolist()),
            "difference_ms": spread(differences.tolist()),
            "extra_percent": round(100 * extra / whole, 3),
            "bar": f"under {PERCENT} % of a large network's time, and under {MILLISECONDS} ms",
            "met": extra < MILLISECONDS and (whole < 50 or 100 * extra / whole < PERCENT),
        }
    return found


def noting(inside: list[float], call: Callable[[], object]) -> None:
    """Make a call, and note how many milliseconds of it are runs of ONNX Runtime."""
    spent: list[float] = []
    run = OpenGraph._run

    def timed(graph: OpenGraph, binding: Any) -> None:
        start = time.perf_counter_ns()
        run(graph, binding)
        spent.append((time.perf_counter_ns() - start) / 1e6)

    with patch.object(OpenGraph, "_run", timed):
        call()
    inside.append(sum(spent))


def bare(graphs: Mapping[str, OpenGraph], photo: Any) -> None:
    """Run encoder and heads as anybody would with ONNX Runtime alone."""
    encoder = graphs[ENCODER].session
    names = [output.name for output in encoder.get_outputs()]
    features = dict(zip(names, encoder.run(names, {IMAGE: photo[None]}), strict=True))
    for name, graph in graphs.items():
        if name not in (ENCODER, JOINT):
            graph.session.run([name], {one: features[one] for one in graph.inputs})


def bare_joint(graphs: Mapping[str, OpenGraph], photo: Any) -> None:
    """Run the joint graph as anybody would with ONNX Runtime alone."""
    graphs[JOINT].session.run(None, {IMAGE: photo[None]})
