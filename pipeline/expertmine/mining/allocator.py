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
    """Have the allocator use freed memory again, for the rest of the process, where the C library is glibc.

    It would give every large array back to the system at once and have the next one mapped and cleared anew, which
    costs a forward pass on the CPU a tenth of its time or more; and a thread would have a heap of its own.
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
    """Bytes of memory that this process holds; the most it ever held, where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
