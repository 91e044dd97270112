"""A model repository for NVIDIA's Triton server, from a finished bundle.

    <name>_all/          encoder and all heads in one graph: for clients that want every task
    <name>_encoder/      the shared encoder, image -> features
    <name>_head_<task>/  one head each, features -> its task
    <name>/              an ensemble of the last two: it runs the encoder once, then only those
                         heads whose outputs a request names

Each has `config.pbtxt` and `1/model.onnx` (with its weights beside it) or `1/model.plan`. The form
is that of Triton's docs (model_repository.md, model_configuration.md, ensemble_models.md). All
models are pinned to one GPU, so that features stay on it between encoder and heads.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from simo_export.pbtxt import Name, text_of
from simo_runtime.bundle import Bundle
from simo_runtime.engines import Engine, engines_of, read_plan
from simo_runtime.errors import ExportError
from simo_runtime.gpu import find_gpu
from simo_runtime.graphs import ENCODER, JOINT
from simo_runtime.onnxfile import OnnxFile, Value, read_onnx

Form: TypeAlias = Literal["onnx", "plan"]
VERSION = "1"
TYPES = {
    "uint8": "TYPE_UINT8",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
}
BACKENDS = {"onnx": "onnxruntime", "plan": "tensorrt"}


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """How a bundle is to be served."""

    name: str = "simo"  # what the models' names start with
    precision: str = "fp32"
    form: Form = "onnx"
    gpu: int | None = 0  # the one GPU that everything runs on; None: the processor
    instances: int = 1  # of every model, on that GPU
    max_batch: int = 8
    queue_us: int = 100  # how long a request may wait for others to share its batch
    tensorrt: str | None = None  # the version of the plans; needed only where there are several
    engines: Path | None = None  # the folder of all engines; None: the user's cache

    def __post_init__(self) -> None:
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is None:
            raise ExportError(f"{self.name!r} is no name of a model: letters, digits, . _ -")
        for name in ("instances", "max_batch"):
            if getattr(self, name) < 1:
                raise ExportError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.form not in get_args(Form):
            raise ExportError(f"form is {self.form!r}; it must be onnx or plan")
        if self.form == "plan" and self.gpu is None:
            raise ExportError("plans run on a GPU: give its number, or the form onnx")


@dataclass(frozen=True)
class Model:
    """One model of the repository: its folder's name, its configuration, its files."""

    name: str
    config: Mapping[str, Any]
    files: Mapping[str, Path | bytes]  # in the folder of its version: copied, or written


def write_repository(bundle: Bundle, out: Path, options: TritonOptions) -> list[Path]:
    """Write the models of a bundle into a repository; give their folders.

    The repository may have other models; one of a name that is there already is refused. Whatever
    fails, nothing of it is left.
    """
    models = models_of(bundle, options)
    taken = [out / model.name for model in models if (out / model.name).exists()]
    if taken:
        raise ExportError(f"{taken[0]}: there is such a model already; remove it, or give --name")
    made = not out.exists()
    partial = out / f".{options.name}.{os.getpid()}.partial"
    done: list[Path] = []
    try:
        for model in models:
            _write(model, partial)
        for model in models:
            (partial / model.name).rename(out / model.name)
            done.append(out / model.name)
    except OSError:
        for folder in done:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if made and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
    return done


def _write(model: Model, folder: Path) -> None:
    version = folder / model.name / VERSION
    version.mkdir(parents=True)
    for name, content in model.files.items():
        if isinstance(content, Path):
            shutil.copyfile(content, version / name)
        else:
            (version / name).write_bytes(content)
    text = text_of(model.config)
    (folder / model.name / "config.pbtxt").write_text(text, encoding="utf-8")


def models_of(bundle: Bundle, options: TritonOptions) -> list[Model]:
    """Describe all models; nothing is written."""
    files = bundle.manifest.graph_files(options.precision).named()
    read = {name: read_onnx(bundle.root / file) for name, file in files.items()}
    single = [_single(bundle, name, graph, options) for name, graph in read.items()]
    return [*single, _ensemble(bundle, read, options)]


def model_name(graph: str, options: TritonOptions) -> str:
    """Name the model of a graph."""
    suffix = {ENCODER: "encoder", JOINT: "all"}.get(graph, f"head_{graph}")
    return f"{options.name}_{suffix}"


