"""Many clients, slow ones, and those that leave; signals."""

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest

from tests.demo import raw
from tests.demo.conftest import LIMITS, Gate

Start = Callable[..., tuple[str, int]]
QUICK = replace(LIMITS, header_seconds=0.5, idle_seconds=0.5, seconds=2, answer_seconds=1)


def health(url: str) -> Any:
    return json.loads(raw.call(f"{url}/health")[1])


def wait_for_queue(url: str, images: int) -> None:
    raw.wait_until(lambda: health(url)["queue"]["images"] == images)


def test_health_answers_while_an_image_is_scored(start: Start, gate: Gate) -> None:
    url, port = start(model=gate)
    assert health(url) == {"model": "toy", "ready": False, "queue": {"images": 0, "most": 9}}
    with closing(raw.connect(port, raw.post("score", raw.png()))) as connection:
        wait_for_queue(url, 1)
        gate.go.set()
        assert b" 200 OK" in raw.read_all(connection)
    wait_for_queue(url, 0)
    assert health(url)["ready"]


def test_one_client_cannot_fill_the_queue(start: Start, gate: Gate) -> None:
    url, port = start(replace(LIMITS, images=2), model=gate, proxies=["127.0.0.0/8"])
    mine = [raw.connect(port, raw.post("score", raw.png())) for _ in range(2)]
    wait_for_queue(url, 2)
    status, body, headers = raw.call(f"{url}/score", raw.png())
    assert (status, headers["Retry-After"]) == (429, "5")
    assert "one client may have 2" in json.loads(body)["error"]
    other = raw.connect(
        port, raw.post("score", raw.png()).replace(b"Host: localhost", b"Host: localhost\r\nX-Forwarded-For: 10.1.2.3")
    )
    wait_for_queue(url, 3)
    gate.go.set()
    for connection in (*mine, other):
        assert b" 200 OK" in raw.read_all(connection)
        connection.close()


def test_a_crowd_is_refused_and_late_answers_are_not_awaited(start: Start, gate: Gate) -> None:
    url, _ = start(replace(LIMITS, seconds=3, waiting=1, images=5), model=gate)
    with ThreadPoolExecutor(5) as crowd:
        answers = list(crowd.map(lambda seed: raw.call(f"{url}/score", raw.png(seed=seed)), range(5)))
    assert sorted(status for status, _, _ in answers) == [503, 503, 503, 504, 504]
    assert {headers["Retry-After"] for status, _, headers in answers if status == 503} == {"5"}


def test_a_forwarded_address_counts_only_from_a_trusted_proxy(start: Start) -> None:
    url, port = start(replace(LIMITS, images=1, seconds=5))
    head = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"
    with closing(raw.connect(port, head)):
        time.sleep(0.2)
        status, _, _ = raw.call(f"{url}/score", raw.png(), X_Forwarded_For="10.0.0.2")
    assert status == 429


