"""How this process takes memory from the system."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> None:
    """Have the allocator reuse freed memory for the rest of the process, if the C library is glibc.

    By default it returns every large array to the system at once, and the next one is mapped and cleared again, which
    costs a forward pass on the CPU a tenth of its time or more. It also gives each thread a heap of its own.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_THRESHOLD, 1 << 25)
    mallopt(_TRIM_THRESHOLD, 1 << 29)
    mallopt(_ARENA_MAX, 1)


def resident_bytes() -> int:
    """Bytes of memory that this process holds; its peak, if the system does not report more."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
