"""Files of the server and addresses, named in every way; forms; the one form of errors."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.demo.raw import exchange, form, post
from tests.demo.test_http import call
from tests.demo.test_service import png

POSTS = ("score", "map?label=a", "view", "maps")


class Canary(BaseHTTPRequestHandler):
    """Notes who asks."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png())


@pytest.fixture
def canary() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    with HTTPServer(("127.0.0.1", 0), type("Here", (Canary,), {"asked": asked})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/canary.png", asked
        server.shutdown()


def test_no_way_of_naming_a_file_or_an_address_reads_it(
    start: Any, tmp_path: Path, canary: tuple[str, list[str]]
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(seed=7))
    _, port = start()
    address, asked = canary
    names = [str(secret), secret.as_uri(), address, "/dev/zero", "/etc/shadow", str(tmp_path), str(tmp_path / "none")]
    for path in POSTS:
        for name in names:
            mark = {"_type": "gradio.FileData"}
            said = set()
            for named in (
                {"path": name, "meta": mark},
                {"path": name, "url": name, "meta": mark},
                {"data": [{"path": name, "meta": mark}], "fn_index": 0, "session_hash": "x"},
                {"url": name},
            ):
                body = json.dumps(named).encode()
                status, answer = exchange(port, post(path, body, "application/json"))
                assert status == 422
                said.add(answer.replace(f"image of {len(body)} bytes".encode(), b""))
            assert len(said) == 1, "an error tells what is there"
            for body, kind in (
                (name.encode(), "text/plain"),
                form((f'name="file"; filename="{name}"', name.encode())),
                (f"file={quote(name)}".encode(), "application/x-www-form-urlencoded"),
            ):
                status, answer = exchange(port, post(path, body, kind))
                assert status == 422, (path, name, kind)
            status, _ = exchange(port, post(path, *form(('name="file"', name.encode()))))
            assert status == 400
            query = f"{path}{'&' if '?' in path else '?'}path={quote(name)}&file={quote(name)}&url={quote(name)}"
            status, _ = exchange(port, post(query, b""))
            assert status == 422
    assert asked == []


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_there_is_no_other_way_in(start: Any, tmp_path: Path, canary: tuple[str, list[str]], method: str) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(seed=7))
    example = tmp_path / "example.png"
    example.write_bytes(png(seed=8))
    _, port = start(examples=[str(example)])
    address, asked = canary
    for name in (str(secret), address, "../secret.png", "..%2fsecret.png", "%2e%2e/secret.png", str(example)):
        for path in (
            *(f"gradio_api/{route}" for route in ("queue/join", "run/predict", "call/score", "api/score", "upload")),
            *(f"{prefix}{route}={name}" for prefix in ("", "gradio_api/") for route in ("file", "proxy")),
            *(f"{folder}/{name}" for folder in ("examples", "static", "assets", "file", "page.css", "stream")),
            "queue/join",
            "config",
        ):
            body = json.dumps({"data": [{"path": name, "url": name, "meta": {"_type": "gradio.FileData"}}]}).encode()
            request = post(path, body, "application/json").replace(b"POST", method.encode(), 1)
            status, answer = exchange(port, request)
            assert status in (404, 405, 422), path
            assert list(json.loads(answer)) == ["error"]
    assert asked == []


def test_a_form_is_the_same_as_a_raw_body(start: Any) -> None:
    url, port = start()
    raw = json.loads(call(f"{url}/score", png())[1])
    body, kind = form(('name="note"', b"a cat"), ('name="file"; filename="cat.png"', png()))
    assert json.loads(call(f"{url}/score", body, Content_Type=kind)[1]) == raw
    for parts in (
        [(f'name="f{i}"; filename="{i}.png"', b"x") for i in range(300)],
        [('name="a"; filename="a"', png())] * 2,
        [('name="a"', b"x")],
        [(f'name="{i}"', b"") for i in range(50)],
    ):
        status, answer = exchange(port, post("score", *form(*parts)))
        assert status == 400
        assert list(json.loads(answer)) == ["error"]
    status, answer = exchange(port, post("score", *form(('name="file"; filename="a"', bytes(230_000)))))
    assert status == 413


def test_every_error_has_one_form(start: Any) -> None:
    _, port = start()
    get = b"GET /%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for request, expected in (
        (get % b"nowhere", 404),
        (get % b"score", 405),
        (get % b"examples/0", 404),
        (get % b"examples/x", 422),
        (post("score?top=0", png()), 422),
        (post("score?top=many", png()), 422),
        (post("score?model=%ff%00", png()), 422),
        (post("map", png()), 422),
        (post("score", bytes(300_000)), 413),
        (post("score", b"", "multipart/form-data"), 400),
        (post("score", b"--x", "multipart/form-data; boundary=edge"), 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000, 400),
        (b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ):
        status, body = exchange(port, request)
        assert status == expected, request[:60]
        assert list(json.loads(body)) == ["error"], request[:60]
        assert json.loads(body)["error"]
