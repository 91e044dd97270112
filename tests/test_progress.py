"""Progress: what is told, how often, and how it looks on a terminal and in a log."""

from pathlib import Path

import pytest

from simo_runtime.errors import ImageError
from simo_runtime.pipeline import Outcome
from simo_runtime.progress import Progress
from simo_runtime.sources import Frame

GOOD = Outcome(Frame("a", "a.jpg", Path("a.jpg")))
BAD = Outcome(GOOD.frame, error=ImageError("a.jpg: damaged"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("terminal", "lines"), [(True, 50), (False, 1)])
def test_a_terminal_sees_more_than_a_log(clock: list[float], terminal: bool, lines: int) -> None:
    told: list[tuple[str, bool]] = []
    progress = Progress(100, lambda *one: told.append(one), terminal=terminal, few=20)
    for _ in range(100):
        clock[0] += 0.125
        progress.one(GOOD)
    assert len(told) == lines
    assert {end for _, end in told} == {not terminal}
    assert told[-1][0].startswith("\r\x1b[K") is terminal
    assert "of 100 pictures, 8.0 a second" in told[-1][0]


@pytest.mark.parametrize(
    ("total", "interrupted", "told"),
    [
        (3, False, []),
        (30, False, ["2 of 30 pictures, 1 failed, 1.0 a second"]),
        (None, False, ["2 pictures, 1 failed, 1.0 a second"]),
        (3, True, ["Stopped; what was written is whole: 2 of 3 pictures, 1 failed, 1.0 a second"]),
    ],
)
def test_it_sums_up_what_was_more_than_a_few(
    clock: list[float], total: int | None, interrupted: bool, told: list[str]
) -> None:
    lines: list[str] = []
    progress = Progress(total, lambda text, end: lines.append(text), terminal=False, few=20)
    progress.one(GOOD)
    progress.one(BAD)
    clock[0] = 2.0
    progress.end(interrupted=interrupted)
    assert lines == told
