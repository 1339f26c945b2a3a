"""Malformed requests to a running page, for `tests.fuzz`: each is answered, in the one form of errors if it is one."""

import json
import random
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import closing

from densescore import DensescoreError, DenseScorer
from densescore.demo.limits import Limits
from densescore.demo.server import build_app, make_server
from densescore.demo.service import Service
from tests.demo.raw import connect, form, post, read_all, wait_until

_PATHS = ("score", "map", "view", "maps", "models", "health", "", "page.js", "examples", "examples/0", "openapi.json",
          "gradio_api/queue/join", "file=/etc/passwd", "../../etc/passwd", "%2e%2e/%00", "//", "*")  # fmt: skip
_VALUES = ("a", "", "0", "1", "-1", "1e9", "99999999999999999999", "%00", "%ff", "/etc/passwd", "http://127.0.0.1:9/",
           "toy", "%F0%9F%92%A3", "nan")  # fmt: skip
_KINDS = ("application/octet-stream", "image/png", "application/json", "multipart/form-data",
          "multipart/form-data; boundary=edge", "multipart/form-data; boundary=" + "x" * 300, "é", "")  # fmt: skip
_STATUS = {200, 400, 404, 405, 413, 422, 429, 503}


class PageFuzz:
    """A server in this process, and requests to it.

    Args:
        scorer: a small one.
        pictures: encoded images, some broken.
        mutate: changes bytes.
    """

    def __init__(
        self, scorer: DenseScorer, pictures: Sequence[bytes], mutate: Callable[[bytes, random.Random], bytes]
    ) -> None:
        self._pictures, self._mutate = pictures, mutate
        limits = Limits(upload=100_000, pixels=1_000_000, cells=2000, header_seconds=1, idle_seconds=1)
        self._service = Service({"toy": lambda: scorer}, limits)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._server = make_server(build_app(self._service), "127.0.0.1", self._port)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started)

    def send(self, source: random.Random) -> None:
        """One request.

        Raises:
            DensescoreError: it was refused, as it should be.
            AssertionError: no answer, or one that should not be.
        """
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
            said = json.loads(body)
            assert list(said) == ["error"], said
            raise DensescoreError(said["error"])

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
        assert self._thread.is_alive()
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._service.close()