def _single(bundle: Bundle, name: str, graph: OnnxFile, options: TritonOptions) -> Model:
    config: dict[str, Any] = {
        "name": model_name(name, options),
        "backend": BACKENDS[options.form],
        "max_batch_size": options.max_batch,
        "input": [_tensor(value) for value in graph.inputs],
        "output": [_tensor(value) for value in graph.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": options.queue_us},
        "instance_group": [_instances(options)],
        "model_warmup": [_warmup(graph)],
    }
    if options.form == "plan":
        plan = read_plan(_engine(bundle, name, options).path)
        return Model(config["name"], config, {"model.plan": plan})
    path = bundle.graph(name, options.precision)
    weights = sorted({one.location for one in graph.external})
    files = {"model.onnx": path, **{file: bundle.root / file for file in weights}}
    return Model(config["name"], config, files)


def _ensemble(bundle: Bundle, read: Mapping[str, OnnxFile], options: TritonOptions) -> Model:
    """Fan out: the encoder once, then every head. Triton leaves out heads that nobody asked for."""
    tasks = [task.name for task in bundle.manifest.tasks]
    config = {
        "name": options.name,
        "platform": "ensemble",
        "max_batch_size": options.max_batch,
        "input": [_tensor(value) for value in read[ENCODER].inputs],
        "output": [_tensor(value) for task in tasks for value in read[task].outputs],
        "ensemble_scheduling": {
            "step": [_step(name, read[name], options) for name in (ENCODER, *tasks)]
        },
    }
    # Triton wants the folder of a version, which an ensemble has nothing to put into.
    return Model(options.name, config, {".gitkeep": b""})


def _step(name: str, graph: OnnxFile, options: TritonOptions) -> dict[str, Any]:
    """Take in and give out everything under its own name."""
    return {
        "model_name": model_name(name, options),
        "model_version": -1,
        "input_map": [{"key": one.name, "value": one.name} for one in graph.inputs],
        "output_map": [{"key": one.name, "value": one.name} for one in graph.outputs],
    }


def _tensor(value: Value) -> dict[str, Any]:
    """Describe an input or output, without the batch, which Triton adds."""
    return {"name": value.name, "data_type": _type(value), "dims": _dims(value)}


def _type(value: Value) -> Name:
    return Name(TYPES[value.element])


def _dims(value: Value) -> list[int]:
    return [int(size) for size in value.shape[1:]]


def _instances(options: TritonOptions) -> dict[str, Any]:
    if options.gpu is None:
        return {"count": options.instances, "kind": Name("KIND_CPU")}
    return {"count": options.instances, "kind": Name("KIND_GPU"), "gpus": [options.gpu]}


def _warmup(graph: OnnxFile) -> dict[str, Any]:
    """Run a batch of zeros before the first request: engines are loaded and memory is taken."""
    inputs = [
        {
            "key": one.name,
            "value": {"data_type": _type(one), "dims": _dims(one), "zero_data": True},
        }
        for one in graph.inputs
    ]
    return {"name": "zeros", "batch_size": 1, "inputs": inputs}


def _engine(bundle: Bundle, name: str, options: TritonOptions) -> Engine:
    """Find the one engine of a graph that takes every batch from 1 to the largest."""
    found = [
        engine
        for engine in engines_of(
            bundle,
            name,
            tensorrt=options.tensorrt,
            gpu=find_gpu(),
            precision=options.precision,
            root=options.engines,
        )
        if _takes(engine, options.max_batch)
    ]
    versions = sorted({str(engine.record["spec"]["tensorrt"]) for engine in found})
    if not found:
        raise ExportError(
            f"{bundle.root}: there is no {options.precision} engine of {name} on this machine for "
            f"batches from 1 to {options.max_batch}; run: simo-engines {bundle.root} "
            f"--batches 1:1:{options.max_batch}"
        )
    if len(versions) > 1:
        raise ExportError(
            f"{name}: there are engines of TensorRT {', '.join(versions)}; give --tensorrt, "
            "the version that your Triton server has"
        )
    return found[0]


def _takes(engine: Engine, largest: int) -> bool:
    batches = engine.record["spec"]["options"]["batches"]
    return bool(batches["smallest"] == 1 and batches["largest"] >= largest)
