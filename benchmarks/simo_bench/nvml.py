"""What NVIDIA's management library says of a GPU: clocks, temperature, energy, who else uses it.

The library is called directly, as `simo_runtime.gpu` calls the driver. Nothing here changes the
GPU. Where there is no library, there is no GPU to ask: `find` gives None.
"""

import ctypes
import sys
from dataclasses import asdict, dataclass
from typing import Any

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
OK = 0
SM_CLOCK, TEMPERATURE_GPU = 1, 0
# Reasons, as numbered in nvml.h, for which a clock is lower than it could be; idle, settings of
# the user and clocks that follow others are none.
THROTTLED = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


@dataclass(frozen=True, kw_only=True)
class State:
    """A moment: what the GPU does not tell is None."""

    sm_mhz: int | None
    celsius: int | None
    energy_mj: int | None  # since the driver was loaded
    memory_used: int | None  # bytes, of all programs
    reasons: tuple[str, ...]  # for which the clock was throttled
    programs: int | None  # that compute on it

    def plain(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class Nvml:
    """The first GPU; CUDA_VISIBLE_DEVICES means nothing to this library."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._device = ctypes.c_void_p()
        self.found = self._call("nvmlInit_v2") and self._call(
            "nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(self._device)
        )

    def _call(self, function: str, *arguments: object) -> bool:
        return bool(getattr(self._library, function)(*arguments) == OK)

    def _number(self, function: str, *arguments: object, kind: Any = ctypes.c_uint) -> int | None:
        value = kind()
        told = self._call(function, self._device, *arguments, ctypes.byref(value))
        return int(value.value) if told else None

    def state(self) -> State:
        """Look at the GPU now."""
        bits = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", kind=ctypes.c_ulonglong)
        memory = _Memory()
        known = self._call("nvmlDeviceGetMemoryInfo", self._device, ctypes.byref(memory))
        return State(
            sm_mhz=self._number("nvmlDeviceGetClockInfo", SM_CLOCK),
            celsius=self._number("nvmlDeviceGetTemperature", TEMPERATURE_GPU),
            energy_mj=self._number("nvmlDeviceGetTotalEnergyConsumption", kind=ctypes.c_ulonglong),
            memory_used=int(memory.used) if known else None,
            reasons=tuple(name for bit, name in THROTTLED.items() if (bits or 0) & bit),
            programs=self._programs(),
        )

    def _programs(self) -> int | None:
        count = ctypes.c_uint(0)  # room for none: the library then says how many there are
        code = self._library.nvmlDeviceGetComputeRunningProcesses_v3(
            self._device, ctypes.byref(count), None
        )
        return int(count.value) if code in (OK, 7) else None  # 7: the room is too small

    def about(self) -> dict[str, Any]:
        """Give the GPU's name, the driver's version, and the highest clock."""
        name, driver = ctypes.create_string_buffer(96), ctypes.create_string_buffer(80)
        self._call("nvmlDeviceGetName", self._device, name, len(name))
        self._call("nvmlSystemGetDriverVersion", driver, len(driver))
        return {
            "name": name.value.decode(errors="replace"),
            "driver": driver.value.decode(errors="replace"),
            "sm_mhz_most": self._number("nvmlDeviceGetMaxClockInfo", SM_CLOCK),
        }


def find() -> Nvml | None:
    """Open the library; None where there is none, or no GPU."""
    try:
        found = Nvml(ctypes.CDLL(LIBRARY))
    except (OSError, AttributeError):
        return None
    return found if found.found else None
