"""A bundle's own model in PyTorch again, for the PyTorch arms of the benchmark."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from simo_bench.parts import part_of
from simo_bench.rebuilt import fill, rebuilt, recipes_of, weights_of
from simo_build.build import build
from simo_build.loading import load_recipe
from simo_build.progress import Silent
from simo_runtime.backends import load_backend
from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError
from tests.tiny import TASKS, write_workplace


def told_of(bundle: Bundle, **told: Any) -> Bundle:
    """Give a bundle that tells this of how it came to be, and nothing else."""
    return replace(bundle, manifest=replace(bundle.manifest, provenance=told))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose heads are a linear one and a DPT."""
    folder = tmp_path_factory.mktemp("rebuilt")
    tasks = {
        task: {"kind": task, "expert": f"{task}.safetensors", "target": {"folder": task}}
        for task in TASKS
    }
    tasks["depth"]["head"] = "dpt_small"
    encoder = {
        "model": "vit_tiny_patch16_224",
        "options": {"embed_dim": 32, "depth": 4, "num_heads": 2},
        "taps": [1, 2, 3, 4],
    }
    recipe = write_workplace(folder, tasks=tasks, encoder=encoder)
    return build(load_recipe(str(recipe)), folder / "bundle", progress=Silent())


@pytest.mark.parametrize("place", ["rooms_bundle", "tiny"])
def test_it_answers_as_the_bundle_does(place: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(place)
    bundle = made if isinstance(made, Bundle) else Bundle.open(made)
    tasks = [task.name for task in bundle.manifest.tasks]
    shape = (2, *bundle.manifest.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    wanted = load_backend("onnxruntime-cpu").open(bundle, threads=1).run(pixels, tasks)
    with torch.inference_mode():
        found = rebuilt(bundle, tasks)(torch.from_numpy(pixels))
    for task, one in zip(tasks, found, strict=True):
        if one.dtype.is_floating_point:
            np.testing.assert_allclose(one.numpy(), wanted[task], rtol=1e-3, atol=1e-4)
        else:
            assert (one.numpy() == wanted[task]).mean() > 0.999


def test_a_bundle_that_no_recipe_built_is_refused(rooms_bundle: Path, tmp_path: Path) -> None:
    whole = Bundle.open(rooms_bundle)
    own = told_of(part_of(whole, ["depth"], tmp_path / "own", "fp32"), model="encoder: ...")
    with pytest.raises(BackendError, match="built from a recipe; own tells of none for depth"):
        rebuilt(own, ["depth"])


def test_an_added_task_has_the_recipe_that_added_it(rooms_bundle: Path) -> None:
    bundle = Bundle.open(rooms_bundle)
    text = str(bundle.manifest.provenance["recipe"])
    later = text.replace("depth:", "distance:").replace("name: rooms", "name: later")
    assert later != text
    found = recipes_of(told_of(bundle, recipe=text, added=[{"recipe": later}]))
    assert {"seg", "depth", "normals", "distance"} == set(found)
    assert found["distance"].name == "later"
    assert found["seg"].name == "rooms"


def test_a_linear_layer_is_known_by_its_bias(tmp_path: Path) -> None:
    values = {
        "val_0": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fc.bias": np.ones(3, np.float32),
    }
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "val_0"], ["val_1"]),
            onnx.helper.make_node("Add", ["val_1", "fc.bias"], ["y"]),
        ],
        "linear",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 2])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    path = tmp_path / "linear.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    assert torch.equal(weights_of(path)["fc.weight"], torch.tensor([[0.0, 3], [1, 4], [2, 5]]))

    module = nn.ModuleDict({"fc": nn.Linear(2, 3)})
    fill(module, path)
    assert torch.equal(module["fc"](torch.tensor([[1.0, 2]])), torch.tensor([[7.0, 10, 13]]))
    with pytest.raises(BackendError, match=r"linear.onnx: holds no fc.weight of \(3, 4\)"):
        fill(nn.ModuleDict({"fc": nn.Linear(4, 3)}), path)
