"""Memory that was freed, given back to the system.

The C library keeps what was freed for the next request. After a network and photos of many sizes
that is as much as everything else in the process, and it goes up and down with what was last done.
"""

import ctypes
import sys


def give_back() -> None:
    """Let the C library give freed memory back, if it is glibc; others do so by themselves."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
