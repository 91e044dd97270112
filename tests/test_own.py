"""simo-export of a user's own encoder and heads: tiny models, the gate, what is refused."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from simo_build.checkpoints import write_tensors
from simo_build.encoder import Encoder, randomise
from simo_build.heads import make_head
from simo_build.own.cli import export_command
from simo_build.own.export import export_own
from simo_build.own.modelfile import ModelFile, as_recipe
from simo_build.progress import Silent
from simo_build.train import feature_shape
from simo_runtime.bundle import Bundle
from simo_runtime.errors import CheckpointError, ExportError, RecipeError, SimoError
from simo_runtime.onnxfile import read_onnx
from simo_runtime.predictor import Predictor

SIZE = (32, 48)
LABELS = ["road", "car", "sky"]
TIMM = {
    "model": "vit_tiny_patch16_224",
    "options": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "taps": [1, 2],
    "weights": "encoder.safetensors",
}
MODULES = """
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 8, 16, stride=16)
        self.norm = nn.LayerNorm(8)

    def forward(self, pixels):
        maps = self.patch(pixels.float().permute(0, 3, 1, 2) / 255)
        return self.norm(maps.flatten(2).transpose(1, 2))


class Seg(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(1)
        self.project = nn.Linear(8, channels)

    def forward(self, tokens):
        maps = self.project(tokens).transpose(1, 2).unflatten(-1, (2, 3))
        return nn.functional.interpolate(maps, scale_factor=16, mode="bilinear")


class Wild(Encoder):
    def forward(self, pixels):
        return super().forward(pixels) * float("inf")


class Flat(Encoder):
    def forward(self, pixels):
        return super().forward(pixels).mean(1)


def wild(): return Wild()
def flat(): return Flat()
def encoder(): return Encoder()
def seg(): return Seg()
def narrow(): return Seg(2)
def text(): return "text"
"""


HEAD = """
from torch import nn


class Depth(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(32, 1)

    def forward(self, first, second):
        maps = self.project(second[:, 1:]).transpose(1, 2).unflatten(-1, (2, 3))
        return nn.functional.interpolate(maps, scale_factor=16, mode="bilinear")


def depth(): return Depth()
"""


def write(folder: Path, **content: Any) -> Path:
    """Write a model file, and the modules beside it."""
    (folder / "ownmodules.py").write_text(MODULES)
    path = folder / "mine.yaml"
    whole = {"name": "mine", "image": {"size": list(SIZE)}, **content}
    path.write_text(yaml.safe_dump(whole))
    return path


def modules(**changes: Any) -> dict[str, Any]:
    seg = {"kind": "segmentation", "labels": LABELS, "python": "ownmodules:seg"}
    return {"encoder": {"python": "ownmodules:encoder"}, "tasks": {"seg": seg}, **changes}


def write_weights(folder: Path) -> dict[str, Any]:
    """Write weights of timm's encoder and two of our heads; give what a file says of them."""
    seg = {"kind": "segmentation", "labels": LABELS, "weights": "seg.safetensors"}
    depth = {"kind": "depth", "weights": "depth.safetensors"}
    content: dict[str, Any] = {"encoder": TIMM, "tasks": {"seg": seg, "depth": depth}}
    whole = {"name": "mine", "image": {"size": list(SIZE)}, **content}
    recipe = as_recipe(ModelFile.model_validate(whole), (1, 2), shown="mine.yaml")
    encoder = Encoder(recipe.encoder, recipe.image)
    randomise(encoder, 0)
    write_tensors(folder / "encoder.safetensors", encoder.weights(), {})
    for seed, (task, spec) in enumerate(recipe.specs().items()):
        head = make_head("linear", spec, feature_shape(encoder), seed=seed)
        write_tensors(folder / f"{task}.safetensors", head.state_dict(), {})
    return content


def export(path: Path) -> Bundle:
    return export_own(path, path.parent / "bundle", data=None, progress=Silent())


@pytest.fixture(scope="module")
def timm_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An encoder of timm with a head of ours and one of the user's, gated on photos."""
    folder = tmp_path_factory.mktemp("timm")
    (folder / "photos").mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / "photos" / f"{number}.png"), np.full((50, 70, 3), 9, np.uint8))
    content = write_weights(folder)
    content["tasks"]["depth"] = {"kind": "depth", "python": "headofmine:depth"}
    (folder / "headofmine.py").write_text(HEAD)
    return export(write(folder, **content, images="photos"))


