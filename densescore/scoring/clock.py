"""Seconds per stage of a pass."""

import time

import torch


class Clock:
    """Adds up the seconds that each stage takes; waits for the device, whose work is queued.

    Args:
        device: on which the work runs.
        timings: seconds by stage, written to.
    """

    def __init__(self, device: torch.device, timings: dict[str, float]) -> None:
        self._device, self._timings = device, timings
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last call to a stage."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # not the copies of the next images
        now = time.perf_counter()
        self._timings[stage] = self._timings.get(stage, 0.0) + now - self._last
        self._last = now
