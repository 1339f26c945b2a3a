"""Many clients, slow ones, and those that leave; signals."""

import io
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from densescore import DenseScorer
from tests.demo.conftest import LIMITS
from tests.demo.raw import can_connect, connect, exchange, post, read_all, wait_until
from tests.demo.test_http import call
from tests.demo.test_service import png

QUICK = replace(LIMITS, header_seconds=0.5, idle_seconds=0.5, seconds=2, answer_seconds=1)


def test_health_answers_while_an_image_is_scored(start: Any, toy: DenseScorer) -> None:
    go = threading.Event()

    def slow() -> DenseScorer:
        assert go.wait(30)
        return toy

    url, port = start(model=slow)
    assert json.loads(call(f"{url}/health")[1]) == {"model": "toy", "ready": False, "queue": {"images": 0, "most": 9}}
    with closing(connect(port, post("score", png()))) as connection:
        wait_until(lambda: json.loads(call(f"{url}/health")[1])["queue"]["images"] == 1)
        go.set()
        assert b" 200 OK" in read_all(connection)
    wait_until(lambda: json.loads(call(f"{url}/health")[1])["queue"]["images"] == 0)
    assert json.loads(call(f"{url}/health")[1])["ready"]


def test_one_client_cannot_fill_the_queue(start: Any, toy: DenseScorer) -> None:
    go = threading.Event()

    def slow() -> DenseScorer:
        assert go.wait(30)
        return toy

    url, port = start(replace(LIMITS, images=2), model=slow, proxies=["127.0.0.0/8"])
    mine = [connect(port, post("score", png())) for _ in range(2)]
    wait_until(lambda: json.loads(call(f"{url}/health")[1])["queue"]["images"] == 2)
    status, body, headers = call(f"{url}/score", png())
    assert (status, headers["Retry-After"]) == (429, "5")
    assert "one client may have 2" in json.loads(body)["error"]
    other = connect(port, post("score", png()).replace(b"Host: x", b"Host: x\r\nX-Forwarded-For: 10.1.2.3"))
    wait_until(lambda: json.loads(call(f"{url}/health")[1])["queue"]["images"] == 3)
    go.set()
    for connection in (*mine, other):
        assert b" 200 OK" in read_all(connection)
        connection.close()


def test_a_forwarded_address_counts_only_from_a_trusted_proxy(start: Any) -> None:
    url, port = start(replace(LIMITS, images=1, seconds=5))
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"
    with closing(connect(port, head)):
        time.sleep(0.2)
        status, _, _ = call(f"{url}/score", png(), X_Forwarded_For="10.0.0.2")
    assert status == 429


@pytest.mark.parametrize(
    "sent",
    [
        (),
        (b"GET / HTTP/1.1\r\nHo",),
        (b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc",),
        (b"POST /models HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nabc",),
        (b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n",),
        (b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /"),
    ],
    ids=["nothing", "half a header", "half a body", "an unwanted body", "kept alive", "half a second header"],
)
@pytest.mark.parametrize("trickle", [False, True], ids=["then silent", "then byte by byte"])
def test_waits_end(start: Any, sent: tuple[bytes, ...], trickle: bool) -> None:
    _, port = start(QUICK)
    with closing(connect(port, *sent)) as connection:
        if trickle:
            stop = time.monotonic() + 30
            with pytest.raises((BrokenPipeError, ConnectionResetError)):  # the server has closed it
                while time.monotonic() < stop:
                    connection.sendall(b"a")
                    time.sleep(0.05)
        else:
            read_all(connection)  # returns: the server has closed it


def test_an_answer_that_is_not_taken_is_dropped(start: Any) -> None:
    _, port = start(QUICK)
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        large = io.BytesIO()
        Image.new("L", (1000, 1000)).save(large, "png")
        connection.sendall(post("map?label=a", large.getvalue(), close=False))
        time.sleep(3)
        connection.settimeout(30)
        assert len(read_all(connection)) < 4_000_000  # of a map of so many bytes


def test_bytes_that_a_client_holds_are_bounded_until_they_are_sent(start: Any) -> None:
    url, port = start(replace(LIMITS, client_held=5_000_000))
    large = io.BytesIO()
    Image.new("L", (1000, 1000)).save(large, "png")
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(post("map?label=a", large.getvalue()))
        assert connection.recv(15).startswith(b"HTTP/1.1 200 OK")
        assert call(f"{url}/map?label=a", large.getvalue())[0] == 429
        assert b"NUMPY" in read_all(connection)
    wait_until(lambda: call(f"{url}/map?label=a", large.getvalue())[0] == 200)


def test_connections_are_bounded(start: Any) -> None:
    url, port = start(replace(LIMITS, client_connections=3, connections=50))
    first = [connect(port) for _ in range(3)]
    status, body = exchange(port, b"")
    assert status == 429
    assert "one client may have 3" in json.loads(body)["error"]
    for connection in first:
        connection.close()
    wait_until(lambda: call(f"{url}/models")[0] == 200)

    _, port = start(replace(LIMITS, client_connections=3, connections=5), proxies=["127.0.0.1"])
    first = [connect(port) for _ in range(5)]
    status, body = exchange(port, b"")
    assert status == 503
    assert "all 5 are in use" in json.loads(body)["error"]
    for connection in first:
        connection.close()


def test_a_client_that_leaves_frees_its_place_and_leaves_no_trace(
    start: Any, toy: DenseScorer, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()

    def slow() -> DenseScorer:
        assert go.wait(30)
        return toy

    url, port = start(model=slow)
    logging.getLogger("uvicorn.error").addHandler(caplog.handler)
    try:
        connections = [connect(port, post("score", png())) for _ in range(3)]
        wait_until(lambda: json.loads(call(f"{url}/health")[1])["queue"]["images"] == 3)
        connections.append(connect(port, post("score", png())[:-10]))  # leaves within the body
        for connection in connections:
            connection.close()
        wait_until(lambda: json.loads(call(f"{url}/health")[1])["queue"]["images"] == 1)
        go.set()
        wait_until(lambda: json.loads(call(f"{url}/health")[1])["queue"]["images"] == 0)
        assert call(f"{url}/score", png())[0] == 200
    finally:
        logging.getLogger("uvicorn.error").removeHandler(caplog.handler)
    assert caplog.text == ""


SLOW_SCORE = """
import sys, time
from densescore import DenseScorer
from densescore.cli.main import app
def slow(*args, **options):
    print("scoring", flush=True)
    time.sleep(600)
DenseScorer.score = slow
app(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_whatever_goes_on(number: signal.Signals) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["demo", "--scales", "1", "--runtime", "torch", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SCORE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: can_connect(port))
        busy = [
            connect(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),  # a page that is open
            connect(port, b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc"),  # a slow upload
            connect(port, b"GET / HT"),
            connect(port, post("score", png(300, 300))),
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
