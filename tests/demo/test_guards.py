"""What keeps strangers out: names of the server, long headers, costly files, turns, and the decoder's end."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, TiffImagePlugin

from densescore import DensescoreError
from densescore.demo.decode_child import FORMATS, _pages, _scans
from densescore.demo.decoder import Decoder
from densescore.demo.limits import Limits
from densescore.demo.service import Answer, Service
from tests.demo import raw
from tests.demo.conftest import Gate

Start = Callable[..., tuple[str, int]]


KNOWN = ("localhost", "LocalHost", "127.0.0.1", "[::1]", "www.example.org", "[2001:db8::1]")
FOREIGN = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "example.org", "", "127.0.0.2", "[::2]",
           "localhost@evil.example", "evil.example#localhost")  # fmt: skip


def test_the_server_answers_to_its_names(start: Start) -> None:
    _, port = start(allowed_hosts=["WWW.example.org", "2001:db8::1"])
    for host, suffix, path in product((*KNOWN, *FOREIGN), ("", ":80", ":7860"), ("", "models")):
        status, body = raw.exchange(port, raw.get(path, host + suffix))
        assert status == (200 if host in KNOWN else 421), (host, suffix)
        assert host in KNOWN or "--allowed-host" in json.loads(body)["error"]
    for lines, version in product((b"", b"Host: localhost\r\nHost: evil.example\r\n"), (b"1.0", b"1.1")):
        assert raw.exchange(port, b"GET /models HTTP/" + version + b"\r\n" + lines + b"\r\n")[0] in (400, 421)


@pytest.mark.parametrize("pieces", [1, 20])
@pytest.mark.parametrize("size", [15_000, 17_000, 60_000])
def test_headers_are_bounded_however_they_arrive(start: Start, size: int, pieces: int) -> None:
    _, port = start()
    request = raw.get("models").replace(b"Connection", b"X: " + b"x" * size + b"\r\nConnection")
    step = -(-len(request) // pieces)
    with closing(raw.connect(port)) as connection:
        try:
            for at in range(0, len(request), step):
                connection.sendall(request[at : at + step])
        except OSError:
            pass  # closed already
        status = int(raw.read_all(connection).split()[1])
    assert (status == 200) == (size < 16_000)
    assert status in (200, 400, 431)


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes `count` times more."""
    data = raw.encode(Image.effect_noise((64, 48), 50), "jpeg")
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).save(stream, "jpeg", progressive=True)
    whole = stream.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * count + whole[-2:]


def test_scans_of_a_jpeg_are_bounded_by_its_pixels(decoder: Decoder) -> None:
    plain = _scans(many_scans(0))
    assert 2 <= plain <= 12
    assert _scans(many_scans(500)) == plain + 500
    assert decoder.decode(many_scans(0), 64 * 48, 30).shape == (48, 64, 3)
    with pytest.raises(DensescoreError, match=f"has {plain + 30} scans, expected at most 20"):
        decoder.decode(many_scans(30), 64 * 48, 30)
    assert decoder.decode(many_scans(30), 10 * 64 * 48, 30).shape == (48, 64, 3)  # a small picture may have more


def chain(pages: int, order: str, big: bool) -> bytes:
    """A TIFF whose first directory is a picture's, followed by empty ones."""
    number, offset, entry = ("Q", "Q", 20) if big else ("H", "L", 12)
    head = struct.pack(order + ("2sHHHQ" if big else "2sHL"), *((b"II" if order == "<" else b"MM"),
                       *((43, 8, 0, 16) if big else (42, 8))))  # fmt: skip
    size = struct.calcsize(order + number) + struct.calcsize(order + offset)
    nexts = [len(head) + size * page for page in range(1, pages)] + [0]
    return head + b"".join(struct.pack(order + number + offset, 0, place) for place in nexts) + bytes(entry)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pages_of_a_tiff_are_bounded(decoder: Decoder, order: str, big: bool) -> None:
    assert [_pages(chain(pages, order, big)) for pages in (1, 7, 1000)] == [1, 7, 1000]
    data = chain(150_001, order, big)
    assert data.startswith(FORMATS["TIFF"])
    with pytest.raises(DensescoreError, match="more than 1000 pages"):
        decoder.decode(data, 10_000, 30)
    assert _pages(data[:-9]) == 1001
    assert _pages(chain(9, order, big)[:60]) < 9  # cut off


def test_what_decoders_say_stays_out_of_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag in range(40_000, 44_000):
        tags[tag] = 1
        tags.tagtype[tag] = 3
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(stream, "tiff", tiffinfo=tags)
    decoder = Decoder()
    for data in (stream.getvalue(), raw.png()[:-20], many_scans(0)[:700]):
        with suppress(DensescoreError):
            decoder.decode(data, 10_000, 30)
    decoder.close()
    assert capfd.readouterr() == ("", "")


def test_clients_take_turns(serving: Callable[..., Service], gate: Gate) -> None:
    service = serving(Limits(seconds=60, waiting=20), gate)
    order: list[str] = []

    def note(client: str) -> Callable[[Answer], Any]:
        return lambda _: order.append(client)

    futures = [service.submit(raw.png(), "toy", note("greedy"), "greedy")]
    assert gate.begun.wait(30)
    clients = ["greedy"] * 6 + ["calm"] * 2 + ["late"]
    futures += [service.submit(raw.png(), "toy", note(client), client) for client in clients]
    gate.go.set()
    for future in futures:
        future.result(30)
    assert sorted(order[1:4]) == sorted(["calm", "late", order[3]])  # the greedy one has used the most time
    assert order[1:5].count("greedy") <= 1
    assert len(order) == 10


SLOW = """
import os, sys, threading, time
import densescore.demo.decode_child as child
from densescore.demo import decoder as module
module._COMMAND = (
    "import sys, time; sys.path[:] = sys.argv[1:]; import densescore.demo.decode_child as child\\n"
    "def slow(data, pixels):\\n    while True: pass\\n"
    "child._decode = slow; child.main()"
)
decoder = module.Decoder()
threading.Thread(target=decoder.decode, args=(b"x" * 100, 10_000, 600), daemon=True).start()
while not decoder._ready:
    time.sleep(0.05)
time.sleep(1)
print(decoder._process.pid, flush=True)
time.sleep(600)
"""


def state(pid: int) -> str:
    """Letter of a process's state; Z or nothing for one that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_decoder_at_work_ends_with_its_parent() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert state(child) in ("R", "S")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        raw.wait_until(lambda: state(child) in ("", "Z"), 20)
    finally:
        if state(child) not in ("", "Z"):
            os.kill(child, signal.SIGKILL)
