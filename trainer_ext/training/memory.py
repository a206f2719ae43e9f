"""Return freed memory to the system during long streams."""

import ctypes
import os
import time

import pyarrow
from transformers import TrainerCallback

_M_ARENA_MAX = -8  # malloc.h


class ReturnMemory(TrainerCallback):
    """A callback that keeps memory use flat over a long stream.

    Without it, the process grows for hours, because freed blocks leave gaps that new rows do not fit. Three things
    help:

    - Every five seconds, unused pages of pyarrow's and glibc's allocators go back to the system.
    - All threads share two arenas of glibc, instead of eight per core, so there are fewer gaps.
    - oneDNN caches code for the last 16 shapes instead of 1,024, since nearly every batch has a new shape.

    oneDNN reads its setting at its first use, so create this callback before any computation. With another C library
    than
    glibc, only pyarrow's pages go back.
    """

    def __init__(self):
        library = ctypes.CDLL(None) if os.name == "posix" else None
        self._trim = getattr(library, "malloc_trim", None)
        if self._trim is not None:
            library.mallopt(_M_ARENA_MAX, 2)
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
        self._last = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if time.monotonic() - self._last > 5:
            pyarrow.default_memory_pool().release_unused()
            if self._trim is not None:
                self._trim(0)
            self._last = time.monotonic()
