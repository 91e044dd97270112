"""Rooflines and ideal ratios by hand; devices."""

from pathlib import Path

import pytest

from simo_bench.counting import Count, Layer
from simo_bench.devices import TABLE, Device, device_named, measured
from simo_bench.limits import (
    Counted,
    bound_ms,
    counted,
    ideal,
    layer_ms,
    limits,
    limits_table,
    roofline_ms,
)
from simo_runtime.bundle import Bundle
from simo_runtime.errors import UnknownNameError

# 100 operations and 10 bytes a second
DEVICE = Device(name="slow", peaks={32: 100.0, 16: 200.0}, bandwidth=10.0, source="by hand")


def layer(operations: int, moved: int, bits: int = 32) -> Layer:
    return Layer(
        name="y", operator="MatMul", operations=operations, bytes=moved, weights=0, product=True,
        bits=bits,
    )  # fmt: skip


def graph(*layers: Layer, weights: int = 0, given: int = 0) -> Count:
    return Count(layers=layers, weights=weights, given=given)


def test_a_layer_takes_the_longer_of_its_two_times() -> None:
    assert layer_ms(layer(300, 10), DEVICE) == 3000.0  # 3 s of work, 1 s of bytes
    assert layer_ms(layer(100, 50), DEVICE) == 5000.0  # 1 s of work, 5 s of bytes
    assert layer_ms(layer(300, 10, bits=16), DEVICE) == 1500.0


def test_a_graph_takes_its_layers_in_turn_and_its_bound_hides_one_in_the_other() -> None:
    both = graph(layer(300, 10), layer(100, 50), weights=20, given=5)
    assert roofline_ms(both, DEVICE) == 8000.0
    assert bound_ms(both, DEVICE) == 4000.0  # 4 s of work against 2.5 s of bytes
    assert bound_ms(graph(layer(100, 50), weights=80, given=20), DEVICE) == 10_000.0


def test_a_peak_that_is_not_known_is_that_of_wider_numbers() -> None:
    assert DEVICE.peak(8) == 200.0
    assert DEVICE.peak(16) == 200.0
    assert DEVICE.peak(32) == 100.0
    assert DEVICE.peak(64) == 100.0


@pytest.mark.parametrize(("head", "wanted"), [(0.0, 3.0), (2.0, 36 / 16), (1e9, 1.0)])
def test_the_ideal_ratio_by_hand(head: float, wanted: float) -> None:
    # T (E + H) / (E + T H), E = 10, T = 3
    assert ideal([10.0] * 3, [head] * 3, 10.0) == pytest.approx(wanted)


def test_the_ideal_ratio_of_unequal_heads_by_hand() -> None:
    # (10 + 1) + (10 + 4) over 10 + 1 + 4
    assert ideal([10.0, 10.0], [1.0, 4.0], 10.0) == pytest.approx(25 / 15)


def test_limits_put_experts_over_the_shared_model() -> None:
    encoder, head = graph(layer(800, 0), weights=40), graph(layer(200, 0), weights=10)
    shared = Counted(encoder, {"a": head, "b": head})
    singles = {"a": Counted(encoder, {"a": head}), "b": Counted(encoder, {"b": head})}
    found = limits(shared, singles, ["a", "b"], DEVICE)["ideal"]
    # time: 2 (8 + 2) / (8 + 4); memory: 2 (40 + 10) / (40 + 20)
    assert found["operations"] == pytest.approx(20 / 12)
    assert found["roofline"] == pytest.approx(20 / 12)
    assert found["memory"] == pytest.approx(100 / 60)


def test_the_table_names_the_layers_that_take_longest(rooms_bundle: Path) -> None:
    counts = counted(Bundle.open(rooms_bundle))
    told = limits_table(counts, device_named("h100", threads=1), layers=3)
    assert told.startswith("H100 SXM: NVIDIA's data sheet")
    assert len(told.split("limited by\n")[1].splitlines()) == 1 + 3
    every = limits_table(counts, DEVICE, layers=None)
    assert len(every.splitlines()) > len(told.splitlines())
    assert every.count("seg: ") >= 5


@pytest.mark.parametrize("name", TABLE)
def test_devices_of_the_table_are_plausible(name: str) -> None:
    device = device_named(name, threads=1)
    assert device.peaks[32] <= device.peaks[16] <= device.peaks[8]
    assert 1 < device.peak(16) / device.bandwidth < 1000  # operations a byte


def test_an_unknown_device_is_named_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'h100'"):
        device_named("h1000", threads=1)


def test_this_machine_is_measured_in_a_process_of_its_own() -> None:
    device = measured(1, seconds=0.0)
    assert 1e9 < device.peak(32) < 1e14
    assert 1e8 < device.bandwidth < 1e13
    assert "measured" in device.source
