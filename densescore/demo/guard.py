"""What stands between strangers and the app: quotas of each client, and answers in pieces."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from densescore.demo.limits import BusyError, Clients, Held, TooManyError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_PIECE = 2**18  # bytes; the server waits after each until the client has taken most of it

# The page needs its own files, and pictures that it makes itself. Nothing else may be loaded, and no site may frame it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Guard:
    """Counts the requests of each client, and the bytes that each request holds until its answer is sent.

    An endpoint finds ``request.state.client``, and ``request.state.held`` to count bytes with.

    Args:
        app: what answers.
        clients: the quotas.
    """

    def __init__(self, app: App, clients: Clients) -> None:
        self.app, self.clients = app, clients

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client = self.clients.key(scope["client"][0]) if scope.get("client") else ""
        with Held(self.clients.requests, client) as request, Held(self.clients.held, client) as held:
            scope.setdefault("state", {}).update(client=client, held=held)
            try:
                request.take(1)
                await self.app(scope, receive, _in_pieces(send))
            except BusyError as error:
                status, headers, body = error_response(429 if isinstance(error, TooManyError) else 503, str(error))
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
            except asyncio.CancelledError:  # the server ends; there is nobody to tell
                return


def error_response(status: int, message: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """The one form of all errors, as status, headers and body."""
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (429, 503):
        headers.append((b"retry-after", b"5"))
    return status, headers, body


def _in_pieces(send: Send) -> Send:
    """Send large bodies piece by piece, so that what a client has not taken yet is not copied to the socket."""

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message["headers"]}
            added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
            message["headers"] = [*message["headers"], *((name, value) for name, value in added if name not in names)]
            await send(message)
            return
        body, more = memoryview(message.get("body", b"")), message.get("more_body", False)
        last = max(0, len(body) - 1) // _PIECE * _PIECE
        for start in range(0, last, _PIECE):
            piece = bytes(body[start : start + _PIECE])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": bytes(body[last:]), "more_body": more})

    return sender
