"""The gate: what is measured, in what a graph fails, and which layer is to blame."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from simo_export.gate import Agreement, Limits, faults
from simo_export.graph import export_graph
from simo_export.layers import worst_layer
from simo_export.meter import Meter

LIMITS = Limits(cosine=0.9999, patch_cosine=0.99, frobenius=0.1, argmax=0.9, metric_change=0.001)


def agreement(one: object, other: object, metrics: tuple[float, float] | None = None) -> Agreement:
    meter = Meter("t")
    meter.update(np.array(one), np.array(other))
    return meter.agreement(metrics)


def test_agreement_by_hand() -> None:
    # (3, 4) and (4, 3): 24 / 25; they are sqrt 2 apart, of 5; the metric goes from 0.5 to 0.4
    found = agreement([3.0, 4.0], [4.0, 3.0], (0.5, 0.4))
    assert found.cosine == pytest.approx(0.96)
    assert found.frobenius == pytest.approx(2**0.5 / 5)
    assert found.largest_difference == 1.0
    assert found.metric_change == pytest.approx(0.2)


def test_images_one_by_one_are_as_all_at_once() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=(4, 3, 5, 5)), draw.normal(size=(4, 3, 5, 5))
    whole, parts = Meter("t", classes=True), Meter("t", classes=True)
    whole.update(one, other)
    for index in range(4):
        parts.update(one[index : index + 1], other[index : index + 1])
    for name, value in vars(whole.agreement()).items():
        assert value == pytest.approx(getattr(parts.agreement(), name)), name


def test_two_empty_maps_agree() -> None:
    assert agreement(np.zeros(3), np.zeros(3)).cosine == 1.0
    assert not list(faults(agreement(np.zeros(3), np.zeros(3)), LIMITS))


def test_the_share_of_the_same_classes_is_counted() -> None:
    meter = Meter("seg", classes=True)
    one = np.zeros((1, 2, 2, 2))
    one[:, 1, 0, 0] = 1  # class 1 at one of four pixels
    meter.update(one, np.zeros((1, 2, 2, 2)))
    assert meter.agreement().argmax == 0.75


def test_the_worst_hundredth_of_patches_is_seen_without_the_prefix() -> None:
    one = np.ones((1, 1 + 200, 2))
    other = one.copy()
    other[:, 0] = [1, -1]  # CLS does not count
    meter = Meter("tap3", tokens=True, prefix=1)
    meter.update(one, other)
    assert meter.agreement().patch_cosine == pytest.approx(1.0)
    other[:, 1:12] = [1, -1]  # 11 of the 400 patches are at right angles
    meter.update(one, other)
    assert meter.agreement().patch_cosine == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("one", "other", "metrics", "message"),
    [
        ([3.0, 4.0], [4.0, 3.0], None, "t: cosine 0.960000, at least 0.9999"),
        ([3.0, 4.0], [4.5, 6.0], None, "t: relative difference 0.500000, at most 0.1"),
        ([1.0], [1.0], (0.5, 0.501), "from 0.5 to 0.501, a change of 0.200%"),
        ([1.0], [float("nan")], None, "t: cosine nan"),
        ([1.0], [float("nan")], None, "t: there are numbers that are not finite"),
        ([1.0], [float("inf")], None, "t: there are numbers that are not finite"),
        ([1.0], [1.0], (0.5, float("nan")), "from 0.5 to nan"),
    ],
)
def test_the_gate_names_what_differs(
    one: list[float], other: list[float], metrics: tuple[float, float] | None, message: str
) -> None:
    assert any(message in fault for fault in faults(agreement(one, other, metrics), LIMITS))


def test_a_patch_or_a_class_that_changes_is_named() -> None:
    draw = {"finite": True, "cosine": 1.0, "frobenius": 0.0, "largest_difference": 0.0}
    found = Agreement(task="t", patch_cosine=0.5, argmax=0.5, **draw)  # type: ignore[arg-type]  # numbers
    told = "\n".join(faults(found, LIMITS))
    assert "cosine of the worst hundredth of patches 0.500000" in told
    assert "same classes 0.500000" in told


class Small(nn.Module):
    """Three layers on an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, pixels_BHW3: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.last(self.norm(self.first(pixels_BHW3.float())))
        return made


@pytest.fixture(scope="module")
def small() -> tuple[Small, onnx.ModelProto]:
    module = Small().eval()
    pixels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    return module, export_graph(module, [pixels], inputs=["image"], outputs=["tap1"])


@pytest.mark.parametrize("layer", ["first", "norm", "last"])
@pytest.mark.parametrize("harm", [3.0, float("nan")])
def test_the_worst_layer_is_the_one_that_was_harmed(
    small: tuple[Small, onnx.ModelProto], layer: str, harm: float
) -> None:
    module, sound = small
    model = onnx.ModelProto()
    model.CopyFrom(sound)
    tensor = next(one for one in model.graph.initializer if one.name == f"{layer}.bias")
    values = numpy_helper.to_array(tensor) + np.float32(harm)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), f"{layer}.bias"))
    pixels = np.random.default_rng(0).integers(0, 9, (1, 4, 4, 3), dtype=np.uint8)
    found = worst_layer(model, module, pixels)
    assert found is not None
    assert found.layer == layer
    assert f"the difference rises most at {layer}, from " in str(found)
