"""What must hold on an NVIDIA GPU: `pytest -m gpu`, on a machine that has one."""

from pathlib import Path

import pytest
import torch

from simo_bench import nvml
from simo_bench.gpu.models import TYPES, Models, Runner
from simo_bench.gpu.passes import COSINE, cosines
from simo_bench.gpu.roofline import measure_all
from simo_runtime.backends import BACKENDS, load_backend
from simo_runtime.gpu import find_gpu

pytestmark = pytest.mark.gpu
COUNT = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Models, Models]:
    work = tmp_path_factory.mktemp("models")
    devices = (torch.device("cpu"), torch.device("cuda"))
    here, there = (Models("toy", "dpt_small", COUNT, work, device) for device in devices)
    return here, there


@pytest.mark.parametrize("precision", TYPES)
def test_every_precision_on_the_gpu_agrees_with_float32_on_the_cpu(
    models: tuple[Models, Models], precision: str
) -> None:
    here, there = models
    with torch.inference_mode():
        wanted = here.joint(COUNT, "fp32")(here.pixels(3))
        found = [one.cpu() for one in there.joint(COUNT, precision)(there.pixels(3))]
    assert min(cosines(found, wanted)) >= COSINE[precision]


def test_a_captured_graph_gives_what_the_model_gives(
    models: tuple[Models, Models], tmp_path: Path
) -> None:
    _, there = models
    model, pixels = there.joint(COUNT, "fp32"), there.pixels(1)
    runner = Runner(model, pixels, "eager", tmp_path)
    assert runner.graph is not None, runner.why_not
    with torch.inference_mode():
        wanted = model(pixels)
    found = runner()
    torch.cuda.synchronize()
    assert min(cosines(found, wanted)) > 0.99999
    pixels.zero_()  # a replay reads what lies at the same place now
    with torch.inference_mode():
        dark = model(pixels)
    found = runner()
    torch.cuda.synchronize()
    assert min(cosines(found, dark)) > 0.99999


def test_the_driver_and_nvml_name_the_gpu_that_pytorch_has() -> None:
    assert find_gpu().name == torch.cuda.get_device_name(0)
    found = nvml.find()
    assert found is not None
    assert found.about()["driver"]
    assert (found.state().memory_used or 0) > 0


def test_the_gpu_is_faster_than_a_cpu_could_be() -> None:
    found = measure_all(tiny=True)
    assert found["bandwidth"] > 1e10
    assert found["peaks"]["bf16"] > found["peaks"]["fp32"] / 2


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "onnxruntime-cpu"])
def test_a_gpu_backend_answers_as_the_cpu_does(name: str, rooms_bundle: Path) -> None:
    import numpy as np

    from simo_bench.equality import compare
    from simo_runtime.bundle import Bundle

    backend = load_backend(name)
    if reason := backend.why_not():
        pytest.skip(f"{name}: {reason}")
    if name == "tensorrt":  # its engines are built ahead; it never builds any itself
        from click.testing import CliRunner

        from simo_engines.cli import main as engines

        told = CliRunner().invoke(engines, [str(rooms_bundle)])
        assert told.exit_code == 0, told.output
    bundle = Bundle.open(rooms_bundle)
    tasks = [task.name for task in bundle.manifest.tasks]
    shape = (1, *bundle.manifest.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    wanted = load_backend("onnxruntime-cpu").open(bundle, joint=False).run(pixels, tasks)
    for joint in (False, True):
        found = backend.open(bundle, joint=joint).run(pixels, tasks)
        assert all(row.passed for row in compare(found, wanted, "fp16"))
