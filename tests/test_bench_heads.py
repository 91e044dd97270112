"""The benchmark of the `head` step."""

from pathlib import Path

import pytest

from simo_bench.heads import run, told
from simo_runtime.errors import SimoError
from tests.tiny import SPLITS, opened, write_recipe


def test_every_run_is_timed_and_the_middle_one_told(place: Path) -> None:
    found = run(opened(write_recipe(place)), SPLITS["train"], 3)
    seconds = sorted(one["seconds"] for one in found["runs"])
    assert len(seconds) == 3
    assert seconds[0] > 0
    assert (found["median_seconds"], found["spread_seconds"]) == (
        seconds[1],
        [seconds[0], seconds[2]],
    )
    assert told(found).startswith("2 images, 12 epochs")


def test_more_images_than_there_are_is_an_error(place: Path) -> None:
    with pytest.raises(SimoError, match="`train` has 2"):
        run(opened(write_recipe(place)), 3, 1)
