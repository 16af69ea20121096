from __future__ import annotations

import pytest

from trio_odin.admin.networks import network_check


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.1.0.0/16", "10.1.2.3", "10.2.2.3"),
        ("10.1.7.7/16", "10.1.2.3", "10.2.2.3"),
        ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
        ("0.0.0.0/0", "10.1.2.3", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8::1", "2001:db9::1"),
        ("fe80::/10", "fe80::1%eth0", "ff80::1%eth0"),
        ("::/0", "::1", "127.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", "not an address"),
        ("10.0.0.0/8", "10.0.0.1", "10.0.0.1\0"),
        ("10.0.0.0/8", "10.0.0.1", "\ud800"),
        ("10.0.0.0/8", "10.0.0.1", None),
    ],
)
def test_an_address_is_in_a_network_or_not(network: str, inside: str, outside: str | None) -> None:
    is_in_network = network_check(network)
    assert is_in_network(inside)
    assert not is_in_network(outside)


def test_what_is_not_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        network_check("10.0.0.0/33")
