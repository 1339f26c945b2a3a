"""Out of memory: recognize it, retry in smaller parts, and give freed memory back to the system."""

import ctypes
import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from densescore.errors import DensescoreWarning, OutOfMemoryError, reason_of

PARTS = (1, 8)
"""Parts of a dense pass: an image that runs out of memory is scored again in parts 8 times smaller."""

Result = TypeVar("Result")


def retry_smaller(
    work: Callable[[int], Result], sizes: Iterable[int], subject: str, advice: str
) -> tuple[Result, bool]:
    """Call `work` with one size after another, each of which needs less memory, until one has enough.

    Returns the result and whether it took a retry, which is warned of. `subject` and `advice` are for messages.
    """
    reason = ""
    for attempt, size in enumerate(sizes):
        if attempt == 1:
            message = f"out of memory on {subject}: scoring it again in smaller parts ({reason})"
            warnings.warn(message, DensescoreWarning, stacklevel=4)
        try:
            return work(size), attempt > 0
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
        # Past the except block, whose error holds the failed work's memory, too
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise OutOfMemoryError(f"out of memory on {subject}, even in smaller parts ({reason}): {advice}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: CUDA's, numpy's, or that of torch's allocator on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


# Pixels of a first batch. A CPU gains nothing beyond, and memory that runs out there may end the process at once.
_CROP_PIXELS = {"cpu": 64 * 224**2, "cuda": 512 * 224**2}


class CropBatch:
    """Crops per batch: large at first, halved for good when memory runs out. A scorer's copies and threads share it."""

    def __init__(self, patch: int, device: torch.device) -> None:
        self.size = max(1, _CROP_PIXELS.get(device.type, _CROP_PIXELS["cpu"]) // patch**2)

    def sizes(self) -> Iterator[int]:
        """For `retry_smaller`: the size, then half of it, and so on down to one crop."""
        size = self.size
        yield size
        while size > 1:
            size = self.size = min(self.size, size // 2)  # another thread may have halved it, too
            yield size


SLACK = 256 * 2**20
"""Bytes by which the process may grow from one image to a later one before freed memory is given back."""


class FreedMemory:
    """Trims the heap when the process has grown; costs nothing for images of one size, whose blocks are used again.

    `resident` gives the bytes that the process holds; `trim` gives freed ones back to the system.
    """

    def __init__(self, resident: Callable[[], int], trim: Callable[[], object], slack: int = SLACK) -> None:
        self._resident, self._trim, self._slack = resident, trim, slack
        self._limit: int | None = None
        self._lock = threading.Lock()

    def after_image(self) -> None:
        """Trim if the process holds more than `slack` above what it held after the first image since the last trim."""
        with self._lock:
            resident = self._resident()
            if self._limit is None:
                self._limit = resident + self._slack
            elif resident > self._limit:
                self._trim()
                self._limit = None


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _for_this_system() -> FreedMemory:
    try:
        trim = ctypes.CDLL(None).malloc_trim
        _resident_bytes()
    except (OSError, AttributeError, TypeError):  # not glibc, or not Linux: their allocators give memory back
        return FreedMemory(lambda: 0, lambda: None)
    return FreedMemory(_resident_bytes, lambda: trim(0))


freed_memory = _for_this_system()
