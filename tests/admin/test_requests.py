from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.admin import requests
from trio_odin.admin.questions import Channels, Connections, StartTrace
from trio_odin.admin.requests import BadQuery, ConnectionId


def test_without_parameters_the_slowest_come_first() -> None:
    assert requests.connections(b"") == Connections(
        sort="queued_bytes", is_descending=True, limit=100
    )


def test_everything_that_a_list_can_be_asked_for() -> None:
    query = b"sort=address&order=desc&limit=7&address=10.0.0.0/8&subject=ann&channel=BTC.*"
    assert requests.connections(query + b"&lagging=true") == Connections(
        sort="address",
        is_descending=True,
        limit=7,
        address="10.0.0.0/8",
        subject="ann",
        channel="BTC.*",
        is_lagging=True,
    )
    assert not requests.connections(b"sort=connection").is_descending
    assert requests.connections(b"sort=seq&order=asc").is_descending is False
    assert requests.connections(b"subject=").subject == "", "a token without a subject"


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        (b"sort=size", "sort='size': allowed is queued_bytes, "),
        (b"order=up", "order='up': allowed is asc, desc"),
        (b"limit=0", "limit='0': allowed is a whole number from 1 to 10,000"),
        (b"limit=99999", "limit='99999': allowed is"),
        (b"limit=1e3", "limit='1e3': allowed is"),
        (b"limit=%D9%A1", "limit="),
        (b"after=x", "after='x': allowed is `next` of the page before"),
        (b"address=10.0", "address='10.0': allowed is an address or a network"),
        (b"channel=a", "channel='a': a channel is"),
        (b"lagging=yes", "lagging='yes': allowed is true, false"),
        (b"adress=1", "'adress' is not a parameter of this request: allowed are sort, "),
        (b"sort=seq&sort=seq", "each parameter once"),
    ],
)
def test_what_a_list_cannot_be_asked_for(query: bytes, complaint: str) -> None:
    with pytest.raises(BadQuery) as refused:
        requests.connections(query)
    assert complaint in str(refused.value)


def test_channels_are_counted_for_some_seconds() -> None:
    assert requests.channels(b"") == Channels(seconds=1.0, limit=100)
    assert requests.channels(b"seconds=0.2&limit=5") == Channels(seconds=0.2, limit=5)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "6", "x", ""])
def test_they_are_not_counted_for_other_times(seconds: str) -> None:
    with pytest.raises(BadQuery, match="allowed is a number above 0, up to 5"):
        requests.channels(f"seconds={seconds}".encode())


def test_a_trace_follows_one_thing() -> None:
    assert requests.trace(b"connection=2-17&frames=5&seconds=3") == (
        StartTrace(connection=17, frames=5, seconds=3.0),
        2,
    )
    assert requests.trace(b"channel=BTC.trade") == (StartTrace(channel="BTC.trade"), None)
    assert requests.trace(b"user=ann%20b") == (StartTrace(user="ann b"), None)


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"channel=",
        b"channel=x",
        b"connection=1&user=a",
        b"connection=x",
        b"user=a&frames=0",
        b"user=a&frames=10001",
        b"user=a&seconds=601",
    ],
)
def test_and_nothing_else(query: bytes) -> None:
    with pytest.raises(BadQuery):
        requests.trace(query)


@pytest.mark.parametrize(("text", "worker", "number"), [("17", 0, 17), ("2-17", 2, 17)])
def test_ids(text: str, worker: int, number: int) -> None:
    assert requests.connection_id(text) == ConnectionId(worker, number)
    assert str(ConnectionId(worker, number)) == text


@pytest.mark.parametrize("text", ["", "-1", "1-", "1-2-3", "x", "\u0661", "1" * 19])
def test_what_is_not_an_id(text: str) -> None:
    with pytest.raises(BadQuery, match="allowed is an id such as"):
        requests.connection_id(text)


@pytest.mark.parametrize("read", [requests.connections, requests.channels, requests.trace])
@given(pairs=st.lists(st.tuples(st.sampled_from(["sort", "after", "limit", "x"]), st.text())))
def test_a_query_is_read_or_refused(
    read: Callable[[bytes], object], pairs: list[tuple[str, str]]
) -> None:
    query = "&".join(f"{name}={quote(value, errors='replace')}" for name, value in pairs)
    with suppress(BadQuery):
        read(query.encode())
