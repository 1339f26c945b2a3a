"""Limits, quotas, and what the docs say of them."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from densescore import DensescoreError
from densescore.demo.decode_child import FORMATS
from densescore.demo.limits import BusyError, Clients, Held, Limits, Quota, TooManyError

DOCS = Path(__file__).parents[2] / "docs" / "security.md"


def test_the_docs_have_every_limit_and_its_number() -> None:
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([\d,]+) \|", DOCS.read_text(), re.MULTILINE)
    limits = Limits()
    assert {name: float(number.replace(",", "")) for name, number in rows} == {
        field.name: getattr(limits, field.name) for field in fields(limits)
    }


def test_the_docs_have_the_formats_the_grace_and_the_header() -> None:
    pytest.importorskip("fastapi", reason="needs the extra: pip install 'densescore[demo]'")
    from densescore.demo import server

    text = DOCS.read_text()
    formats = re.search(r"It takes ([\w, ]+), and refuses", text)
    assert formats is not None
    assert {name.upper() for name in re.split(", | and ", formats[1])} == set(FORMATS)
    assert f"{server._GRACE_SECONDS} more seconds" in text
    assert f"header may have {server._HEADER_BYTES // 1024} kB" in text


def test_a_quota_is_shared_and_given_back() -> None:
    quota = Quota("bytes", each=10, total=15)
    with Held(quota, "a") as mine, Held(quota, "b") as others:
        mine.take(10)
        with pytest.raises(TooManyError, match="bytes: one client may have 10"):
            mine.take(1)
        others.take(5)
        with pytest.raises(BusyError, match="bytes: all 15 are in use"):
            others.take(1)
        assert quota.used == 15
    assert quota.used == 0
    quota.take("b", 10)


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("testclient", "testclient"),
    ],
)
def test_who_is_one_client(host: str, key: str) -> None:
    assert Clients.key(host) == key


def test_proxies_are_addresses_or_networks() -> None:
    clients = Clients(Limits(), ["10.0.0.0/8", "::1"])
    assert [clients.is_proxy(host) for host in ("10.9.8.7", "::ffff:10.1.1.1", "::1", "11.0.0.1", "x")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(DensescoreError, match="a proxy must be an IP address or a network, got 'proxy.local'"):
        Clients(Limits(), ["proxy.local"])
