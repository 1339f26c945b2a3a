"""Pictures, and requests both as clients and as no browser sends them."""

import io
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
from PIL import Image


def png(height: int = 30, width: int = 40, seed: int = 0) -> bytes:
    """Noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return encode(Image.fromarray(noise))


def flat(height: int, width: int, mode: str = "L") -> bytes:
    """A picture of many pixels and few bytes."""
    return encode(Image.new(mode, (width, height)))


def encode(image: Image.Image, kind: str = "png") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def call(url: str, data: Any = None, **headers: str) -> tuple[int, bytes, Any]:
    """Status, body and headers of a client's request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, named), timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def connect(port: int, *sent: bytes, slow: bool = False) -> socket.socket:
    """A connection that has sent some bytes; a `slow` client takes few bytes until it reads."""
    connection = socket.socket()
    connection.settimeout(30)
    if slow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    for part in sent:
        connection.sendall(part)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def exchange(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of one raw request."""
    with closing(connect(port, request)) as connection:
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def get(path: str, host: str = "localhost") -> bytes:
    return f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def post(path: str, body: bytes, kind: str = "application/octet-stream", *, close: bool = True) -> bytes:
    head = f"POST /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + (b"Connection: close\r\n" if close else b"") + b"\r\n" + body


def form(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    body = b"".join(
        f"--edge\r\nContent-Disposition: form-data; {names}\r\n\r\n".encode() + data + b"\r\n" for names, data in parts
    )
    return body + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def can_connect(port: int) -> bool:
    try:
        connect(port).close()
    except OSError:
        return False
    return True


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
