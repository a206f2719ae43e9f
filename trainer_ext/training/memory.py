"""Give freed memory back to the system during long streams."""

import ctypes
import os
import time

import pyarrow
from transformers import TrainerCallback

_M_ARENA_MAX = -8  # malloc.h


class ReturnMemory(TrainerCallback):
    """Keeps the memory of a long stream flat.

    Rows come and go by the million, in sizes that fit no gap that others left: without this, the process grows for
    hours. Every five seconds, pages that the allocators (pyarrow's and glibc's) keep and do not use go back to the
    system; and threads share two of glibc's arenas instead of eight a core, so that there are fewer gaps. Where the C
    library is another, only pyarrow's go back. oneDNN keeps code for the last 1,024 shapes that it met, and nearly each
    batch has new ones: it is told to keep 16, and heeds that if it has not begun. So make this before any computing.
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
