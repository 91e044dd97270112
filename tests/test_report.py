"""What a report keeps of the machine that it was made on."""

import pytest

from simo_build.report import without_paths


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("--recipe r --data /d/x --split test", "--recipe r --data DATA --split test"),
        ("--data=/d/x --experts=e", "--data=DATA --experts=EXPERTS"),
        ("-o out --json benchmarks/a.json", "-o OUT --json benchmarks/a.json"),
        ("--recipe /home/me/r.yaml --json=/tmp/a.json", "--recipe r.yaml --json=a.json"),
        ("--lambdas=-0.5,1 /d/study.json", "--lambdas=-0.5,1 study.json"),
    ],
)
def test_a_command_is_shown_without_the_folders_of_the_machine(given: str, shown: str) -> None:
    assert without_paths(given.split()) == shown.split()
