"""The demo, served by a thread of this process."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from densescore import DenseScorer
from densescore.demo.service import Limits, Service
from tests.conftest import Toy


@pytest.fixture(scope="session")
def toy() -> DenseScorer:
    return DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, scales=(1, 1.5), runtime="torch")


@pytest.fixture
def service(toy: DenseScorer) -> Iterator[Service]:
    service = Service({"toy": lambda: toy}, Limits(upload=200_000, pixels=1_000_000, seconds=20, waiting=2))
    yield service
    service.close()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[object], str]]:
    """Serve an app until the tests are over: app → address."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra: pip install 'densescore[demo]'")
    servers = []

    def start(app: object) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        servers.append((server, thread))
        return f"http://127.0.0.1:{port}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)
