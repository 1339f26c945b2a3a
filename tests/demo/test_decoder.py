"""The process that decodes: its formats, its limits, and its replacement."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densescore import DensescoreError
from densescore.demo.decode_child import FORMATS
from densescore.demo.decoder import Decoder
from densescore.demo.limits import TooLargeError, TooSlowError
from tests.demo.raw import encode, flat, png


def test_the_process_starts_without_packages_that_take_seconds_to_load() -> None:
    code = "import sys, densescore.demo.decode_child; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "PIL" in loaded
    assert {"torch", "timm", "matplotlib", "fastapi", "av"}.isdisjoint(loaded)


def test_other_formats_are_refused(decoder: Decoder) -> None:
    Image.init()
    refused = [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"qoif" + bytes(100), b"<svg/>", b"%PDF-1.4"]
    decoded = set()
    for kind in sorted(Image.SAVE):
        try:
            data = encode(Image.new("RGB", (64, 64), "red"), kind)
        except Exception:
            continue  # Pillow writes it from other modes only
        if kind in (*FORMATS, "MPO"):  # a camera's JPEG of several pictures
            pixels = decoder.decode(data, 10_000, 30)
            np.testing.assert_allclose(pixels.reshape(-1, 3).mean(0), [255, 0, 0], atol=3)
            decoded.add(kind)
        else:
            refused.append(data)
    assert set(FORMATS) <= decoded
    for data in refused:
        with pytest.raises(DensescoreError, match="not an image of a kind that is taken here"):
            decoder.decode(data, 10_000, 30)


def test_a_slow_or_dead_process_is_replaced() -> None:
    decoder = Decoder()
    noise = png(1500, 1500)
    assert decoder.decode(noise, 10**7, 60).shape == (1500, 1500, 3)
    limits = Path(f"/proc/{decoder._process.pid}/limits")
    if limits.exists():
        line = next(line for line in limits.read_text().splitlines() if line.startswith("Max address space"))
        assert int(line.split()[3]) < 2**36
    before = decoder._process.pid
    with pytest.raises(TooSlowError, match=r"not decoded within 0\.001 seconds"):
        decoder.decode(noise, 10**7, 0.001)
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    assert decoder.decode(png(), 10**7, 60).shape == (30, 40, 3)
    os.kill(decoder._process.pid, signal.SIGKILL)
    decoder._process.wait()
    assert decoder.decode(png(), 10**7, 60).shape == (30, 40, 3)
    decoder.close()


def test_pixels_are_counted_before_they_are_decoded(decoder: Decoder) -> None:
    for side in (101, 30_000):  # Pillow itself refuses the second
        with pytest.raises(TooLargeError, match=f"{side}×{side} = {side * side:,} pixels; at most 10,000"):
            decoder.decode(flat(side, side, "1"), 10_000, 30)
