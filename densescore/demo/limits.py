"""What a request, a client and all clients together may cost, and the errors that say so."""

import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from densescore.errors import DensescoreError


class TooLargeError(DensescoreError):
    """An image of more bytes, pixels or patches, or an answer of more bytes, than is allowed."""


class BusyError(DensescoreError):
    """All clients together use as much as is allowed."""


class TooManyError(BusyError):
    """One client uses as much as one client may."""


class TooSlowError(DensescoreError):
    """An image was not decoded or scored in time."""


@dataclass(frozen=True)
class Limits:
    """What strangers may use.

    Attributes:
        upload: bytes of an encoded image.
        pixels: of the decoded image; also the values of all maps in one answer.
        cells: patches of an image over all scales. They bound how long a network works on it.
        seconds: from a request's first byte of the body to its answer, waiting included.
        decode_seconds: to decode an image, after which the decoder is ended.
        waiting: images that may wait while one is scored.
        images: images that one client may have in work or waiting.
        connections: open connections, in all.
        client_connections: open connections of one client.
        client_held: bytes of uploads and answers of one client in memory; by default those of `images` uploads and of
            a map of the largest image.
        held: the same, in all; by default twice as many.
        header_seconds: from opening a connection, or from the last answer, to the end of a request's header.
        idle_seconds: without a byte, while a client sends a body or takes an answer.
        answer_seconds: to take a whole answer.
    """

    upload: int = 20_000_000
    pixels: int = 50_000_000
    cells: int = 8_000
    seconds: float = 60
    decode_seconds: float = 20
    waiting: int = 8
    images: int = 4
    connections: int = 100
    client_connections: int = 16
    client_held: int = 0
    held: int = 0
    header_seconds: float = 10
    idle_seconds: float = 10
    answer_seconds: float = 300

    def __post_init__(self) -> None:
        if not self.client_held:
            object.__setattr__(self, "client_held", self.images * self.upload + 4 * self.pixels)
        if not self.held:
            object.__setattr__(self, "held", 2 * self.client_held)


class Quota:
    """Something that clients share: at most so much for each, and so much in all.

    Args:
        name: what it is, for the error.
        each: most that one client may hold.
        total: most that all may hold.

    Example:
        >>> quota = Quota("connections", each=1, total=2)
        >>> quota.take("10.0.0.1")
        >>> quota.take("10.0.0.1")
        Traceback (most recent call last):
        densescore.demo.limits.TooManyError: connections: one client may have 1; try again in a moment
    """

    def __init__(self, name: str, each: int, total: int) -> None:
        self.name, self.each, self.total = name, each, total
        self.used = 0
        self._of: Counter[str] = Counter()

    def take(self, client: str | None, amount: int = 1) -> None:
        """Count `amount` for a client, or, where it is None, in all only.

        Raises:
            TooManyError: more than one client may have.
            BusyError: more than all may have.
        """
        if client is not None and self._of[client] + amount > self.each:
            raise TooManyError(f"{self.name}: one client may have {self.each:,}; try again in a moment")
        if self.used + amount > self.total:
            raise BusyError(f"{self.name}: all {self.total:,} are in use; try again in a moment")
        self.used += amount
        if client is not None:
            self._of[client] += amount

    def give(self, client: str | None, amount: int = 1) -> None:
        """Give back what was taken."""
        self.used -= amount
        if client is not None:
            self._of[client] -= amount
            if not self._of[client]:
                del self._of[client]


class Held:
    """What one request holds of a quota; given back when the block ends."""

    def __init__(self, quota: Quota, client: str | None) -> None:
        self._quota, self._client, self._amount = quota, client, 0

    def take(self, amount: int) -> None:
        """Hold so much more; errors as of `Quota.take`."""
        self._quota.take(self._client, amount)
        self._amount += amount

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *error: object) -> None:
        self._quota.give(self._client, self._amount)


class Clients:
    """The quotas of a server, and who counts as one client.

    Used from the event loop's thread only.

    Args:
        limits: how much of each.
        proxies: addresses or networks whose ``X-Forwarded-For`` is believed.

    Raises:
        DensescoreError: a proxy is no address.
    """

    def __init__(self, limits: Limits, proxies: Sequence[str] = ()) -> None:
        self.limits, self.proxies = limits, tuple(proxies)
        try:
            self._networks = [ipaddress.ip_network(proxy, strict=False) for proxy in proxies]
        except ValueError as error:
            raise DensescoreError(f"a proxy must be an IP address or a network, got {error}") from error
        self.connections = Quota("connections", limits.client_connections, limits.connections)
        self.requests = Quota("requests at once", limits.client_connections, limits.connections)
        self.images = Quota("images at once", limits.images, limits.connections)
        self.held = Quota("bytes in memory", limits.client_held, limits.held)

    def is_proxy(self, host: str) -> bool:
        """Whether connections from this address carry the requests of many clients."""
        address = _address(host)
        return address is not None and any(address in network for network in self._networks)

    @staticmethod
    def key(host: str) -> str:
        """What requests of one client have in common: the address, of IPv6 the network of 64 bits.

        Example:
            >>> Clients.key("::ffff:10.0.0.1"), Clients.key("2001:db8::1:2:3:4")
            ('10.0.0.1', '2001:db8::/64')
        """
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
