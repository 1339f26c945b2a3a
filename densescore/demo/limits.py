"""Limits of requests and quotas of clients, and the errors raised beyond them."""

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from densescore.errors import DensescoreError


class TooLargeError(DensescoreError):
    """Too many bytes, pixels or patches of an image, or too many bytes of an answer."""

    status = 413


class BusyError(DensescoreError):
    """The quota of all clients together is used up."""

    status = 503


class TooManyError(BusyError):
    """The quota of one client is used up."""

    status = 429


class TooSlowError(DensescoreError):
    """The image was not decoded or scored in time."""

    status = 504


class ModelError(DensescoreError):
    """A model cannot be loaded."""

    status = 500


@dataclass(frozen=True)
class Limits:
    """Limits of what clients may use; docs/demo.md says what happens beyond them."""

    upload: int = 20_000_000  # bytes of an encoded image
    pixels: int = 50_000_000  # of a decoded image; also values of all maps in one answer
    cells: int = 8_000  # patches of an image over all scales, which bound the network's time
    seconds: float = 60  # from a body's first byte to the answer, waiting included
    decode_seconds: float = 20  # to decode an image; then the decoder is killed
    waiting: int = 8  # images that may wait while one is scored
    images: int = 4  # in work or waiting, per client
    connections: int = 100  # in all
    client_connections: int = 16
    client_held: int = 0  # bytes in memory per client; by default `images` uploads and a map of the largest image
    held: int = 0  # bytes of uploads and answers in memory, in all; by default twice `client_held`
    header_seconds: float = 10  # from opening a connection, or from the last answer, to the end of a header
    idle_seconds: float = 10  # without a byte, while a client sends a body or takes an answer
    answer_seconds: float = 300  # to take a whole answer

    def __post_init__(self) -> None:
        if not self.client_held:
            object.__setattr__(self, "client_held", self.images * self.upload + 4 * self.pixels)
        if not self.held:
            object.__setattr__(self, "held", 2 * self.client_held)


class Quota:
    """A resource that clients share: at most `each` per client, and `total` in all."""

    def __init__(self, name: str, each: int, total: int) -> None:
        self.name, self.each, self.total = name, each, total
        self.used = 0
        self._by_client: Counter[str] = Counter()

    def take(self, client: str | None, amount: int = 1) -> None:
        """Count `amount` for a client; None counts in the total only. Raises `TooManyError` or `BusyError`."""
        if client is not None and self._by_client[client] + amount > self.each:
            raise TooManyError(f"{self.name}: one client may have {self.each:,}; try again in a moment")
        if self.used + amount > self.total:
            raise BusyError(f"{self.name}: all {self.total:,} are in use; try again in a moment")
        self.used += amount
        if client is not None:
            self._by_client[client] += amount

    def give(self, client: str | None, amount: int = 1) -> None:
        """Give back `amount` of a client."""
        self.used -= amount
        if client is not None:
            self._by_client[client] -= amount
            if not self._by_client[client]:
                del self._by_client[client]

    @contextmanager
    def lease(self, client: str, amount: int = 0) -> Iterator[Callable[[int], None]]:
        """Take `amount`, and more by calling the result; all of it is given back when the block ends."""
        taken = 0

        def take(more: int) -> None:
            nonlocal taken
            self.take(client, more)
            taken += more

        try:
            take(amount)
            yield take
        finally:
            self.give(client, taken)


class Clients:
    """The quotas of a server, and the identity of a client. Used from the event loop's thread only.

    `proxies` are addresses or networks whose ``X-Forwarded-For`` is trusted.
    """

    def __init__(self, limits: Limits, proxies: Sequence[str] = ()) -> None:
        self.limits = limits
        try:
            self._proxies = [ipaddress.ip_network(proxy, strict=False) for proxy in proxies]
        except ValueError as error:
            raise DensescoreError(f"a proxy must be an IP address or a network, got {error}") from error
        self.connections = Quota("connections", limits.client_connections, limits.connections)
        self.requests = Quota("requests at once", limits.client_connections, limits.connections)
        self.images = Quota("images at once", limits.images, limits.connections)
        self.held = Quota("bytes in memory", limits.client_held, limits.held)

    def is_proxy(self, host: str) -> bool:
        """Whether connections from this address carry the requests of many clients."""
        address = _address(host)
        return address is not None and any(address in network for network in self._proxies)

    @staticmethod
    def key(host: str) -> str:
        """Identity of a client: its address, or its /64 network for IPv6."""
        address = _address(host)
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address, 64), strict=False))
        return host if address is None else str(address)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
