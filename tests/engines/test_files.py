"""Files of engines: built once, found again, whole or not at all, and their owner's alone."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simo_engines.engine import write_whole
from simo_runtime.bundle import Bundle
from simo_runtime.engines import (
    BatchRange,
    described,
    engine_spec,
    engines_of,
    read_plan,
    record_path,
)
from simo_runtime.errors import BackendError
from simo_runtime.gpu import find_gpu
from tests.engines.workplace import OPTIONS, Workplace
from tests.tensorrt_stand_in import GPU


def _say_another_gpu(record: Path) -> None:
    said = json.loads(record.read_text())
    said["spec"]["gpu"]["name"] = "another GPU"
    record.write_text(json.dumps(said))


def _be_a_link(plan: Path) -> None:
    plan.rename(plan.with_name("kept"))
    plan.symlink_to("kept")


class TestFiles:
    def test_an_engine_is_built_once_and_then_found(self, place: Workplace) -> None:
        first = place.find()
        place.answers.asked.clear()
        again = place.find()
        assert (again.path, again.record) == (first.path, first.record)
        assert place.answers.asked == {}
        assert first.record["layers"]["types"] == {"fp32": 2}
        Bundle.open(place.bundle.root)  # nothing was left in it

    def test_it_is_its_owners_alone(self, place: Workplace) -> None:
        found = place.find()
        assert {path.suffix for path in found.path.parent.iterdir()} == {
            ".plan",
            ".json",
            ".lock",
            ".cache",
        }
        for path in found.path.parent.iterdir():
            assert path.stat().st_mode & 0o077 == 0, path

    def test_engines_of_a_graph_are_listed_whatever_was_asked_of_them(
        self, place: Workplace
    ) -> None:
        narrow = place.find(batches=BatchRange(smallest=1, tuned=1, largest=1))
        wide = place.find()
        place.find("encoder")
        found = engines_of(
            place.bundle,
            "depth",
            tensorrt="10.16.1.11",
            gpu=find_gpu(),
            precision="fp32",
            root=place.root,
        )
        assert [engine.path for engine in found] == [wide.path, narrow.path]
        nothing = {"gpu": replace(GPU, driver="12.0"), "root": place.root}
        for rest in (nothing, {"gpu": GPU, "root": place.root / "none"}):
            assert not list(
                engines_of(place.bundle, "depth", tensorrt="10.16.1.11", precision="fp32", **rest)
            )

    @pytest.mark.parametrize(
        ("damage", "why"),
        [
            (lambda plan, _: plan.write_bytes(b"another"), "it is not what was built here"),
            (lambda _, record: record.unlink(), "there is no record of it"),
            (lambda _, record: record.write_text("[]"), "there is no record of it"),
            (lambda _, record: record.write_text("{"), "there is no record of it"),
            (lambda _, record: _say_another_gpu(record), "its record tells of another graph"),
            (lambda plan, _: plan.chmod(0o644), "it is not yours alone"),
            (lambda plan, _: _be_a_link(plan), "it is a link"),
            (lambda plan, _: os.link(plan, plan.with_name("kept")), "it is a link"),
        ],
    )
    def test_a_plan_from_elsewhere_is_refused(
        self, place: Workplace, damage: Any, why: str
    ) -> None:
        found = place.find()
        spec = engine_spec(place.bundle, "depth", tensorrt="10.16.1.11", gpu=GPU, options=OPTIONS)
        assert read_plan(found.path, spec).startswith(b"plan of ")
        assert found.record["spec"] == described(spec)
        damage(found.path, record_path(found.path))
        for use in (lambda: read_plan(found.path, spec), place.find):
            with pytest.raises(BackendError, match=f"was not built here: {why}"):
                use()
        assert place.answers.asked["builds"] == 1

    def test_engines_are_kept_out_of_the_bundle(self, place: Workplace) -> None:
        place.root = place.bundle.root / "engines"
        with pytest.raises(BackendError, match="engines cannot lie in a bundle"):
            place.find()

    def test_a_full_disk_leaves_nothing_half_written(
        self, place: Workplace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(number: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as context:
            context.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                place.find()
        assert place.files() == {".lock"}
        assert place.find().path.is_file()

    def test_a_plan_that_cannot_be_put_in_place_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "a.plan" / "inside").mkdir(parents=True)
        with pytest.raises(OSError, match=r"a\.plan"):
            write_whole(tmp_path / "a.plan", b"plan")
        assert [path.name for path in tmp_path.iterdir()] == ["a.plan"]

    def test_what_a_killed_builder_left_is_removed_and_the_engine_built(
        self, place: Workplace
    ) -> None:
        found = place.find()
        found.path.unlink()  # killed between the record and the plan
        half = found.path.with_name(f".{found.path.name}.1.partial")
        half.write_bytes(b"ha")
        assert place.find().path == found.path
        assert not half.exists()
        assert place.answers.asked["builds"] == 2
