"""Building engines with a stand-in for TensorRT: what it is asked, and what it says."""

from typing import Any

import pytest

from simo_engines.engine import Telling, find_engine
from simo_runtime.errors import BackendError
from tests.engines.workplace import OPTIONS, Workplace


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


class TestCallbacks:
    def test_ours_answer_every_call_that_tensorrt_makes(self, tensorrt: Any) -> None:
        from simo_engines.plan import Listener, Monitor

        pairs = ((Listener, tensorrt.ILogger), (Monitor, tensorrt.IProgressMonitor))
        for ours, interface in pairs:
            assert interface.__abstractmethods__ <= set(vars(ours))
            assert not ours.__abstractmethods__
            with pytest.raises(TypeError, match="abstract"):
                interface()


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
