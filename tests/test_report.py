"""What a report keeps of the machine that it was made on, and how it shows numbers."""

import pytest

from simo_build.origin import without_paths
from simo_build.report import shown


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--recipe r --data /d/x --split test", "--recipe r --data DATA --split test"),
        ("--data=/d/x --experts=e", "--data=DATA --experts=EXPERTS"),
        ("-o out --json benchmarks/a.json", "-o OUT --json benchmarks/a.json"),
        ("--recipe /home/me/r.yaml --json=/tmp/a.json", "--recipe r.yaml --json=a.json"),
        ("--lambdas=-0.5,1 /d/study.json", "--lambdas=-0.5,1 study.json"),
    ],
)
def test_a_command_is_shown_without_the_folders_of_the_machine(given: str, told: str) -> None:
    assert without_paths(given.split()) == told.split()


@pytest.mark.parametrize(
    ("value", "metric", "told"),
    [
        (0.40812, "mean_iou", "40.81 %"),
        (0.54619, "absolute_error", "0.5462 m"),
        (30.704, "mean_angle", "30.70°"),
        (0.01026, "disparity_error", "0.0103"),
    ],
)
def test_a_metric_is_shown_with_its_unit_if_it_has_one(
    value: float, metric: str, told: str
) -> None:
    assert shown(value, metric) == told
