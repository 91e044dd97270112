"""A Triton repository: its configurations in Triton's own schema, its wiring in ONNX Runtime.

No server runs here. `ModelConfig` is the schema that the server itself parses with; the ensemble's
steps are walked as the server walks them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from onnx import TensorProto
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from simo_build.own.cli import export_command
from simo_export.pbtxt import Name, text_of
from simo_export.triton import TritonOptions, write_repository
from simo_runtime.bundle import Bundle
from simo_runtime.engines import EngineOptions, described, engine_path, engine_spec, record_path
from simo_runtime.errors import ExportError, UnknownNameError
from tests.graphs import write_bundle
from tests.tensorrt_stand_in import GPU

TASKS = ("seg", "depth", "normals")
ELEMENTS = {
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.FLOAT16: "TYPE_FP16",
}
Arrays = Mapping[str, Any]


@pytest.fixture(scope="module")
def repository(rooms_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "repository"
    done = write_repository(Bundle.open(rooms_bundle), out, TritonOptions(max_batch=4))
    assert sorted(done) == sorted(out.iterdir())
    return out


def config_of(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def configs(repository: Path) -> dict[str, Any]:
    return {folder.name: config_of(folder) for folder in repository.iterdir()}


def test_there_is_a_model_for_every_graph_and_the_ensemble(repository: Path) -> None:
    heads = {f"simo_head_{task}" for task in TASKS}
    assert set(configs(repository)) == {"simo", "simo_all", "simo_encoder", *heads}


def test_every_configuration_says_what_its_graph_is(repository: Path) -> None:
    names = ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    for folder in repository.iterdir():
        config = config_of(folder)
        assert config.name == folder.name
        assert config.max_batch_size == 4
        if folder.name == "simo":
            continue
        assert config.backend == "onnxruntime"
        graph = onnx.load(folder / "1" / "model.onnx", load_external_data=False).graph
        for said, there in ((config.input, graph.input), (config.output, graph.output)):
            assert [one.name for one in said] == [one.name for one in there]
            for one, other in zip(said, there, strict=True):
                kind = other.type.tensor_type
                assert names[one.data_type].name == ELEMENTS[kind.elem_type]
                first, *rest = kind.shape.dim
                assert first.dim_param  # the batch, which Triton adds itself
                assert list(one.dims) == [size.dim_value for size in rest]


def test_models_batch_warm_up_and_are_pinned_to_one_gpu(repository: Path) -> None:
    for name, config in configs(repository).items():
        if name == "simo":
            assert not config.instance_group  # an ensemble has none
            assert config.WhichOneof("scheduling_choice") == "ensemble_scheduling"
            continue
        assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
        assert config.dynamic_batching.max_queue_delay_microseconds == 100
        (group,) = config.instance_group
        assert (group.count, group.kind, list(group.gpus)) == (1, ModelInstanceGroup.KIND_GPU, [0])
        (warmup,) = config.model_warmup
        assert set(warmup.inputs) == {one.name for one in config.input}


class Server:
    """Runs the ensemble as Triton does: a step once its inputs are there, if it is needed."""

    def __init__(self, repository: Path) -> None:
        self.repository, self.ran = repository, list[str]()
        self.steps = list(config_of(repository / "simo").ensemble_scheduling.step)

    def infer(self, inputs: Arrays, outputs: Iterable[str]) -> dict[str, Any]:
        wanted, tensors = set(outputs), dict(inputs)
        needed = []
        for step in reversed(self.steps):  # who makes what is wanted, and what that needs
            if wanted & set(step.output_map.values()):
                needed.append(step)
                wanted |= set(step.input_map.values())
        waiting = list(reversed(needed))
        while waiting:
            ready = [one for one in waiting if set(one.input_map.values()) <= set(tensors)]
            assert ready, "no step has its inputs"
            for step in ready:
                waiting.remove(step)
                given = {key: tensors[value] for key, value in step.input_map.items()}
                made = self.model(step.model_name, given)
                tensors |= {step.output_map[key]: made[key] for key in step.output_map}
        return {name: tensors[name] for name in outputs}

    def model(self, name: str, inputs: Arrays) -> dict[str, Any]:
        self.ran.append(name)
        config = config_of(self.repository / name)
        assert set(inputs) == {one.name for one in config.input}
        path = self.repository / name / "1" / "model.onnx"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [one.name for one in config.output]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (2, 120, 160, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(rooms_bundle: Path, images: Any) -> dict[str, Any]:
    from simo_runtime import backends

    bundle = Bundle.open(rooms_bundle)
    images = resized(images, bundle)
    session = backends.choose("onnxruntime-cpu").open(bundle, threads=1, joint=False)
    return {"image": images, **session.run(images, TASKS)}


def resized(images: Any, bundle: Bundle) -> Any:
    high, wide = bundle.manifest.image_size
    return np.ascontiguousarray(np.resize(images, (len(images), high, wide, 3)))


def test_the_ensemble_gives_the_bundles_answers(repository: Path, expected: Any) -> None:
    server = Server(repository)
    found = server.infer({"image": expected["image"]}, TASKS)
    for task in TASKS:
        np.testing.assert_allclose(found[task], expected[task], rtol=1e-5, atol=1e-5)
    assert sorted(server.ran) == sorted(["simo_encoder", *(f"simo_head_{t}" for t in TASKS)])


def test_a_request_for_one_task_runs_the_encoder_and_one_head(
    repository: Path, expected: Any
) -> None:
    server = Server(repository)
    found = server.infer({"image": expected["image"][:1]}, ["depth"])
    assert server.ran == ["simo_encoder", "simo_head_depth"]
    np.testing.assert_allclose(found["depth"], expected["depth"][:1], rtol=1e-5, atol=1e-5)


def test_the_ensembles_sides_are_those_of_its_steps(repository: Path) -> None:
    every = configs(repository)
    ensemble = every["simo"]
    sides = {one.name: one for model in every.values() for one in (*model.input, *model.output)}
    made = {v for step in ensemble.ensemble_scheduling.step for v in step.output_map.values()}
    assert [one.name for one in ensemble.input] == ["image"]
    assert {one.name for one in ensemble.output} == set(TASKS) <= made
    for one in (*ensemble.input, *ensemble.output):
        assert (one.data_type, list(one.dims)) == (
            sides[one.name].data_type,
            list(sides[one.name].dims),
        )


def test_the_joint_model_gives_all_tasks(repository: Path, expected: Any) -> None:
    found = Server(repository).model("simo_all", {"image": expected["image"]})
    for task in TASKS:
        np.testing.assert_allclose(found[task], expected[task], rtol=1e-5, atol=1e-5)


# Options and mistakes, on the smallest bundle.


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("small") / "bundle")


def test_a_repository_for_the_processor_has_no_gpu(small: Bundle, tmp_path: Path) -> None:
    write_repository(small, tmp_path, TritonOptions(gpu=None, instances=2, name="tiny"))
    (group,) = config_of(tmp_path / "tiny_encoder").instance_group
    assert (group.count, group.kind, list(group.gpus)) == (2, ModelInstanceGroup.KIND_CPU, [])
    assert {path.name for path in (tmp_path / "tiny_encoder" / "1").iterdir()} == {
        "model.onnx",
        "encoder.bin",
    }


def test_other_models_stay_and_one_of_the_same_name_is_refused(
    small: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    write_repository(small, tmp_path, TritonOptions())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ExportError, match=r"simo_encoder: there is such a model already"):
        write_repository(small, tmp_path, TritonOptions())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    write_repository(small, tmp_path, TritonOptions(name="other"))
    assert (tmp_path / "theirs").is_dir()


def test_a_full_disk_leaves_nothing(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simo_export.triton.shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        write_repository(small, tmp_path / "out", TritonOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"name": "a/b"}, "is no name of a model"),
        ({"instances": 0}, "instances is 0"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"form": "onx"}, "form is 'onx'"),
        ({"form": "plan", "gpu": None}, "plans run on a GPU"),
    ],
)
def test_options_that_cannot_be_are_refused(given: Any, fault: str) -> None:
    with pytest.raises(ExportError, match=fault):
        TritonOptions(**given)


def test_a_precision_that_the_bundle_lacks_is_refused(small: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown precision 'int4'"):
        write_repository(small, tmp_path, TritonOptions(precision="int4"))


# Plans.


@pytest.fixture
def engines(small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that puts an engine of a version into a cache, and the cache."""
    import hashlib
    import json

    root = tmp_path / "engines"
    monkeypatch.setattr("simo_export.triton.find_gpu", lambda: GPU)

    def add(version: str, options: EngineOptions) -> None:
        for name in ("encoder", "depth"):
            spec = engine_spec(small, name, tensorrt=version, gpu=GPU, options=options)
            path = engine_path(spec, root=root)
            path.write_bytes(name.encode())
            path.chmod(0o600)
            digest = hashlib.sha256(name.encode()).hexdigest()
            record = {"spec": described(spec), "plan": {"sha256": digest}}
            record_path(path).write_text(json.dumps(record))

    return root, add


