"""What simo-bench sees of the machine: other load, clocks, a GPU's library."""

import ctypes
from pathlib import Path

import pytest

from simo_bench import nvml
from simo_bench.machine import Watch, about, steadier


def test_other_programs_share_is_what_is_busy_beside_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat, now = tmp_path / "stat", {"own": 1.0, "time": 100.0}
    monkeypatch.setattr("simo_bench.machine.os.sysconf", lambda _: 100)
    monkeypatch.setattr("simo_bench.machine.os.cpu_count", lambda: 2)
    monkeypatch.setattr("simo_bench.machine.time.process_time", lambda: now["own"])
    monkeypatch.setattr("simo_bench.machine.time.perf_counter", lambda: now["time"])
    # user nice system idle iowait irq softirq steal, in hundredths of a second
    stat.write_text("cpu 100 0 50 1000 10 0 0 0 0 0\n")
    watch = Watch(stat)
    # 10 s later: 9 s more of user, 1 of system, 2 of steal, of which 6 were this process's:
    # others had 6 of 20 CPU seconds
    stat.write_text("cpu 1000 0 150 1800 10 0 0 200 0 0\n")
    now.update(own=7.0, time=110.0)
    assert watch.others() == pytest.approx(6 / 20)


def test_a_system_that_does_not_tell_has_no_share(tmp_path: Path) -> None:
    assert Watch(tmp_path / "nothing").others() is None


def test_commands_for_steadier_clocks_are_offered() -> None:
    gpu = {"sm_mhz_most": 1980}
    assert steadier({"governor": "powersave", "gpu": gpu}) == [
        "sudo cpupower frequency-set --governor performance",
        "sudo nvidia-smi --lock-gpu-clocks=1980,1980",
    ]
    assert steadier({"governor": "performance", "gpu": None}) == []
    assert steadier({"governor": None, "gpu": None}) == []


def test_the_machine_tells_no_name_of_its_own() -> None:
    import socket

    told = about(2, None)
    assert told["threads"] == 2
    assert told["cpus"] >= told["cpus_allowed"] >= 1
    if len(socket.gethostname()) > 3:
        assert socket.gethostname() not in str(told)


class Library:
    """What nvml gives for a GPU at 1500 MHz that its power cap slows down; as in nvml.h."""

    def __init__(self, *, there: bool = True) -> None:
        self.code = 0 if there else 9  # NVML_ERROR_DRIVER_NOT_LOADED

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object) -> int:
            return getattr(self, f"do_{name}")(*arguments) or 0

        return call if f"do_{name}" in type(self).__dict__ else lambda *_: self.code

    def do_nvmlDeviceGetClockInfo(self, device: object, kind: int, out: object) -> None:
        assert kind == 1
        _put(out, 1500)

    def do_nvmlDeviceGetMaxClockInfo(self, device: object, kind: int, out: object) -> None:
        _put(out, 1980)

    def do_nvmlDeviceGetTemperature(self, device: object, kind: int, out: object) -> None:
        _put(out, 61)

    def do_nvmlDeviceGetTotalEnergyConsumption(self, device: object, out: object) -> int:
        return 3  # NVML_ERROR_NOT_SUPPORTED

    def do_nvmlDeviceGetCurrentClocksThrottleReasons(self, device: object, out: object) -> None:
        _put(out, 0x1 | 0x4)  # idle, which is none, and the power cap

    def do_nvmlDeviceGetComputeRunningProcesses_v3(
        self, device: object, count: object, room: object
    ) -> int:
        _put(count, 2)
        return 7  # NVML_ERROR_INSUFFICIENT_SIZE

    def do_nvmlDeviceGetName(self, device: object, name: object, size: int) -> None:
        ctypes.memmove(name, b"A GPU\0", 6)  # type: ignore[arg-type]


def _put(reference: object, value: int) -> None:
    reference._obj.value = value  # type: ignore[attr-defined]  # of ctypes.byref


def test_a_gpu_tells_its_state() -> None:
    state = nvml.Nvml(Library()).state()
    assert (state.sm_mhz, state.celsius, state.programs) == (1500, 61, 2)
    assert state.energy_mj is None  # not supported
    assert state.reasons == ("power cap",)


def test_a_gpu_tells_its_name_and_highest_clock() -> None:
    told = nvml.Nvml(Library()).about()
    assert (told["name"], told["sm_mhz_most"]) == ("A GPU", 1980)


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not nvml.Nvml(Library(there=False)).found
    monkeypatch.setattr(nvml, "LIBRARY", "no-such-library.so")
    assert nvml.find() is None
