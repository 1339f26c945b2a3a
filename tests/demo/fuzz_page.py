"""Malformed requests to a running page, for `tests.fuzz`: each gets an answer, or an error in the one form."""

import json
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

from densescore import DensescoreError, DenseScorer
from densescore.demo.limits import Limits
from densescore.demo.service import Service
from tests.demo.conftest import running
from tests.demo.raw import connect, form, post, read_all

_PATHS = ("score", "map", "view", "maps", "models", "health", "", "page.js", "examples", "examples/0", "openapi.json",
          "queue/join", "file=/etc/passwd", "../../etc/passwd", "%2e%2e/%00", "//", "*")  # fmt: skip
_VALUES = ("a", "", "0", "1", "-1", "1e9", "99999999999999999999", "%00", "%ff", "/etc/passwd", "http://127.0.0.1:9/",
           "toy", "%F0%9F%92%A3", "nan")  # fmt: skip
_KINDS = ("application/octet-stream", "image/png", "application/json", "multipart/form-data",
          "multipart/form-data; boundary=edge", "multipart/form-data; boundary=" + "x" * 300, "é", "")  # fmt: skip
_STATUS = {200, 400, 404, 405, 413, 421, 422, 429, 431, 503}


class PageFuzz:
    """A server in this process, and requests to it: `pictures` are encoded, some broken; `mutate` changes bytes."""

    def __init__(
        self, scorer: DenseScorer, pictures: Sequence[bytes], mutate: Callable[[bytes, random.Random], bytes]
    ) -> None:
        self._pictures, self._mutate = pictures, mutate
        limits = Limits(upload=100_000, pixels=1_000_000, cells=2000, header_seconds=1, idle_seconds=1)
        self._service = Service({"toy": lambda: scorer}, limits)
        self._stack = ExitStack()
        self._port = urlsplit(self._stack.enter_context(running(self._service))).port or 0

    def send(self, source: random.Random) -> None:
        """Send one request; `DensescoreError` if it is refused in the right form, AssertionError for a wrong answer."""
        request = self._request(source)
        broken = source.random() < 0.3
        if broken:
            request = self._mutate(request, source)
        with closing(connect(self._port)) as connection:
            try:
                connection.sendall(request)
                if broken:  # the server would wait for the rest
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was refused before it was whole
            answer = read_all(connection)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not answer and broken:  # cut off: there is nothing to answer
            raise DensescoreError("not a whole request")
        assert head.startswith(b"HTTP/1.1 "), (request[:300], answer[:300])
        status = int(head.split()[1])
        assert status in _STATUS, (status, request[:300], body[:300])
        assert b"root:" not in body
        if status != 200:
            error = json.loads(body)
            assert list(error) == ["error"], error
            raise DensescoreError(error["error"])

    def _request(self, source: random.Random) -> bytes:
        path = source.choice(_PATHS[:4] if source.random() < 0.7 else _PATHS)
        names = source.sample(("model", "top", "patches", "label", "path", "url"), source.randrange(3))
        label = ["label=a"] if path == "map" and source.random() < 0.8 else []
        query = "&".join([*label, *(f"{name}={source.choice(_VALUES)}" for name in names)])
        body = self._mutate(source.choice(self._pictures), source)
        kind = source.choice(_KINDS)
        if kind.endswith("=edge"):
            parts = [
                (f'name="f{i}"; filename="{source.choice(_VALUES)}"', body) for i in range(source.choice((0, 1, 1, 2)))
            ]
            body, kind = form(*parts)
            body = self._mutate(body, source) if source.random() < 0.3 else body
        request = post(f"{path}{'?' if query else ''}{query}", body, kind)
        return request if source.random() < 0.9 else request.replace(b"POST", source.choice((b"GET", b"PUT", b"X")), 1)

    def close(self) -> None:
        """End the server; it must still be there."""
        self._stack.close()
        self._service.close()