def test_plans_are_taken_from_this_machines_engines(
    small: Bundle, tmp_path: Path, engines: Any
) -> None:
    root, add = engines
    options = TritonOptions(form="plan", engines=root)
    with pytest.raises(ExportError, match=r"no fp32 engine of encoder.*run: simo-engines"):
        write_repository(small, tmp_path / "none", options)
    add("10.16.1.11", EngineOptions())
    with pytest.raises(ExportError, match=r"for batches from 1 to 16"):
        write_repository(small, tmp_path / "none", replace(options, max_batch=16))
    write_repository(small, tmp_path / "out", options)
    assert config_of(tmp_path / "out" / "simo_encoder").backend == "tensorrt"
    assert (tmp_path / "out" / "simo_encoder" / "1" / "model.plan").read_bytes() == b"encoder"
    add("11.4.0.106", EngineOptions())
    with pytest.raises(
        ExportError, match=r"TensorRT 10\.16\.1\.11, 11\.4\.0\.106; give --tensorrt"
    ):
        write_repository(small, tmp_path / "none", options)
    write_repository(small, tmp_path / "new", replace(options, tensorrt="11.4.0.106"))
    assert not (tmp_path / "none").exists()


# The text form, and the command.


def test_text_is_what_protobuf_reads() -> None:
    message = {
        "name": 'a "name" with \\ and ü',
        "max_batch_size": 3,
        "input": [{"name": "x", "data_type": Name("TYPE_UINT8"), "dims": [1, -1]}, {"name": "y"}],
        "backend": None,
    }
    config = text_format.Parse(text_of(message), ModelConfig())
    assert config.name == message["name"]
    assert [one.name for one in config.input] == ["x", "y"]
    assert list(config.input[0].dims) == [1, -1]
    assert not config.backend
    with pytest.raises(TypeError, match="float has no text form here"):
        text_of({"a": 1.5})


def test_the_command_writes_a_repository_and_prints_its_models(
    small: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "repository"
    arguments = ["--triton", str(out), str(small.root), "--cpu", "--max-batch", "2"]
    found = CliRunner().invoke(export_command, arguments)
    assert found.exit_code == 0, found.output
    assert sorted(found.stdout.split()) == sorted(str(path) for path in out.iterdir())
    assert config_of(out / "simo").max_batch_size == 2
    again = CliRunner().invoke(export_command, arguments)
    assert again.exit_code == 1
    assert "there is such a model already" in again.stderr
