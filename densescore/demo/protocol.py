"""Uvicorn's HTTP protocol with an end to every wait, and a limit on connections."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from densescore.demo.guard import error_response
from densescore.demo.limits import BusyError, Clients, Held, TooManyError

_LINGER = 3  # seconds in which a refused client may still read why


class TimedProtocol(H11Protocol):
    """One connection. It is closed when a header, a body or the taking of an answer lasts too long.

    Args:
        clients: quotas of connections; their limits have the times.
        options: uvicorn's own.
    """

    def __init__(self, clients: Clients, **options: Any) -> None:
        super().__init__(**options)
        self._clients, self._limits = clients, clients.limits
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
        self._held = Held(self._clients.connections, None if shared else self._clients.key(host))
        try:
            self._held.take(1)
        except BusyError as error:
            self._refuse(429 if isinstance(error, TooManyError) else 503, str(error))
        else:
            self._enter()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back the connection's place."""
        super().connection_lost(exc)
        self._held.__exit__()
        for timer in (self._timer, self._stall):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes in; each gives a body a little more time, within what the whole of it has."""
        if self._refused:
            return
        super().data_received(data)
        if self._phase == "body":
            self._arm(min(self._limits.idle_seconds, self._ends - self.loop.time()))

    def handle_events(self) -> None:
        """See whether a header or a body is complete."""
        super().handle_events()
        self._enter()

    def on_response_complete(self) -> None:
        """Wait for the next request, or let go of a client that goes on sending what is not wanted."""
        self._phase = None
        super().on_response_complete()
        self._enter()

    def pause_writing(self) -> None:
        """The client does not take the answer: wait a little."""
        super().pause_writing()
        self._stall = self.loop.call_later(self._limits.idle_seconds, self._end)

    def resume_writing(self) -> None:
        """The client goes on taking the answer."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(400, msg)
        else:
            self.transport.close()

    def _enter(self) -> None:
        """Start the clock of the phase that the connection is in now."""
        if self.transport.is_closing() or self._refused:
            return
        phase, limits = self._current(), self._limits
        if phase == self._phase:
            return
        self._phase = phase
        seconds = {
            "header": limits.header_seconds,
            "body": limits.seconds,
            "unwanted": _LINGER,
            "answer": limits.seconds + limits.answer_seconds,
        }[phase]
        self._ends = self.loop.time() + seconds
        self._arm(min(seconds, limits.idle_seconds) if phase == "body" else seconds)

    def _current(self) -> str:
        if self.conn.their_state is h11.IDLE:
            return "header"
        if self.conn.their_state is h11.SEND_BODY:
            return "unwanted" if self.conn.our_state is h11.DONE else "body"
        return "answer"

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(max(seconds, 0), self._end)

    def _end(self) -> None:
        self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        """Say why in a line of JSON, read no more, and close."""
        self._refused = True
        code, headers, body = error_response(status, message)
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        phrase = {400: "Bad Request", 429: "Too Many Requests", 503: "Service Unavailable"}[code]
        self.transport.write(f"HTTP/1.1 {code} {phrase}\r\n".encode() + head + b"connection: close\r\n\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._arm(_LINGER)
