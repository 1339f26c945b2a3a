"""Raw requests, as no browser sends them."""

import socket
import time
from collections.abc import Callable
from contextlib import closing


def connect(port: int, *sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    for part in sent:
        connection.sendall(part)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """What the server says until it closes the connection."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def exchange(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of one raw request."""
    with closing(connect(port, request)) as connection:
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def post(path: str, body: bytes, kind: str = "application/octet-stream", *, close: bool = True) -> bytes:
    head = f"POST /{path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + (b"Connection: close\r\n" if close else b"") + b"\r\n" + body


def form(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    body = b"".join(
        f"--edge\r\nContent-Disposition: form-data; {names}\r\n\r\n".encode() + data + b"\r\n" for names, data in parts
    )
    return body + b"--edge--\r\n", "multipart/form-data; boundary=edge"


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
