"""Uvicorn with quotas for each client and an end to every wait, in front of the page and the HTTP API."""

import asyncio
import logging
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from densescore.demo.api import build_api, error_response
from densescore.demo.limits import BusyError, Clients, TooManyError
from densescore.demo.service import Service

_HEADER_BYTES = 16_384
_GRACE_SECONDS = 3  # time for requests in work, after a signal
_LINGER_SECONDS = 3  # time to read the reason of a refusal
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_PIECE = 2**18  # bytes; the server waits after each until the client has taken most of it

# The page needs its own files, and pictures that it makes itself. Nothing else may be loaded, and no site may frame it.
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src 'self' data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'self'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-cache",
}


def build_app(
    service: Service,
    examples: Sequence[str] = (),
    *,
    root_path: str | None = None,
    proxies: Sequence[str] = (),
    allowed_hosts: Sequence[str] = (),
) -> FastAPI:
    """The page at ``/`` and the HTTP API, behind the quotas; answers to localhost and the `allowed_hosts` only.

    ``X-Forwarded-For`` is trusted from the addresses or networks in `proxies` only; `root_path` is the proxy's path.
    """
    clients = Clients(service.limits, proxies)
    app = build_api(service, clients, examples)
    app.root_path = root_path or ""
    app.add_middleware(Guard, clients=clients, hosts={*_LOCAL, *map(_as_host, allowed_hosts)})
    if proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(proxies))
    return app


def _as_host(name: str) -> str:
    """A name as browsers send it: an IPv6 address in brackets."""
    return f"[{name.lower()}]" if ":" in name and not name.startswith("[") else name.lower()


def make_server(app: FastAPI, host: str, port: int) -> uvicorn.Server:
    """A server of `build_app`'s result, with limits on connections."""
    config = uvicorn.Config(
        app,
        host,
        port,
        http=partial(TimedProtocol, app.state.clients, {}),
        ws="none",
        lifespan="off",
        proxy_headers=False,  # `build_app` adds its own, which trusts the named proxies only
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        log_level="error",  # clients' mistakes are answered; they must not fill the log
    )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    return uvicorn.Server(config)


class Guard:
    """Middleware: refuses hosts other than `hosts` (DNS rebinding), and counts a client's requests and held bytes.

    Endpoints find ``request.state.client``, and ``request.state.hold(n)``, which counts n more bytes.
    """

    def __init__(self, app: ASGIApp, clients: Clients, hosts: Collection[str]) -> None:
        self.app, self.clients, self.hosts = app, clients, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        named = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
        if len(named) != 1 or re.sub(r":\d*$", "", named[0]) not in self.hosts:
            message = f"no host {', '.join(named)!r} here: name it by `--allowed-host`"
            return await error_response(421, message)(scope, receive, send)
        client = self.clients.key(scope["client"][0]) if scope.get("client") else ""
        try:
            with self.clients.requests.lease(client, 1), self.clients.held.lease(client) as hold:
                scope.setdefault("state", {}).update(client=client, hold=hold)
                await self.app(scope, receive, _in_pieces(send))
        except BusyError as error:
            await error_response(error.status, str(error))(scope, receive, send)
        except asyncio.CancelledError:  # the server ends; there is nobody to tell
            return


def _in_pieces(send: Send) -> Send:
    """Add the security headers, and send large bodies piece by piece, each copied only when the client takes it."""

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*{**_HEADERS, **dict(message["headers"])}.items()]
            return await send(message)
        body, more = memoryview(message.get("body", b"")), message.get("more_body", False)
        last = max(0, len(body) - 1) // _PIECE * _PIECE
        for start in range(0, last, _PIECE):
            piece = bytes(body[start : start + _PIECE])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": bytes(body[last:]), "more_body": more})

    return sender


class _Connection(h11.Connection):
    """A connection that also refuses a long header that arrives in one piece."""

    def next_event(self) -> Any:
        """The next event, which raises for a header that is too long."""
        waits = self.their_state is h11.IDLE
        before = len(self.trailing_data[0]) if waits else 0
        event = super().next_event()
        if isinstance(event, h11.Request) and before - len(self.trailing_data[0]) > _HEADER_BYTES:
            raise h11.RemoteProtocolError("the header is too long", error_status_hint=431)
        return event


