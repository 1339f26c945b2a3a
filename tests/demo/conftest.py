"""The demo, served by a thread of this process."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from densescore import DenseScorer
from densescore.demo.decoder import Decoder
from densescore.demo.limits import Limits
from densescore.demo.service import Service
from tests.conftest import Toy

LIMITS = Limits(upload=200_000, pixels=1_000_000, seconds=20)


@pytest.fixture(scope="session")
def toy() -> DenseScorer:
    return DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, scales=(1, 1.5), runtime="torch")


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    """One for all tests: its start takes seconds."""
    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.fixture
def service(toy: DenseScorer, decoder: Decoder) -> Iterator[Service]:
    service = Service({"toy": lambda: toy}, LIMITS, decoder)
    yield service
    service.close()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., str]]:
    """Serve a service until the tests are over: service, options of `build_app` → address."""
    pytest.importorskip("fastapi", reason="needs the extra: pip install 'densescore[demo]'")
    from densescore.demo.server import build_app, make_server

    servers = []

    def start(service: Service, *args: object, **options: object) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = make_server(build_app(service, *args, **options), "127.0.0.1", port)  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        servers.append((server, thread))
        return f"http://127.0.0.1:{port}"

    yield start
    for server, _ in servers:
        server.should_exit = True
    for _, thread in servers:
        thread.join(10)


@pytest.fixture
def start(serve: Callable[..., str], toy: DenseScorer, decoder: Decoder) -> Iterator[Callable[..., tuple[str, int]]]:
    """Serve a toy with some limits: address and port."""
    services = []

    def begin(limits: Limits = LIMITS, model: Callable[[], DenseScorer] = lambda: toy, **options: Any) -> Any:
        services.append(Service({"toy": model}, limits, decoder))
        url = serve(services[-1], **options)
        return url, urlsplit(url).port

    yield begin
    for service in services:
        service.close()
