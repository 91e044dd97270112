"""The pipeline: order, batches, bad frames, bounded memory, and how it ends."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simo_runtime.errors import BackendError, ImageError
from simo_runtime.pipeline import Outcome, Pipeline
from simo_runtime.sinks import Call, Forms
from simo_runtime.sources import Arrays, Files, Frame
from tests.scenes import Plain, plain, write_photo

WAYS = [(1, 1, 1), (1, 3, 4), (4, 1, 2), (3, 2, 5)]  # batch, lanes, workers
every_way = pytest.mark.parametrize(("batch", "lanes", "workers"), WAYS)


def grey(shade: int) -> Any:
    return np.full((30, 40, 3), shade, np.uint8)


def run(pipeline: Pipeline, count: int) -> list[Outcome]:
    return list(pipeline.run(Arrays([grey(i) for i in range(count)], "RGB")))


def metres(outcome: Outcome) -> float:
    assert outcome.scene is not None
    return float(outcome.scene["depth"].values.mean())


@every_way
def test_frames_come_in_order_each_with_its_own_scene(batch: int, lanes: int, workers: int) -> None:
    # Later frames are ready first: each waits less than the one before it.
    session = Plain(lambda pixels: time.sleep(0.02 * (1 - pixels[0, 0, 0, 0] / 20)))
    pipeline = Pipeline(plain(session), batch=batch, lanes=lanes, workers=workers)
    outcomes = run(pipeline, 17)
    assert [outcome.frame.name for outcome in outcomes] == [f"array.{i:06d}" for i in range(17)]
    assert [metres(outcome) for outcome in outcomes] == list(range(17))
    assert sum(session.batches) == 17
    assert max(session.batches) == batch


@every_way
def test_a_bad_frame_is_named_and_the_others_go_on(
    tmp_path: Path, batch: int, lanes: int, workers: int
) -> None:
    paths = [write_photo(tmp_path / f"{i}.png", 10 * i) for i in range(7)]
    paths[2].write_text("no picture")
    paths[6].unlink()
    pipeline = Pipeline(plain(), batch=batch, lanes=lanes, workers=workers)
    outcomes = list(pipeline.run(Files(paths)))
    bad = {outcome.frame.name: str(outcome.error) for outcome in outcomes if outcome.error}
    assert set(bad) == {"2", "6"}
    assert "not a JPEG" in bad["2"]
    assert "No such file" in bad["6"]
    assert [metres(outcome) for outcome in outcomes if outcome.scene] == [0, 10, 30, 40, 50]


def test_a_batch_of_bad_frames_alone_runs_nothing(tmp_path: Path) -> None:
    session = Plain()
    gone = Files([tmp_path / f"{i}.jpg" for i in range(4)])
    assert all(outcome.error for outcome in Pipeline(plain(session), batch=2).run(gone))
    assert session.batches == []


def test_only_the_tasks_asked_for_are_there() -> None:
    outcomes = run(Pipeline(plain(), tasks=["depth"]), 2)
    assert [list(outcome.scene or {}) for outcome in outcomes] == [["depth"]] * 2


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_endless_stream_is_never_far_ahead(lanes: int) -> None:
    drawn = 0

    def endless() -> Iterator[Any]:
        nonlocal drawn
        while True:
            drawn += 1
            yield grey(0)

    pipeline = Pipeline(plain(), batch=2, lanes=lanes, workers=2)
    outcomes = pipeline.run(Arrays(endless(), "RGB"))
    for taken in range(1, 40):
        next(outcomes)
        time.sleep(0.002)
        # the queue, the batch that was taken from it, the one that is being filled
        assert drawn - taken <= 2 * (1 + lanes + 1 + 2)
    outcomes.close()
    after = drawn
    time.sleep(0.05)
    assert drawn <= after + 1


def test_a_source_that_ends_with_an_error_gives_it_last() -> None:
    def vanishing() -> Iterator[Frame]:
        yield Frame("a", "a", grey(1), "RGB")
        yield Frame("b", "b", grey(2), "RGB")
        raise ImageError("camera:0: no more pictures")

    outcomes = list(Pipeline(plain(), batch=8).run(vanishing()))
    assert [outcome.error is None for outcome in outcomes] == [True, True, False]
    assert str(outcomes[-1].error) == "camera:0: no more pictures"


@every_way
def test_a_device_that_fails_stops_everything(batch: int, lanes: int, workers: int) -> None:
    def fails(pixels: Any) -> None:
        if pixels[0, 0, 0, 0] >= 5:
            raise BackendError("the memory is full")

    pipeline = Pipeline(plain(Plain(fails)), batch=batch, lanes=lanes, workers=workers)
    done: list[Outcome] = []
    with pytest.raises(BackendError, match="the memory is full"):
        done.extend(pipeline.run(Arrays([grey(i) for i in range(100)], "RGB")))
    assert len(done) <= 8
    assert_no_threads()


def test_a_source_that_breaks_is_raised_where_the_outcomes_are_read() -> None:
    def broken() -> Iterator[Frame]:
        yield Frame("a", "a", grey(1), "RGB")
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(Pipeline(plain()).run(broken()))
    assert_no_threads()


def test_a_disk_that_is_full_is_raised(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    pipeline = Pipeline(plain(), sinks=[Forms(tmp_path / "out", ("npy",))])
    with pytest.raises(OSError, match="out"):
        run(pipeline, 3)
    assert_no_threads()


def test_leaving_early_waits_for_what_is_being_written(tmp_path: Path) -> None:
    pipeline = Pipeline(plain(), sinks=[Forms(tmp_path, ("npy",))], workers=3, lanes=2)
    outcomes = pipeline.run(Arrays([grey(i) for i in range(50)], "RGB"))
    next(outcomes)
    outcomes.close()
    assert_no_threads()
    before = sorted(tmp_path.iterdir())
    assert not [path for path in before if path.name.startswith(".")]
    for path in before:
        np.load(path)


def test_ordered_sinks_see_the_frames_in_order_from_one_thread() -> None:
    seen: list[tuple[int, str]] = []
    sink = Call(lambda frame, scene: seen.append((threading.get_ident(), frame.name)))
    outcomes = Pipeline(plain(), sinks=[sink], lanes=3, workers=4).run(
        Arrays([grey(i) for i in range(20)], "RGB")
    )
    names = [outcome.frame.name for outcome in outcomes]
    assert [name for _, name in seen] == names
    assert {thread for thread, _ in seen} == {threading.get_ident()}


def test_a_sink_that_refuses_a_frame_makes_it_a_bad_one(tmp_path: Path) -> None:
    missed = []

    class Picky(Call):
        def missed(self, frame: Frame, error: Any) -> None:
            missed.append(frame.name)

    def refuse(frame: Frame, scene: Any) -> None:
        if frame.name == "array.000001":
            raise ImageError("another shape")

    outcomes = run(Pipeline(plain(), sinks=[Picky(refuse)]), 3)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert missed == ["array.000001"]


def test_files_that_cannot_be_written_make_a_frame_a_bad_one() -> None:
    class Narrow(Call):
        ordered = False

    def refuse(frame: Frame, scene: Any) -> None:
        if frame.name == "array.000001":
            raise ImageError("too long a name")

    seen: list[str] = []
    ordered = Call(lambda frame, scene: seen.append(frame.name))
    outcomes = run(Pipeline(plain(), sinks=[Narrow(refuse), ordered]), 3)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert seen == ["array.000000", "array.000002"]


def test_a_frame_may_be_an_error() -> None:
    error = ImageError("b.mp4: damaged")
    frames = [
        Frame("a", "a", grey(1), "RGB"),
        Frame("b", "b", Path("b"), error=error),
        Frame("c", "c", grey(2), "RGB"),
    ]
    outcomes = list(Pipeline(plain(), batch=2).run(frames))
    assert [outcome.error for outcome in outcomes] == [None, error, None]


def test_files_are_told_with_their_frame(tmp_path: Path) -> None:
    outcomes = run(Pipeline(plain(), sinks=[Forms(tmp_path, ("npy", "png"))]), 2)
    assert [len(outcome.files) for outcome in outcomes] == [6, 6]
    assert all(path.is_file() for outcome in outcomes for path in outcome.files)


def test_stages_overlap() -> None:
    # Preparing and inferring take 20 ms each. One after another, 10 frames take 400 ms.
    class Slow(Plain):
        pass

    predict = plain(Slow(lambda pixels: time.sleep(0.02)))
    prepare = predict.prepare

    def slow(*rest: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return prepare(*rest, **options)

    predict.prepare = slow  # type: ignore[method-assign]
    start = time.perf_counter()
    run(Pipeline(predict, workers=2), 10)
    assert time.perf_counter() - start < 0.36


def assert_no_threads() -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not [t for t in threading.enumerate() if t.name.startswith("simo-")]:
            return
        time.sleep(0.01)
    raise AssertionError([thread.name for thread in threading.enumerate()])
