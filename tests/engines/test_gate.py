"""The gate of an engine, with a stand-in for TensorRT that runs graphs in ONNX Runtime."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from simo_engines.gate import LIMITS, agreement, pixels_for
from simo_engines.layers import read_layers
from simo_export.gate import faults
from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError
from tests.engines.workplace import Workplace
from tests.tensorrt_stand_in import LAYERS, Driver


class TestTheGate:
    @pytest.mark.parametrize("name", ["encoder", "depth"])
    def test_an_engine_runs_on_the_gpu_before_it_is_kept(
        self, place: Workplace, driver: Driver, name: str
    ) -> None:
        found = place.find(name)
        gate = found.record["gate"]
        assert gate["images"] == 4
        output = {"encoder": "tap0", "depth": "depth"}[name]
        assert set(gate["found"]) == {f"{output}, batch {batch}" for batch in (1, 4, 8)}
        assert all(near["frobenius"] < 1e-6 for near in gate["found"].values())
        assert driver.held == {}  # the memory was given back

    @pytest.mark.parametrize(
        ("spoil", "fault"),
        [
            (lambda array: array * 0, "cosine"),
            (lambda array: array * np.nan, "not finite"),
            (lambda array: array * 1.01, "relative difference"),
            (lambda array: np.where(np.arange(32) == 3, -array, array), "cosine"),
        ],
        ids=["zeros", "nan", "scaled", "a row turned over"],
    )
    def test_an_engine_that_gives_something_else_is_not_kept(
        self, place: Workplace, spoil: Any, fault: str
    ) -> None:
        place.answers.spoil = spoil
        with pytest.raises(BackendError, match="gives other answers on this GPU") as caught:
            place.find()
        assert fault in str(caught.value)
        assert place.files() == {".lock", ".cache"}

    def test_an_fp16_graph_that_became_a_float32_engine_is_refused(self) -> None:
        from simo_engines.gate import check_layers

        layers = read_layers(json.dumps(LAYERS))
        check_layers(layers, "encoder", "fp32")
        check_layers(layers, "depth", "fp16")  # a head of one layer may be float32
        with pytest.raises(BackendError, match="no layer that uses fp16"):
            check_layers(layers, "encoder", "fp16")

    def test_of_classes_it_counts_which_are_the_same(self) -> None:
        trusted = np.zeros((1, 10, 10), np.uint8)
        made = trusted.copy()
        made[0, 0, :2] = 200
        found = agreement("seg", trusted, made, tokens=False)
        assert found.argmax == 0.98
        assert list(faults(found, LIMITS["int8"])) == []
        assert list(faults(found, LIMITS["fp32"])) == [
            "seg: same classes 0.980000, at least 0.999 is needed"
        ]

    def test_photos_can_be_given(self, made: Bundle, tmp_path: Path) -> None:
        cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 96, 3), 7, np.uint8))
        assert pixels_for(made, [tmp_path / "a.png"]).shape == (1, 32, 32, 3)
        assert pixels_for(made, []).shape == (5, 32, 32, 3)