def test_a_timm_encoder_and_heads_of_both_kinds_become_a_gated_bundle(timm_bundle: Bundle) -> None:
    manifest = timm_bundle.manifest
    assert manifest.features == ("tap1", "tap2")
    gate = manifest.provenance["gate"]
    assert {row["task"] for row in gate["found"]} == {"seg", "depth"}
    assert gate["images"] == 3
    assert not manifest.random_weights
    assert not (timm_bundle.root / "report.md").exists()
    with Predictor.open(timm_bundle, threads=1) as predict:
        scene = predict(np.zeros((40, 60, 3), np.uint8), colours="RGB")
    assert scene["seg"].values.shape == scene["depth"].values.shape == (40, 60)
    assert scene["seg"].labels == tuple(LABELS)


def test_the_encoder_is_folded_as_in_every_build(timm_bundle: Bundle) -> None:
    operators = {name for _, name in read_onnx(timm_bundle.graph("encoder")).operators}
    assert {"Conv", "LayerNormalization"} <= operators
    assert not {"Sub", "Div", "Mul", "Resize"} & operators  # no mean, no std, no grid to resample


def test_ones_own_modules_give_what_pytorch_gives(tmp_path: Path) -> None:
    path = write(tmp_path, **modules())
    found = CliRunner().invoke(export_command, [str(path), "-o", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    assert found.stdout.strip() == str(tmp_path / "out")
    space: dict[str, Any] = {}
    exec(MODULES, space)
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    with torch.inference_mode():
        raw = space["seg"]().eval()(space["encoder"]().eval()(torch.from_numpy(pixels)[None]))
    expected = raw.argmax(1)[0].numpy()
    with Predictor.open(tmp_path / "out", threads=1) as predict:
        values = predict(pixels, colours="RGB")["seg"].values
        assert predict.bundle.manifest.features == ("tap1",)
    assert (values == expected).mean() > 0.99


SEG = {"kind": "segmentation", "labels": LABELS}


@pytest.mark.parametrize(
    ("content", "kind", "fault"),
    [
        (modules(encoder={"python": "ownmodules:none"}), RecipeError, "ownmodules has no none"),
        (modules(encoder={"python": "nomodule:none"}), RecipeError, "no module nomodule"),
        (modules(encoder={"python": "ownmodules:text"}), RecipeError, "gives a str, not a torch"),
        (modules(encoder={"python": "ownmodules"}), RecipeError, "encoder.python: "),
        (modules(encoder={"python": "ownmodules:flat"}), ExportError, r"\(2, tokens, width\)"),
        (modules(encoder={"python": "ownmodules:wild"}), ExportError, "not finite"),
        (
            modules(encoder={"python": "ownmodules:encoder", "norm": True}),
            RecipeError,
            "`norm` has no effect",
        ),
        (modules(encoder={}), RecipeError, "give `model` and `weights`"),
        (modules(encoder={"model": "vit_tiny_patch16_224"}), RecipeError, "`weights` is missing"),
        (modules(tasks={"seg": SEG}), RecipeError, "give `weights` for one of our heads"),
        (
            modules(tasks={"seg": {**SEG, "weights": "x"}}),
            RecipeError,
            "our heads need an encoder of timm",
        ),
        (
            modules(tasks={"seg": {**SEG, "python": "ownmodules:narrow"}}),
            ExportError,
            r"tasks\.seg: the head's output for two images is float32 \(2, 2, 32, 48\)",
        ),
        (modules(images="nowhere"), RecipeError, "there is no photo"),
        (modules(tasks={"image": {**SEG, "python": "ownmodules:seg"}}), RecipeError, "reserved"),
        (modules(taskz={}), RecipeError, "unknown key; did you mean 'tasks'"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    tmp_path: Path, content: dict[str, Any], kind: type[SimoError], fault: str
) -> None:
    path = write(tmp_path, **content)
    with pytest.raises(kind, match=fault):
        export(path)
    assert not (tmp_path / "bundle").exists()


def test_weights_that_do_not_fit_a_head_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path, **write_weights(tmp_path))
    write_tensors(tmp_path / "seg.safetensors", {"project.bias": torch.zeros(2)}, {})
    with pytest.raises(CheckpointError, match=r"seg\.safetensors: \d+ tensors do not fit a linear"):
        export(path)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--cpu"], "--cpu has an effect only with --triton"),
        (["--triton", "x", "-o", "y"], "--out has an effect only without --triton"),
        (["--triton", "x", "--cpu", "--gpu", "1"], "give --gpu or --cpu, not both"),
    ],
)
def test_an_option_without_an_effect_is_refused(
    tmp_path: Path, options: list[str], fault: str
) -> None:
    found = CliRunner().invoke(export_command, [str(tmp_path), *options])
    assert found.exit_code == 1
    assert fault in found.stderr