@pytest.mark.parametrize(
    "sent",
    [
        (),
        (b"GET / HTTP/1.1\r\nHo",),
        (b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc",),
        (b"POST /models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\nabc",),  # an unwanted body
        (b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n",),  # kept alive
        (b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /"),
    ],
)
@pytest.mark.parametrize("trickle", [False, True], ids=["then silent", "then byte by byte"])
def test_waits_end(start: Start, sent: tuple[bytes, ...], trickle: bool) -> None:
    _, port = start(QUICK)
    with closing(raw.connect(port, *sent)) as connection:
        if trickle:
            stop = time.monotonic() + 30
            with pytest.raises((BrokenPipeError, ConnectionResetError)):  # the server has closed it
                while time.monotonic() < stop:
                    connection.sendall(b"a")
                    time.sleep(0.05)
        else:
            raw.read_all(connection)  # returns when the server has closed it


def test_an_answer_that_is_not_taken_is_dropped(start: Start) -> None:
    _, port = start(QUICK)
    request = raw.post("map?label=a", raw.flat(1000, 1000), close=False)
    with closing(raw.connect(port, request, slow=True)) as connection:
        time.sleep(3)
        assert len(raw.read_all(connection)) < 4_000_000  # bytes of the map


def test_bytes_of_a_client_are_bounded_until_they_are_sent(start: Start) -> None:
    url, port = start(replace(LIMITS, client_held=5_000_000))
    picture = raw.flat(1000, 1000)
    with closing(raw.connect(port, raw.post("map?label=a", picture), slow=True)) as connection:
        assert connection.recv(15).startswith(b"HTTP/1.1 200 OK")
        assert raw.call(f"{url}/map?label=a", picture)[0] == 429
        assert b"NUMPY" in raw.read_all(connection)
    raw.wait_until(lambda: raw.call(f"{url}/map?label=a", picture)[0] == 200)


def begin_a_body(port: int, number: int) -> socket.socket:
    """A connection whose header the server has read, of one client of a proxy."""
    head = f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nX-Forwarded-For: 10.0.0.{number}\r\n"
    connection = raw.connect(port, head.encode() + b"Expect: 100-continue\r\n\r\n")
    assert b"100 Continue" in connection.recv(1000)
    return connection


@pytest.mark.parametrize(
    ("proxies", "status", "message"), [((), 429, "one client may have 3"), (("127.0.0.1",), 503, "all 5 are in use")]
)
def test_connections_are_bounded(start: Start, proxies: tuple[str, ...], status: int, message: str) -> None:
    limits = replace(LIMITS, client_connections=3, connections=5, images=5)
    url, port = start(limits, proxies=proxies)
    first = [begin_a_body(port, number) for number in range(5 if proxies else 3)]
    answered, body = raw.exchange(port, raw.get("models"))
    assert answered == status
    assert message in json.loads(body)["error"]
    for connection in first:
        connection.close()
    raw.wait_until(lambda: raw.call(f"{url}/models")[0] == 200)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHo", b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_idle_connections_give_way(start: Start, sent: bytes) -> None:
    url, port = start(replace(LIMITS, client_connections=5, connections=8, header_seconds=600))
    idle = [raw.connect(port, sent) for _ in range(30)]
    assert raw.call(f"{url}/score", raw.png())[0] == 200
    for connection in idle:
        connection.close()


def test_a_client_that_leaves_frees_its_place(start: Start, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    url, port = start(model=gate)
    log = logging.getLogger("uvicorn.error")
    with ExitStack() as stack:
        log.addHandler(caplog.handler)
        stack.callback(log.removeHandler, caplog.handler)
        connections = [raw.connect(port, raw.post("score", raw.png())) for _ in range(3)]
        wait_for_queue(url, 3)
        connections.append(raw.connect(port, raw.post("score", raw.png())[:-10]))  # leaves within the body
        for connection in connections:
            connection.close()
        wait_for_queue(url, 1)
        gate.go.set()
        wait_for_queue(url, 0)
        assert raw.call(f"{url}/score", raw.png())[0] == 200
    assert caplog.text == ""


SLOW_SCORE = """
import sys, time
from densescore import DenseScorer
from densescore.cli.main import run
def slow(*args, **options):
    print("scoring", flush=True)
    time.sleep(600)
DenseScorer.score = slow
run()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_busy_server(number: signal.Signals) -> None:
    pytest.importorskip("uvicorn")
    port = raw.free_port()
    words = ["demo", "--scales", "1", "--runtime", "torch", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SCORE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        # loading takes a minute on a busy machine
        raw.wait_until(lambda: raw.can_connect(port) or process.poll() is not None, 300)
        busy = [
            raw.connect(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),  # a page that is open
            raw.connect(
                port, b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"
            ),  # a slow upload
            raw.connect(port, b"GET / HT"),
            raw.connect(port, raw.post("score", raw.png(300, 300))),
        ]
        assert process.stdout is not None
        assert process.stdout.readline() == "scoring\n"
        process.send_signal(number)
        _, log = process.communicate(timeout=60)
        for connection in busy:
            connection.close()
    finally:
        process.kill()
    assert "Traceback" not in log
