from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.fanout.publication import Publication
from trio_odin.lab.fleet.dialects import Odin
from trio_odin.lab.fleet.events import KINDS, Event, bench_event, market_event, payload_of

CHANNEL = st.from_regex(r"[A-Z0-9]{1,10}\.[a-z]{1,10}", fullmatch=True)
EVENTS = st.builds(
    Event, st.integers(0, 10**9), st.integers(0, 10**18), CHANNEL, st.just(True), st.just(0)
)
AROUND = st.binary(max_size=30).map(lambda some: some.replace(b'"', b"'"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


# --- the bench's


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_has_the_number_of_those_that_gave_way_to_it(kind: str) -> None:
    payload = payload_of(Event(7, 1000, "BTC.trade"), 60)
    tail = (
        b',"ts":1000,"type":"price:update","priority":1,"data":%b,"channel":"BTC.trade"' % payload
    )
    found = KINDS[kind].event_in(tail + b',"offset":9,"skipped":12,"skipped_total":30}')
    assert found is not None
    assert (found.channel, found.skipped) == ("BTC.trade", 12)
    found = KINDS[kind].event_in(tail + b',"offset":9}')
    assert found is not None
    assert found.skipped == 0


@given(EVENTS, st.integers(0, 500), AROUND, AROUND)
def test_a_payload_identifies_its_event_among_any_other_bytes(
    event: Event, size: int, before: bytes, behind: bytes
) -> None:
    payload = payload_of(event, size)
    assert bench_event(payload) == event
    assert bench_event(before + payload + behind) == event
    said = json.loads(payload)
    assert (said["n"], said["t"], said["c"]) == event[:3]


@given(EVENTS, st.integers(100, 5_000))
def test_a_payload_has_exactly_the_size_asked_for(event: Event, size: int) -> None:
    assert len(payload_of(event, size)) == size


def test_a_payload_is_never_cut_short() -> None:
    event = Event(17, 42, "BTC.trade")
    assert payload_of(event, 0) == b'{"n":17,"t":42,"c":"BTC.trade","pad":""}'
    assert payload_of(event, 43) == b'{"n":17,"t":42,"c":"BTC.trade","pad":"xxx"}'


@pytest.mark.parametrize(
    "unit", [b"", b"{}", b"PING\r\n", b'{"n":1,"t":2}', b'"n":x,"t":2,"c":"C"']
)
def test_other_bytes_contain_no_event_of_the_bench(unit: bytes) -> None:
    assert bench_event(unit) is None


def test_a_channel_that_is_not_utf_8_is_accepted() -> None:
    event = bench_event(b'"n":1,"t":2,"c":"\xff"')
    assert event == Event(1, 2, "\N{REPLACEMENT CHARACTER}")


# --- those in an envelope


def envelope(data: bytes, *, offset: int | None = 7, channel: str = "BTC.trade") -> bytes:
    """The payload of an envelope as the server makes it, without JetStream if `offset` is None."""
    frame = Publication(channel, data, offset=offset, unix_ms=5_000).frame(3)
    return frame[frame.index(b'{"seq":') :]


def test_an_offset_orders_events_and_the_timestamp_is_the_due_time() -> None:
    event = Event(7, 1_234_500_000, "BTC.trade", is_ordered=True)
    assert market_event(envelope(b'{"timestamp":1234.5,"price":1}')) == event


def test_an_event_is_the_same_with_or_without_its_number() -> None:
    whole = envelope(b'{"timestamp":1234}')
    assert market_event(Odin().seq_and_rest(whole)[1]) == market_event(whole)


def test_without_a_timestamp_the_sending_time_is_the_due_time() -> None:
    for data in (
        b'{"price":1}',
        b"[1]",
        b'"text"',
        b"null",
        b'{"timestamp":"soon"}',
        b'{"timestamp":1e308}',
    ):
        event = market_event(envelope(data))
        assert event is not None
        assert event.due_ns == 5_000_000_000


def test_without_an_offset_events_have_an_identity_but_no_order() -> None:
    one, same, other = (market_event(envelope(d, offset=None)) for d in (b"[1]", b"[1]", b"[2]"))
    assert one is not None
    assert other is not None
    assert one == same
    assert one.number != other.number
    assert not one.is_ordered


def test_every_process_gives_an_event_the_same_number() -> None:
    """An event that reached two fleets is one event."""
    code = "import sys; from trio_odin.lab.fleet.events import market_event as event_in\n"
    code += "print(event_in(sys.argv[1].encode()).number)"
    unit = envelope(b'{"price":1}', offset=None)
    found = {
        subprocess.run(
            [sys.executable, "-c", code, unit],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    event = market_event(unit)
    assert event is not None
    assert found == {b"%d\n" % event.number}


def test_an_older_server_names_no_channel() -> None:
    event = market_event(b'{"seq":1,"ts":5,"data":{}}')
    assert event is not None
    assert event.channel == ""
    assert not event.is_ordered


@pytest.mark.parametrize(
    "unit",
    [b"", b"{", b'{"type":"pong","ts":1}', b'{"seq":x}', b'{"seq":1,"no":"envelope"}', b"\xff",
     b",", b'{"seq":1,"ts":"late","data":{}}', b'{"seq":1,"ts":1,"data":{},"offset":"x"}'],
)  # fmt: skip
def test_other_text_contains_no_event(unit: bytes) -> None:
    assert market_event(unit) is None


@given(JSON, st.none() | st.integers(1, 2**63))
def test_any_published_payload_is_an_event(content: object, offset: int | None) -> None:
    data = msgspec.json.encode(content)
    event = market_event(envelope(data, offset=offset))
    assert event is not None
    assert (event.channel, event.is_ordered) == ("BTC.trade", offset is not None)


@given(st.binary(max_size=60), st.sampled_from([b"", b'{"seq":', b',"ts":1,"data":']))
def test_no_bytes_break_any_kind(unit: bytes, before: bytes) -> None:
    for kind in KINDS.values():
        kind.event_in(before + unit)


def test_each_kind_is_timed_by_the_clock_of_its_publisher() -> None:
    assert abs(KINDS["bench"].now_ns() - time.monotonic_ns()) < 10**9
    assert abs(KINDS["market"].now_ns() - time.time_ns()) < 10**9
