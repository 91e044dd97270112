"""Building engines with a stand-in for TensorRT: calls, files, the gate, two builders at once."""

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from simo_engines.cli import main
from simo_engines.engine import LOCK, Telling, find_engine, write_whole
from simo_engines.gate import LIMITS, Reference, agreement, made_up, pixels_for
from simo_engines.layers import read_layers
from simo_engines.locks import locked
from simo_export.gate import faults
from simo_runtime.bundle import Bundle
from simo_runtime.engines import (
    BatchRange,
    Engine,
    EngineOptions,
    described,
    engine_spec,
    engines_of,
    read_plan,
    record_path,
)
from simo_runtime.errors import BackendError
from simo_runtime.gpu import find_gpu
from tests.graphs import write_bundle
from tests.tensorrt_stand_in import GPU, Driver, stand_in

BATCHES = BatchRange(smallest=1, tuned=4, largest=8)
OPTIONS = EngineOptions(batches=BATCHES, workspace_mib=64)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    return found


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> Iterator[Any]:
    module = stand_in()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    for name in ("simo_engines.plan", "simo_engines.run"):
        sys.modules.pop(name, None)
    yield module
    for name in ("simo_engines.plan", "simo_engines.run"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("engines") / "bundle")


class Workplace:
    """A bundle, its reference, and a folder for engines."""

    def __init__(self, bundle: Bundle, root: Path, answers: Any) -> None:
        self.bundle, self.root, self.answers = bundle, root, answers
        self.reference = Reference(bundle, made_up(bundle.manifest.image_size))
        self.said: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def find(self, name: str = "depth", **changes: Any) -> Engine:
        telling = Telling(self.said.append, lambda *step: self.steps.append(step))
        return find_engine(
            self.bundle,
            name,
            self.reference,
            options=replace(OPTIONS, **changes),
            root=self.root,
            telling=telling,
        )

    def files(self) -> set[str]:
        return {path.suffix for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def place(made: Bundle, tensorrt: Any, tmp_path: Path) -> Workplace:
    found = Workplace(made, tmp_path / "engines", tensorrt.answers)
    tensorrt.answers.shapes = {"tap0": (-1, 32, 32)}
    return found


class TestCalls:
    def test_a_strongly_typed_network_is_asked_for_by_name(
        self, place: Workplace, tensorrt: Any
    ) -> None:
        # 10.x numbers the flag 1, 11.x numbers it 0; a literal would ask 11 for something else.
        for value in (1, 0):
            tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED = value
            place.find(workspace_mib=64 + value)
            assert place.answers.asked["flags"] == 1 << value

    def test_every_input_gets_the_batches(self, place: Workplace) -> None:
        place.answers.shapes = {"tap0": (-1, 32, 32), "tap1": (-1, 5, 8)}
        place.find()
        assert place.answers.asked["tap0"] == ((1, 32, 32), (4, 32, 32), (8, 32, 32))
        assert place.answers.asked["tap1"] == ((1, 5, 8), (4, 5, 8), (8, 5, 8))

    def test_the_workspace_is_limited_and_tf32_is_off_unless_asked_for(
        self, place: Workplace
    ) -> None:
        place.find()
        assert place.answers.asked["pool"] == (0, 64 * 2**20)
        assert place.answers.asked["tf32"] is False
        place.find(tf32=True)
        assert place.answers.asked["tf32"] is True

    def test_compatible_engines_are_asked_for_and_load_host_code_only_then(
        self, place: Workplace
    ) -> None:
        place.find()
        assert "version compatible" not in place.answers.asked
        assert place.answers.asked["hardware"] == 0
        assert place.answers.asked["host code"] is False
        place.find(version_compatible=True, hardware="same_compute_capability")
        assert place.answers.asked["version compatible"] is True
        assert place.answers.asked["host code"] is True
        assert place.answers.asked["hardware"] == 2
        place.find(hardware="ampere_plus")
        assert place.answers.asked["hardware"] == 1

    def test_timings_of_one_build_serve_the_next(self, place: Workplace) -> None:
        place.find()
        assert place.answers.asked["timings"] == b""
        place.find("encoder")
        assert place.answers.asked["timings"] == b"+"

    def test_timings_that_do_not_fit_are_left_aside(self, place: Workplace) -> None:
        place.find()
        place.answers.takes_timings = False
        place.find("encoder")
        assert place.answers.asked["timings"] == b""

    def test_progress_is_told(self, place: Workplace) -> None:
        place.find()
        assert place.steps == [("Building Engine", done, 2) for done in (0, 1, 2, 2)]
        assert place.said[0] == "depth: building the fp32 engine; this takes minutes"
        assert place.said[1] == "depth: 2 layers: fp32 100%; 1 fused attention, 0 softmax"

    def test_a_build_that_the_user_ends_leaves_nothing(
        self, place: Workplace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*step: object) -> None:
            raise KeyboardInterrupt

        telling = Telling(place.said.append, stop)
        with pytest.raises(KeyboardInterrupt):
            find_engine(
                place.bundle,
                "depth",
                place.reference,
                options=OPTIONS,
                root=place.root,
                telling=telling,
            )
        assert place.files() == {".lock"}


class TestFaults:
    def test_what_the_parser_does_not_like_is_listed(self, place: Workplace) -> None:
        place.answers.parse_errors = [f"fault {number}" for number in range(7)]
        with pytest.raises(BackendError) as caught:
            place.find()
        lines = str(caught.value).splitlines()
        assert lines[0] == f"{place.bundle.graph('depth')}: TensorRT cannot read the graph"
        assert lines[1] == "  Gelu node_7: fault 0"
        assert lines[-1] == "  and 2 more"

    def test_what_tensorrt_says_is_told(self, place: Workplace) -> None:
        place.answers.builds = False
        with pytest.raises(BackendError, match=r"built no engine\n  out of memory$"):
            place.find()
        place.answers.builds, place.answers.loads = True, False
        with pytest.raises(BackendError, match="cannot load what it built"):
            place.find()
        place.answers.starts = False
        with pytest.raises(BackendError, match=r"cannot start.*\n  CUDA initialization failure"):
            place.find()
        assert place.files() == {".lock"}

    @pytest.mark.parametrize("shape", [(2, 5, 8), (-1, -1, 8)])
    def test_an_input_whose_first_axis_is_not_the_only_free_one_is_refused(
        self, place: Workplace, shape: tuple[int, ...]
    ) -> None:
        place.answers.shapes["tap0"] = shape
        with pytest.raises(BackendError, match="input 'tap0' has the shape"):
            place.find()

    def test_batches_that_are_refused_are_told(self, place: Workplace) -> None:
        place.answers.profile_index = -1
        with pytest.raises(BackendError, match="refuses the batches"):
            place.find()


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
        from tests.tensorrt_stand_in import LAYERS

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


class TestTwoBuilders:
    def test_the_second_waits_and_finds_the_engine_of_the_first(self, place: Workplace) -> None:
        second: list[Engine] = []
        other = threading.Thread(target=lambda: second.append(place.find()))

        def meanwhile() -> None:
            other.start()
            deadline = time.monotonic() + 10
            while not any("waiting for it" in line for line in place.said):
                assert time.monotonic() < deadline
                time.sleep(0.01)

        place.answers.while_building = meanwhile
        first = place.find()
        place.answers.while_building = lambda: None
        other.join(timeout=10)
        assert second[0].path == first.path
        assert place.answers.asked["builds"] == 1

    def test_a_builder_that_is_killed_gives_the_lock_back(self, tmp_path: Path) -> None:
        code = f"""
import sys, time
from pathlib import Path
from simo_engines.locks import locked
with locked(Path({str(tmp_path / LOCK)!r}), lambda: None):
    print("held", flush=True)
    time.sleep(60)
"""
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        waited: list[bool] = []

        def waiting() -> None:
            waited.append(True)
            process.kill()

        with locked(tmp_path / LOCK, waiting):
            assert waited == [True]
        process.communicate()


class TestLayers:
    def test_types_are_read_in_the_words_of_every_version(self) -> None:
        words = {
            "Half": "fp16",
            "Row major linear FP16 format": "fp16",
            "Float": "fp32",
            "Row major linear FP32": "fp32",
            "BFloat16": "bf16",
            "Thirty-two wide channel vectorized row major Int8 format.": "int8",
            "FP8": "fp8",
            "UInt8": "uint8",
            "Int32": "int32",
            "something else": "unknown",
        }
        for said, kind in words.items():
            layer = {"Name": "a", "Outputs": [{"Format/Datatype": said}]}
            assert read_layers(json.dumps({"Layers": [layer]})).types == {kind: 1}, said

    def test_a_product_of_int8_that_gives_floats_uses_int8(self) -> None:
        layer = {
            "Name": "gemm",
            "Inputs": [{"Format/Datatype": "Int8"}, {"Format/Datatype": "Int8"}],
            "Outputs": [{"Format/Datatype": "Half"}],
        }
        found = read_layers(json.dumps({"Layers": [layer]}))
        assert (found.types, found.using) == ({"fp16": 1}, {"fp16": 1, "int8": 1})

    def test_fused_attention_is_told_from_a_softmax_by_itself(self) -> None:
        names = ["_gemm_mha_v2_myl0_6", "_gemv_mha_v1_myl0_1", "sm90_fmha_fprop", "/attn/Softmax"]
        tactic = {"Name": "x", "TacticName": "_gemm_mha_v2_sm89_fp16", "Outputs": []}
        other = ["__myl_FcAdd_myl0_2", "mhatch"]
        found = read_layers(json.dumps({"Layers": [*names, tactic, *other]}))
        assert (found.fused_attention, found.softmax, found.count) == (4, 1, 7)
        assert found.types == {"unknown": 7}

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"Layers": 3}', '{"Layers": [3]}'])
    def test_what_is_no_list_of_layers_is_an_error(self, text: str) -> None:
        with pytest.raises(BackendError, match="gives no list of layers"):
            read_layers(text)


