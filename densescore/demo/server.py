"""The page and the HTTP call, served together."""

import logging
from collections.abc import Sequence
from functools import partial

import uvicorn
from fastapi import FastAPI
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from densescore.demo.guard import Guard
from densescore.demo.http import build_api
from densescore.demo.limits import Clients
from densescore.demo.page import add_page
from densescore.demo.protocol import TimedProtocol
from densescore.demo.service import Service

_HEADER_BYTES = 16_384
_GRACE_SECONDS = 3  # that requests in work have, once the server is told to end


def build_app(
    service: Service, examples: Sequence[str] = (), *, root_path: str | None = None, proxies: Sequence[str] = ()
) -> FastAPI:
    """The page at ``/``, the HTTP call beside it.

    Args:
        service: scores the images.
        examples: pictures to pick from on the page.
        root_path: the path under which a proxy shows the app.
        proxies: addresses or networks whose ``X-Forwarded-For`` is believed; from others it is ignored.

    Raises:
        DensescoreError: a proxy is no address, or an example no image.
    """
    clients = Clients(service.limits, proxies)
    app = build_api(service, clients)
    app.root_path = root_path or ""
    app.state.clients = clients
    add_page(app, service, clients, examples)
    app.add_middleware(Guard, clients=clients)
    if proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(proxies))
    return app


def make_server(app: FastAPI, host: str, port: int) -> uvicorn.Server:
    """A server for what `build_app` made, with limits on connections and an end to every wait."""
    config = uvicorn.Config(
        app,
        host,
        port,
        http=partial(TimedProtocol, app.state.clients),
        ws="none",
        lifespan="off",
        proxy_headers=False,  # `build_app` adds its own, which believes only the proxies that it was given
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        log_level="error",  # strangers' mistakes are answered; they must not fill the log
    )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    return uvicorn.Server(config)


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until interrupted; what is in work then gets a few seconds.

    Args:
        app: of `build_app`.
        host: address to listen at.
        port: to listen at.
    """
    make_server(app, host, port).run()
