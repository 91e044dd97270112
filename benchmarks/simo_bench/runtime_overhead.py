"""The overhead: the predictor against the calls of ONNX Runtime that it must make."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

from simo_bench.runtime_passes import graphs_of
from simo_bench.samples import rounded
from simo_bench.turns import Arms, alternating
from simo_runtime.backends.onnxruntime_graph import OpenGraph
from simo_runtime.bundle import Bundle
from simo_runtime.cpus import available_cpus
from simo_runtime.graphs import ENCODER, IMAGE, JOINT
from simo_runtime.image import Pixels
from simo_runtime.predictor import Predictor

PERCENT, MILLISECONDS = 2.0, 1.0  # the bars


def noise(bundle: Bundle) -> Pixels:
    """Give an image of the network's size; the time does not depend on what is in it."""
    shape = (*bundle.manifest.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


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
            "ms": {name: rounded(values) for name, values in samples.items()},
            "extra_ms": rounded(extras.tolist()),
            "difference_ms": rounded(differences.tolist()),
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
