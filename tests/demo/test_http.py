"""The HTTP API: answers, errors, and no way to name a file or an address."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra: pip install 'densescore[demo]'")

from densescore import DenseScorer
from tests.demo.raw import call, exchange, form, get, png, post

Start = Callable[..., tuple[str, int]]
SCORING = ("score", "map?label=a", "view", "maps")


def test_scores_and_maps(start: Start, toy: DenseScorer) -> None:
    url, _ = start()
    scores = toy.score(png())
    status, body, headers = call(f"{url}/score?top=2&patches=3", png())
    assert status == 200
    row, best = json.loads(body), scores.top(2)
    assert row["labels"] == [ranked.label for ranked in best]
    assert row["scores"] == pytest.approx([ranked.score for ranked in best], rel=1e-6)
    assert row["confidences"] == pytest.approx([ranked.confidence for ranked in best], rel=1e-6)
    assert row["confidence"] == row["confidences"][0]
    assert row["best_patch"]["score"] == row["best_patches"][0]["score"]
    assert (row["model"], row["height"], row["width"]) == ("Toy", 30, 40)
    assert 0 < len(row["best_patches"]) <= 3
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    status, body, _ = call(f"{url}/map?label=b", png())
    np.testing.assert_array_equal(np.load(io.BytesIO(body)), scores.heatmap("b")[0].numpy())
    assert json.loads(call(f"{url}/models")[1]) == ["toy"]
    described = json.loads(call(f"{url}/openapi.json")[1])["paths"]["/score"]["post"]
    assert {parameter["name"] for parameter in described["parameters"]} == {"model", "classes", "top", "patches"}
    assert "application/octet-stream" in described["requestBody"]["content"]


def test_only_some_classes(start: Start, toy: DenseScorer) -> None:
    url, _ = start()
    selected = toy.score(png()).select(["c", "b"])
    row = json.loads(call(f"{url}/score?classes=%20c,b,", png())[1])
    assert row["labels"] == [best.label for best in selected.top()]
    assert {region["label"] for region in row["regions"]} == {selected.top(1)[0].label}
    classes = json.loads(call(f"{url}/view?classes=b", png())[1])["classes"]
    assert [entry["label"] for entry in classes] == ["b"]
    assert classes[0]["confidence"] == pytest.approx(selected.confidence()[1].item(), rel=1e-6)
    with np.load(io.BytesIO(call(f"{url}/maps?classes=b,a", png())[1])) as maps:
        assert {*maps["labels"].tolist()} == {"a", "b"}


CHUNKED = b"POST /score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
GARBAGE = [(f'name="f{i}"; filename="{i}.png"', b"x") for i in range(300)]


@pytest.mark.parametrize(
    ("request_bytes", "status", "message"),
    [
        (get("nowhere"), 404, ""),
        (get("models/?a=b"), 404, ""),
        (get("score"), 405, ""),
        (get("examples/0"), 404, "there are 0 examples"),
        (get("examples/x"), 422, "number: "),
        # Parameters
        (post("score?top=0", png()), 422, "top: "),
        (post("score?top=many", png()), 422, "top: "),
        (post("score?model=%ff%00", png()), 422, "no model"),
        (post("score?model=../../etc/passwd", png()), 422, "no model '../../etc/passwd'"),
        (post("score?classes=a,d", png()), 422, "no class 'd'"),
        (post("view?classes=" + "a" * 1001, png()), 422, "at most 1000 characters"),
        (post("map", png()), 422, "label: "),
        (post("map?label=d", png()), 422, "no class 'd'"),
        # Bodies
        (post("score", b"not a picture"), 422, "image of 13 bytes: not an image"),
        (post("score", bytes(300_000)), 413, "300,000 bytes; at most 200,000"),
        # Forms
        (post("score", b"", "multipart/form-data"), 400, ""),
        (post("score", b"--x", "multipart/form-data; boundary=edge"), 400, ""),
        (post("score", *form(*GARBAGE)), 400, ""),
        (post("score", *form(*[('name="a"; filename="a"', png())] * 2)), 400, ""),
        (post("score", *form(('name="a"', b"x"))), 400, "must have one file"),
        (post("score", *form(*[(f'name="{i}"', b"") for i in range(50)])), 400, ""),
        (post("score", *form(('name="file"; filename="a"', bytes(230_000)))), 413, ""),
        # Chunks, the size of which nobody states
        (CHUNKED + b"".join(b"%x\r\n%b\r\n" % (n, bytes(n)) for n in (100_000, 100_000, 1)), 413, "200,000 bytes"),
        (CHUNKED + b"zz\r\n", 400, ""),
        # No HTTP
        (b"nonsense\r\n\r\n", 400, ""),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000, 400, ""),
        (b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400, ""),
    ],
    ids=lambda value: value[:40].decode("ascii", "replace") if isinstance(value, bytes) else "",
)
def test_every_error_has_one_form(start: Start, request_bytes: bytes, status: int, message: str) -> None:
    _, port = start()
    answered, body = exchange(port, request_bytes)
    assert answered == status
    error = json.loads(body)
    assert list(error) == ["error"]
    assert error["error"]
    assert message in error["error"]


def test_a_form_equals_a_raw_body(start: Start) -> None:
    url, _ = start()
    body, kind = form(('name="note"', b"a cat"), ('name="file"; filename="cat.png"', png()))
    assert json.loads(call(f"{url}/score", body, Content_Type=kind)[1]) == json.loads(call(f"{url}/score", png())[1])


class Canary(BaseHTTPRequestHandler):
    """Records requests."""

    requests: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png())


@pytest.fixture
def names(tmp_path: Path) -> Iterator[list[str]]:
    """Names of the server's files and of an address, which must not be asked."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(seed=7))
    Canary.requests = []
    with HTTPServer(("127.0.0.1", 0), Canary) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield [str(secret), secret.as_uri(), f"http://127.0.0.1:{server.server_port}/canary.png", str(tmp_path)]
        server.shutdown()
    assert Canary.requests == []


