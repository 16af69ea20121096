"""Where an admin API is: addresses that can be one, and a sentence for the others."""

from __future__ import annotations

import pytest

from trio_odin.top.source import Source


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://127.0.0.1:3008", "127.0.0.1:3008"),
        ("node1:3005", "node1:3005"),
        ("https://ops.example.com/ws/admin/", "ops.example.com"),
        ("http://[::1]:65535", "::1:65535"),
        ("http://b\xfccher.example:1", "b\xfccher.example:1"),
    ],
)
def test_an_address_that_can_be_one(url: str, name: str) -> None:
    assert Source(url).name == name


@pytest.mark.parametrize("port", ["0", "65536", "99999", "x", "-1"])
def test_a_port_that_cannot_be_one(port: str) -> None:
    with pytest.raises(
        ValueError, match=r"^a port from 1 to 65535, as in http://127\.0\.0\.1:3008$"
    ):
        Source(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a", "", "http://", "http://:3008", "http://a..b:1", "http://.a:1", "http://[::1",
        f"http://{64 * 'a'}:1", "http://a b:1", "http://a/b c", "http://a/\xe9", "http://a/?x=1",
        "http://a/#x", "http://\udcff:1", "http://a/\x7f",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_one(url: str) -> None:
    with pytest.raises(ValueError, match=r"^a URL such as http://127\.0\.0\.1:3008$"):
        Source(url)
