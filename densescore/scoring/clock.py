"""Seconds per stage of a pass."""

import time

import torch


class Clock:
    """Adds up the seconds that each stage takes; waits for the device, whose work is queued.

    Args:
        device: on which the work runs.

    Attributes:
        timings: seconds by stage.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.timings: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last call to a stage."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # not the copies of the next images
        now = time.perf_counter()
        self.timings[stage] = self.timings.get(stage, 0.0) + now - self._last
        self._last = now
