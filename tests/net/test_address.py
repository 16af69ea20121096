from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.net.address import Address

HOSTS = (
    st.just("")
    | st.ip_addresses().map(str)
    | st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z0-9]{1,9}){0,3}", fullmatch=True)
)


@given(host=HOSTS, port=st.integers(0, 65535))
def test_a_printed_address_reads_back_as_the_same(host: str, port: int) -> None:
    address = Address(host, port)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":3002", "", 3002),
        ("127.0.0.1:3002", "127.0.0.1", 3002),
        ("[::1]:3002", "::1", 3002),
        ("localhost:0", "localhost", 0),
        (" :3002\n", "", 3002),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
    ],
)
def test_the_usual_forms_of_an_address_are_read(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "3002", "localhost", "localhost:", ":65536", ":-1", ":+1", ":3002x", ":3 002",
        "::1:3002", "::1", "[::1]", "[::1]3002", ":٣", "http://127.0.0.1:3002/", ":1_000",
        pytest.param(":" + "9" * 5000, id="a port of 5000 digits"),
    ],
)  # fmt: skip
def test_the_complaint_about_a_bad_address_names_the_allowed_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"^an address like "):
        Address.parse(text)


@given(st.text() | st.text(st.sampled_from("[]:.0123a "), max_size=10))
def test_any_text_is_an_address_or_gets_a_helpful_complaint(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError as error:
        assert str(error).startswith("an address like")  # noqa: PT017
    else:
        assert 0 <= address.port <= 65535
        assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("address", "connectable"),
    [
        (Address("", 3002), "127.0.0.1:3002"),
        (Address("10.0.0.1", 80), "10.0.0.1:80"),
        (Address("::1", 80), "[::1]:80"),
        (Address("0.0.0.0", 80), "127.0.0.1:80"),
        (Address("::", 80), "127.0.0.1:80"),  # which takes IPv4 as well
        (Address("::0", 80), "127.0.0.1:80"),
        (Address("0", 80), "127.0.0.1:80"),
        (Address("::10", 80), "[::10]:80"),
    ],
)
def test_a_client_on_this_machine_can_connect(address: Address, connectable: str) -> None:
    assert address.connectable == connectable
