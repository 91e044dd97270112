"""Freed memory goes back to the system."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from simo_runtime import Predictor
from simo_runtime.backends import onnxruntime_session

FREED = """
import os
from pathlib import Path
from simo_runtime.heap import give_back

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

blocks = [bytearray(b"x" * 60_000) for _ in range(1_000)]  # small enough to lie in the heap
end = bytearray(b"x" * 60_000)  # and this one keeps the heap from shrinking
del blocks
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep nothing")
def test_what_the_c_library_keeps_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 40  # MiB, of 57


def test_a_predictor_that_closes_gives_memory_back(
    rooms_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[None] = []
    monkeypatch.setattr(onnxruntime_session, "give_back", lambda: times.append(None))
    Predictor.open(rooms_bundle).close()
    assert len(times) == 1
