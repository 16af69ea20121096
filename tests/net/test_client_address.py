from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.net.client_address import Network, client_address, counted_as

PROXIES: list[Network] = [
    ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_network("2001:db8:ffff::/48"),
]


def client(peer: str, forwarded_for: str = "") -> str:
    return str(client_address(peer, forwarded_for.encode("latin-1"), PROXIES))


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        ("203.0.113.7", "", "203.0.113.7"),
        ("203.0.113.7", "1.2.3.4", "203.0.113.7"),  # a client claims to be another one
        ("203.0.113.7", "1.2.3.4, 10.0.0.1", "203.0.113.7"),
        ("10.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "1.2.3.4, 203.0.113.7", "203.0.113.7"),  # it claimed that to the proxy
        ("10.0.0.1", "1.2.3.4, 203.0.113.7, 10.0.0.2", "203.0.113.7"),
        ("10.0.0.1", "10.9.9.9, 203.0.113.7", "203.0.113.7"),  # it claims to be a proxy
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),  # a client inside
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", " , ,", "10.0.0.1"),
        ("10.0.0.1", "nonsense, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "203.0.113.7, nonsense", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.7, unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "203.0.113.7:4711", "203.0.113.7"),
        ("10.0.0.1", "[2001:db8::5]:4711", "2001:db8::5"),
        ("10.0.0.1", "2001:db8::5", "2001:db8::5"),
        ("10.0.0.1", "\xff\xfe", "10.0.0.1"),
        ("::ffff:10.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "1.2.3.4", "203.0.113.7"),
        ("2001:db8:ffff::1", "::ffff:203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "", "fe80::1"),
        ("", "203.0.113.7", "None"),
    ],
)
def test_the_rightmost_address_that_is_not_a_trusted_proxy_counts(
    peer: str, forwarded_for: str, expected: str
) -> None:
    assert client(peer, forwarded_for) == expected


def test_without_trusted_proxies_the_header_is_ignored() -> None:
    assert str(client_address("10.0.0.1", b"203.0.113.7", [])) == "10.0.0.1"


@given(st.text("0123456789abcdef.:,[] %x-", max_size=80), st.ip_addresses(v=4))
def test_a_client_cannot_choose_its_own_address(written: str, real: ipaddress.IPv4Address) -> None:
    if any(real in network for network in PROXIES):
        return
    assert client(str(real), written) == str(real), "directly"
    assert client("10.0.0.1", f"{written},{real}") == str(real), "behind a proxy that appends"
    assert client("10.0.0.1", f"{written},{real},10.0.0.2") == str(real), "behind two"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
    ],
)
def test_ipv6_is_counted_by_network_and_ipv4_by_address(address: str, expected: str) -> None:
    assert counted_as(ipaddress.ip_address(address)) == expected
