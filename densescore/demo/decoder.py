"""Decodes untrusted images in another process, which is killed when it takes too long."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Timer

import numpy as np

from densescore.demo.decode_child import JOB
from densescore.demo.limits import TooLargeError, TooSlowError
from densescore.errors import DensescoreError
from densescore.io.images import Pixels

_START_SECONDS = 120  # a busy machine may need many
_LINE = 100_000  # maximum bytes of an answer's first line


class Decoder:
    """One process that decodes one image at a time; a killed one is replaced.

    On Linux its memory is limited, and it cannot write files.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._closed = False
        self._process, self._ready = _start(), False

    def decode(self, data: bytes, max_pixels: int, seconds: float) -> Pixels:
        """Decode a file's bytes to RGB ``[H, W, 3]``, uint8 or float32 in [0, 1].

        Raises `TooLargeError` (by the header), `TooSlowError`, or for unsupported images `DensescoreError`.
        """
        with self._lock:
            if self._process.poll() is not None:  # it died between two images
                self._replace()
            self._wait_until_ready()  # the start does not count as the image's time
            try:
                with _killed_after(self._process, seconds) as late:
                    return _exchange(self._process, data, max_pixels)
            except (OSError, EOFError) as error:
                self._replace()
                if late.is_set():
                    raise TooSlowError(f"the image was not decoded within {seconds:g} seconds") from error
                raise DensescoreError(f"image of {len(data)} bytes: cannot be decoded") from error

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._process.kill()
        self._process.wait()

    def _replace(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._closed:
            raise DensescoreError("the decoder is closed")
        self._process, self._ready = _start(), False

    def _wait_until_ready(self) -> None:
        if self._ready:
            return
        try:
            with _killed_after(self._process, _START_SECONDS):
                self._ready = "ready" in _read_line(self._process)
        except EOFError as error:
            raise DensescoreError("the process that decodes images does not start") from error


# -I: no module comes from the working directory, or from where environment variables point.
_COMMAND = "import sys; sys.path[:] = sys.argv[1:]; from densescore.demo.decode_child import main; main()"


def _start() -> "subprocess.Popen[bytes]":
    own = str(Path(__file__).resolve().parents[2])  # a checkout may be the working directory
    foreign = {os.path.realpath(os.getcwd())} - {own}
    paths = [path for path in sys.path if path and os.path.realpath(path) not in foreign]
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _COMMAND, *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for the server, which then ends this process
    )


@contextmanager
def _killed_after(process: "subprocess.Popen[bytes]", seconds: float) -> Iterator[Event]:
    """Kill the process if the block takes longer; the event is then set."""
    late = Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = Timer(seconds, end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _exchange(process: "subprocess.Popen[bytes]", data: bytes, max_pixels: int) -> Pixels:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(JOB.pack(len(data), max_pixels) + data)
    process.stdin.flush()
    head = _read_line(process)
    if "too_large" in head:
        raise TooLargeError(str(head["too_large"]))
    if "error" in head:
        raise DensescoreError(str(head["error"]))
    # A file may have taken over the process: its answer is checked before it is used.
    shape, dtype = head.get("shape"), head.get("dtype")
    if not isinstance(shape, list) or len(shape) != 3 or shape[2] != 3 or dtype not in ("uint8", "float32"):
        raise EOFError
    if not all(type(side) is int and side > 0 for side in shape) or shape[0] * shape[1] > max_pixels:
        raise EOFError
    pixels = np.empty(shape, dtype)
    if process.stdout.readinto(pixels.data.cast("B")) != pixels.nbytes:  # type: ignore[attr-defined]
        raise EOFError
    return pixels


def _read_line(process: "subprocess.Popen[bytes]") -> dict[str, object]:
    assert process.stdout is not None
    line = process.stdout.readline(_LINE)
    try:
        head = json.loads(line)
    except ValueError as error:
        raise EOFError from error
    if not isinstance(head, dict):
        raise EOFError
    return head
