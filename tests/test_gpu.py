"""What must hold on an NVIDIA GPU: `pytest -m gpu`, on a machine that has one."""

from pathlib import Path

import pytest
import torch

from simo_bench import nvml
from simo_bench.gpu.float32 import exact
from simo_bench.gpu.models import TYPES, WAYS, Models, Runner
from simo_bench.gpu.passes import agreement, arms_of, cosines
from simo_bench.gpu.roofline import measure_all
from simo_runtime.backends import BACKENDS, load_backend
from simo_runtime.gpu import find_gpu

pytestmark = pytest.mark.gpu
COUNT = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Models, Models]:
    work = tmp_path_factory.mktemp("models")
    exact()
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
    assert agreement(here.tasks, found, wanted, precision)["passed"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("default")  # of compilers, and of what they call
def test_a_captured_graph_gives_what_the_model_gives(tmp_path: Path, way: str) -> None:
    exact()
    models = Models("toy", "linear", 2, tmp_path, torch.device("cuda"))
    model = models.joint(2, "fp32")
    runner = Runner(model, models.pixels(1), way, tmp_path)
    assert runner.captured, runner.why_not
    for _ in range(2):
        with torch.inference_mode():
            wanted = model(runner.given)
        found = runner()
        torch.cuda.synchronize()
        assert agreement(models.tasks, found, wanted, "fp32")["passed"]
        runner.given.zero_()  # a replay reads what lies at the same place now


def test_with_copies_the_results_lie_in_the_hosts_memory(
    models: tuple[Models, Models], tmp_path: Path
) -> None:
    _, there = models
    pixels = there.pixels(2)
    runners = [
        Runner(there.single(task, "bf16"), pixels, "eager", tmp_path) for task in there.tasks
    ]
    wanted = [one.cpu() for runner in runners for one in runner()]
    for runner in runners:
        runner.given.zero_()  # what lay there comes from the host again
    for name, arm in arms_of(runners[0], runners, Runner.with_copies).items():
        found = arm()
        torch.cuda.synchronize()
        assert {one.device.type for one in found} == {"cpu"}
        assert all(one.is_pinned() for one in found)
        assert min(cosines(found, wanted[:1] if name == "joint" else wanted)) > 0.99999


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
def test_a_gpu_backend_answers_as_the_cpu_does(name: str, request: pytest.FixtureRequest) -> None:
    import numpy as np

    from simo_bench.equality import compare
    from simo_runtime.bundle import Bundle

    backend = load_backend(name)
    if reason := backend.why_not():
        pytest.skip(f"{name}: {reason}")
    rooms_bundle: Path = request.getfixturevalue("rooms_bundle")  # it takes a while
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