class TimedProtocol(H11Protocol):
    """A connection, closed when a header, a body or the taking of an answer lasts too long.

    `idle` holds the server's connections that wait for a header, longest wait first.
    """

    def __init__(self, clients: Clients, idle: "dict[TimedProtocol, None]", **options: Any) -> None:
        super().__init__(**options)
        self.conn = _Connection(h11.SERVER, max_incomplete_event_size=_HEADER_BYTES)
        self._idle = idle
        self._clients, self._quota, self._limits = clients, clients.connections, clients.limits
        self._client: str | None = None
        self._counted = False  # in the quota
        self._phase: str | None = None
        self._ends = 0.0  # of the phase, by the loop's clock
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Count the connection, or refuse it."""
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        shared = not host or self._clients.is_proxy(host)  # one proxy has the connections of many clients
        self._client = None if shared else self._clients.key(host)
        try:
            self._take_place()
        except BusyError as error:
            self._refuse(error.status, str(error))
        else:
            self._enter()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back the connection's place."""
        super().connection_lost(exc)
        self._give_place()
        for timer in (self._timer, self._stall):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes in; each gives a body a little more time, within the time of the whole body."""
        if self._refused:
            return
        super().data_received(data)
        if self._phase == "body":
            self._arm(min(self._limits.idle_seconds, self._ends - self.loop.time()))

    def handle_events(self) -> None:
        """Notice the end of a header or a body."""
        super().handle_events()
        self._enter()

    def on_response_complete(self) -> None:
        """Wait for the next request, or drop a client that still sends an unwanted body."""
        self._phase = None
        super().on_response_complete()
        self._enter()

    def pause_writing(self) -> None:
        """Give a client that does not take the answer a little time."""
        super().pause_writing()
        self._stall = self.loop.call_later(self._limits.idle_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the clock of `pause_writing`."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(400, msg)
        else:
            self.transport.close()

    def _take_place(self) -> None:
        """Count this connection; beyond the quota, the longest idle one of all, or of this client, gives way."""
        while True:
            try:
                self._quota.take(self._client)
            except BusyError as error:
                one = isinstance(error, TooManyError)
                idle = next((other for other in self._idle if not one or other._client == self._client), None)
                if idle is None:
                    raise
                idle._give_place()
                idle.transport.abort()
            else:
                self._counted = True
                return

    def _give_place(self) -> None:
        self._idle.pop(self, None)
        if self._counted:
            self._counted = False
            self._quota.give(self._client)

    def _enter(self) -> None:
        """Start the clock of the connection's phase."""
        if self.transport.is_closing() or self._refused:
            return
        phase, limits = self._current_phase(), self._limits
        if phase == self._phase:
            return
        self._phase = phase
        self._idle.pop(self, None)
        if phase == "header":
            self._idle[self] = None
        seconds = {
            "header": limits.header_seconds,
            "body": limits.seconds,
            "unwanted": _LINGER_SECONDS,
            "answer": limits.seconds + limits.answer_seconds,
        }[phase]
        self._ends = self.loop.time() + seconds
        self._arm(min(seconds, limits.idle_seconds) if phase == "body" else seconds)

    def _current_phase(self) -> str:
        if self.conn.their_state is h11.IDLE:
            return "header"
        if self.conn.their_state is h11.SEND_BODY:
            return "unwanted" if self.conn.our_state is h11.DONE else "body"
        return "answer"

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(max(seconds, 0), self.transport.abort)

    def _refuse(self, status: int, message: str) -> None:
        """Send the reason in a line of JSON, read no more, and close."""
        self._refused = True
        response = error_response(status, message)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
        head += b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        self.transport.write(head + b"connection: close\r\n\r\n" + response.body)
        with suppress(OSError):  # the client has left
            if self.transport.can_write_eof():
                self.transport.write_eof()
        self._arm(_LINGER_SECONDS)
