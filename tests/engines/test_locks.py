"""Two builders at once: one waits, and a lock outlives no process."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from simo_engines.engine import LOCK
from simo_engines.locks import locked
from simo_runtime.engines import (
    Engine,
)
from tests.engines.workplace import Workplace


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
