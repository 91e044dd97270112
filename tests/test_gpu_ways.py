"""What a CPU can show of the ways in which a model runs on a GPU."""

import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simo_bench.gpu import passes
from simo_bench.gpu.models import Models, Runner
from simo_bench.gpu.passes import agreement

CPU = torch.device("cpu")
compiles = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of compilers, and of what they call
    pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models("toy", "linear", 2, tmp_path_factory.mktemp("models"), CPU)


@pytest.mark.parametrize(
    ("way", "precision"),
    [
        ("eager", "fp32"),
        pytest.param("compile", "bf16", marks=compiles),
        pytest.param("aot", "bf16", marks=compiles),
    ],
)
def test_every_way_gives_what_the_model_gives(
    models: Models, tmp_path: Path, way: str, precision: str
) -> None:
    runner = Runner(models.joint(2, precision), models.pixels(2), way, tmp_path)
    assert not runner.captured
    wanted = passes.reference(models, 2, runner.given)
    assert agreement(models.tasks, runner(), wanted, precision)["passed"]
    runner.given.zero_()  # what lay there comes from the host again
    assert agreement(models.tasks, runner.with_copies(), wanted, precision)["passed"]


@pytest.mark.slow
def test_more_models_are_compiled_than_pytorch_would(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = torch.compile

    def traced(model: Any, *, mode: str, **options: Any) -> Any:
        return compiled(model, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    model = models.single("depth", "fp32")
    for batch in range(1, 11):  # each is one more for the same code, of which 8 are usual
        Runner(model, models.pixels(batch), "compile", tmp_path)


def test_a_capture_that_fails_leaves_the_stream_as_it_was(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(models.single("depth", "fp32"), models.pixels(1), "eager", tmp_path)
    wanted = runner()
    at, other = [SimpleNamespace(wait_stream=lambda _: None) for _ in range(2)]
    now = [at]

    @contextmanager
    def graph(_: Any, stream: Any) -> Any:
        now[0] = stream  # as torch.cuda.graph does, whose end raises before it goes back
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    @contextmanager
    def stream(_: Any) -> Any:
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda one: now.__setitem__(0, one))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(runner, "stream", other)
    with torch.inference_mode():
        runner.why_not = runner._capture(SimpleNamespace())  # type: ignore[arg-type]  # stand-in
    assert runner.why_not == "operation not permitted when stream is capturing"
    assert now == [at]
    assert torch.equal(runner()[0], wanted[0])