@pytest.mark.parametrize("path", SCORING)
def test_no_file_or_address_is_read(start: Start, tmp_path: Path, names: list[str], path: str) -> None:
    _, port = start()
    for name in (*names, "/dev/zero", "/etc/shadow", str(tmp_path / "none")):
        errors = set()
        for value in ({"path": name}, {"path": name, "url": name}, {"data": [{"path": name}]}, {"url": name}):
            body = json.dumps(value).encode()
            status, answer = exchange(port, post(path, body, "application/json"))
            assert status == 422
            errors.add(answer.replace(f"image of {len(body)} bytes".encode(), b""))
        assert len(errors) == 1, "an error tells what is there"
        query = f"{path}{'&' if '?' in path else '?'}path={quote(name)}&file={quote(name)}&url={quote(name)}"
        for request, expected in (
            (post(path, name.encode(), "text/plain"), 422),
            (post(path, *form((f'name="file"; filename="{name}"', name.encode()))), 422),
            (post(path, f"file={quote(name)}".encode(), "application/x-www-form-urlencoded"), 422),
            (post(path, *form(('name="file"', name.encode()))), 400),
            (post(query, b""), 422),
        ):
            assert exchange(port, request)[0] == expected, request[:300]


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_no_route_takes_a_path(start: Start, tmp_path: Path, names: list[str], method: bytes) -> None:
    example = tmp_path / "example.png"
    example.write_bytes(png(seed=8))
    _, port = start(examples=[str(example)])
    folders = ("examples", "static", "assets", "file", "page.css", "stream")
    for name in (*names, "../secret.png", "..%2fsecret.png", "%2e%2e/secret.png", str(example)):
        body = json.dumps({"data": [{"path": name, "url": name}]}).encode()
        for path in (*(f"{folder}/{name}" for folder in folders), f"file={name}", f"proxy={name}", "upload", "config"):
            status, answer = exchange(port, post(path, body, "application/json").replace(b"POST", method, 1))
            assert status in (404, 405, 422), path
            assert list(json.loads(answer)) == ["error"]
    status, answer = exchange(port, get("examples/0"))
    assert (status, answer) == (200, png(seed=8))
