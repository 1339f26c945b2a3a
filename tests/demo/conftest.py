"""The demo, served by a thread of this process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from densescore import DenseScorer
from densescore.demo.decoder import Decoder
from densescore.demo.limits import Limits
from densescore.demo.service import Service
from tests.conftest import Toy
from tests.demo.raw import free_port, wait_until

LIMITS = Limits(upload=200_000, pixels=1_000_000, seconds=20)


@dataclass
class Gate:
    """A model whose loading, and so its first image, takes until `go` is set."""

    scorer: DenseScorer
    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> DenseScorer:
        self.begun.set()
        assert self.go.wait(60)
        return self.scorer


@pytest.fixture(scope="session")
def toy() -> DenseScorer:
    return DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, scales=(1, 1.5), runtime="torch")


@pytest.fixture
def gate(toy: DenseScorer) -> Iterator[Gate]:
    gate = Gate(toy)
    yield gate
    gate.go.set()


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    """One for all tests: its start takes seconds."""
    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.fixture
def serving(decoder: Decoder, toy: DenseScorer) -> Iterator[Callable[..., Service]]:
    """Limits and a model → a service."""
    services = []

    def begin(limits: Limits = LIMITS, model: Callable[[], DenseScorer] = lambda: toy) -> Service:
        services.append(Service({"toy": model}, limits, decoder))
        return services[-1]

    yield begin
    for service in services:
        service.close()


@contextmanager
def running(service: Service, *args: Any, **options: Any) -> Iterator[str]:
    """Serve a service by a thread: service, options of `build_app` → address."""
    from densescore.demo.server import build_app, make_server

    port = free_port()
    server = make_server(build_app(service, *args, **options), "127.0.0.1", port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    yield f"http://127.0.0.1:{port}"
    assert thread.is_alive()
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., str]]:
    """Serve services until the tests are over; see `running`."""
    pytest.importorskip("fastapi", reason="needs the extra: pip install 'densescore[demo]'")
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(running(*args, **options))


@pytest.fixture
def start(serve: Callable[..., str], serving: Callable[..., Service]) -> Callable[..., tuple[str, int]]:
    """Serve a toy: limits, a model, options of `build_app` → address and port."""

    def begin(*service: Any, model: Any = None, **options: Any) -> tuple[str, int]:
        url = serve(serving(*service, **({"model": model} if model else {})), **options)
        return url, urlsplit(url).port or 0

    return begin