class TestTheCommand:
    def run(self, place: Workplace, *options: str) -> Any:
        arguments = [str(place.bundle.root), "--engines", str(place.root), *options]
        return CliRunner().invoke(main, arguments)

    def test_builds_every_graph_and_prints_where_the_engines_are(self, place: Workplace) -> None:
        found = self.run(place, "--batches", "1:2:3")
        assert found.exit_code == 0, found.output
        lines = found.stdout.splitlines()
        assert [line.split(":")[0] for line in lines] == ["encoder fp32", "depth fp32"]
        assert all(Path(line.split(": ")[1]).is_file() for line in lines)
        assert place.answers.asked["tap0"] == ((1, 32, 32), (2, 32, 32), (3, 32, 32))

    @pytest.mark.parametrize(
        ("options", "fault"),
        [
            (["--graphs", "dept"], "did you mean 'depth'"),
            (["--precision", "fp61"], "unknown precision 'fp61'"),
            (["--batches", "1:2"], "must be three numbers"),
            (["--batches", "3:2:1"], "in the order smallest, tuned, largest"),
        ],
    )
    def test_mistakes_get_one_clear_line(
        self, place: Workplace, options: list[str], fault: str
    ) -> None:
        found = self.run(place, *options)
        assert found.exit_code == 1
        assert found.stderr.startswith("Error: ")
        assert fault in found.stderr
        assert not place.root.exists()

    def test_a_folder_without_photos_is_refused(self, place: Workplace, tmp_path: Path) -> None:
        found = self.run(place, "--images", str(tmp_path))
        assert "there is no photo in it" in found.stderr

    def test_a_damaged_bundle_is_refused_before_anything_is_built(
        self, place: Workplace, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(place.bundle.root, copy)
        (copy / "encoder.bin").write_bytes(b"x")
        found = CliRunner().invoke(main, [str(copy)])
        assert found.exit_code == 1
        assert "encoder.bin: 1 bytes" in found.stderr
        assert place.answers.asked == {}
