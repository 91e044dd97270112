"""The benchmark of exports: all arms, the same answers, and what is said without optimum."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from simo_bench.exports import SCHEMA, cosine, main, pictures


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, dict[str, object]]:
    path = tmp_path_factory.mktemp("exports") / "found.json"
    asked = ["--model", "vit_tiny_patch16_224", "--size", "32x44", "--blocks", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "optimum", None)  # as if it were not installed
        told = CliRunner().invoke(main, [*asked, "--rounds", "3", "--json", str(path)])
    assert told.exit_code == 0, told.output
    return told.stdout, told.stderr, json.loads(path.read_text())


def test_all_arms_are_timed_in_one_run(found: tuple[str, str, dict[str, object]]) -> None:
    stdout, _, document = found
    assert document["schema"] == SCHEMA
    times = document["milliseconds"]
    assert set(times) == {"ours", "torch", "int8", "adapted"}
    assert all(one["count"] == 3 and one["median"] > 0 for one in times.values())
    assert "int8 is" in stdout


def test_ours_is_the_same_model_with_fewer_nodes(
    found: tuple[str, str, dict[str, object]],
) -> None:
    document = found[2]
    assert document["nodes"]["ours"] < document["nodes"]["torch"]
    assert document["cosine_torch"] > 0.9999
    assert document["cosine_int8"] > 0.99
    assert document["nodes"]["adapted"] == document["nodes"]["ours"] + 3  # two products, one sum


def test_without_optimum_it_says_what_to_install(
    found: tuple[str, str, dict[str, object]],
) -> None:
    assert "optimum is left out" in found[1]
    assert "pip install optimum-onnx" in found[1]
    assert "optimum" not in found[2]["nodes"]


@pytest.mark.parametrize("size", ["280", "280x", "ax3", "0x378", "280x378x3"])
def test_a_size_that_makes_no_sense_is_refused(size: str) -> None:
    told = CliRunner().invoke(main, ["--size", size])
    assert told.exit_code == 2
    assert "give height x width, as in 280x378" in told.stderr


def test_pictures_are_the_same_every_time_and_not_one_colour() -> None:
    one = pictures((20, 30), 2)
    np.testing.assert_array_equal(one, pictures((20, 30), 2))
    assert one.shape == (2, 20, 30, 3)
    assert one.std() > 20


def test_a_cosine_by_hand() -> None:
    assert cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])) == pytest.approx(0.96)
