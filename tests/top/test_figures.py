from __future__ import annotations

import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.top.rig import connection, detail, reading
from trio_odin.admin.paging import SORTS
from trio_odin.top import figures
from trio_odin.top.figures import CHANNELS, CONNECTIONS, Rates, columns_for


def test_rates_are_those_between_two_readings() -> None:
    before, now = reading(10, written=1000), reading(12, written=1500)
    assert figures.rates_between(before, now).deliveries == 250
    assert figures.rates_between(None, now) == Rates()


def test_a_server_that_started_anew_has_no_rates() -> None:
    assert figures.rates_between(reading(10, written=1000), reading(12, written=1)) == Rates()


def test_messages_a_second_are_those_of_the_same_connection() -> None:
    before = reading(10, connection(1, seq=100), connection(2, seq=100), connection(3))
    now = reading(
        12,
        connection(1, seq=150, age_seconds=62.0),
        connection(2, seq=50, age_seconds=1.0),
        connection(4),
    )
    assert figures.message_rates(before, now) == {"1": 25.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (0.44, "0.4"), (7, "7"), (999, "999"), (1234, "1.2k"),
     (999_950, "1.0M"), (4_560_000, "4.6M"), (2e9, "2.0G")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert figures.number(value) == text


@given(st.floats(0, 1e11))
def test_numbers_are_short(value: float) -> None:
    assert len(figures.number(value)) <= 6
    assert len(figures.size(value)) <= 9
    assert len(figures.duration(value / 1000)) <= 5


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0 B"), (1023, "1.0 KiB"), (12_595, "12.3 KiB")]
)
def test_sizes(value: float | None, text: str) -> None:
    assert figures.size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.44, "0.4s"), (12, "12s"), (180, "3m"), (9e3, "2h"), (1e6, "12d")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert figures.duration(seconds) == text


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_columns_fit(width: int) -> None:
    longest = connection(
        99_999, id="12-99999", address="255.255.255.255", seq=10**9, queued=512,
        queued_bytes=10**6 - 1, skipped=10**6, dropped=10**6, silent_seconds=59.0,
    )  # fmt: skip
    columns = columns_for(CONNECTIONS, width)
    cells = [max(len(one.title), len(one.cell(longest, 99_999.0))) for one in columns]
    assert sum(cells) + 2 * len(cells) <= width - 2  # the padding, and the scroll bar
    assert {one.title for one in columns} >= {"ID", "ADDRESS", "MSG/S", "BYTES", "SKIP", "DROP"}
    assert {one.title for one in columns_for(CHANNELS, width)} >= {"CHANNEL", "OUT/S", "LAST"}


def test_the_head_shows_what_a_person_should_look_at() -> None:
    now = reading(10, connection(1))
    assert not any(fact.is_bad for line in figures.head_of("a:1", now, Rates()) for fact in line)
    now.overview["nats"] |= {"is_connected": False, "trouble": "\x1b[2J refused"}
    now.overview["load"]["shed_percent"] = 20
    now.overview["workers"] |= {"alive": 1, "configured": 2}
    head = figures.head_of("a:1", now, Rates(dropped=3.0))
    bad = [fact.text for line in head for fact in line if fact.is_bad]
    assert any("NATS AWAY" in text for text in bad)
    assert {"shed 20 %", "dropped 3/s", "workers 1 of 2"} <= set(bad)
    assert not any("\x1b" in fact.text for line in head for fact in line)


def test_the_head_says_why_clients_are_refused_and_leave() -> None:
    before, now = reading(10), reading(12)
    for shown, more in ((before, 0), (now, 3)):
        clients = shown.overview["clients"]
        clients["rejected"] |= {"origin": 5 + more, "timeout": 5, "unauthorized": 5 + 2 * more}
        clients["closed"] |= {"token_expired": more}
    head = figures.head_of("a:1", now, figures.rates_between(before, now), before)
    texts = {fact.text for line in head for fact in line}
    assert any(text.endswith("/s (token_expired)") for text in texts)
    assert "refused 4.5/s (unauthorized, origin)" in texts


def test_the_head_says_what_closes_admission_while_nobody_comes() -> None:
    now = reading(10)
    now.overview["load"] |= {"is_refusing": True, "refusing_for": ["memory", "overloaded", "lag"]}
    now.overview["load"] |= {"memory_bytes": 90 * 1024**2, "memory_limit_bytes": 100 * 1024**2}
    bad = {f.text for line in figures.head_of("a:1", now, Rates()) for f in line if f.is_bad}
    assert bad == {"refused 0/s (memory, overloaded, …)", "mem 90.0 MiB of 100.0 MiB"}


@pytest.mark.parametrize(("earlier", "is_bad"), [(11, True), (12, False)])
def test_the_head_counts_restarts_of_workers_and_lost_lines_of_the_log(
    earlier: int, *, is_bad: bool
) -> None:
    before, now = reading(8), reading(10)
    now.overview["workers"] |= {"restarts": 2}
    before.overview["log"] |= {"lines_dropped": earlier}
    now.overview["log"] |= {"lines_dropped": 12}
    facts = {
        f.text: f.is_bad for line in figures.head_of("a:1", now, Rates(), before) for f in line
    }
    assert "workers 1 of 1, 2 restarts" in facts
    assert facts["log lines lost 12"] == is_bad


def test_a_server_that_started_anew_has_no_reasons() -> None:
    before, now = reading(10), reading(12)
    before.overview["clients"]["rejected"] |= {"origin": 5}
    now.overview["clients"]["rejected"] |= {"origin": 1, "timeout": 1}
    assert figures.grown_reasons(before, now, "rejected") == []


def test_the_head_of_an_older_server_is_shown_too() -> None:
    now = reading(10)
    del now.overview["log"], now.overview["load"]["refusing_for"]
    assert figures.head_of("a:1", now, Rates())


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", {}),
        ("address=10.0.0.0/8 user=ann", {"address": "10.0.0.0/8", "subject": "ann"}),
        ("channel=BTC.* lagging", {"channel": "BTC.*", "lagging": "true"}),
        ("lagging=false", {"lagging": "false"}),
        ("10.0.0.1", {"address": "10.0.0.1"}),
        ("::1", {"address": "::1"}),
        ("BTC.trade", {"channel": "BTC.trade"}),
    ],
)
def test_filters(text: str, query: dict[str, str]) -> None:
    assert figures.filters_of(text) == query
    assert figures.filters_of(figures.text_of_filters(query)) == query


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("adress=1", "'adress': allowed are address=, user=, channel=, lagging"),
        ("=1", "'': allowed are address=, user=, channel=, lagging"),
        ("address=", "'address=': allowed is a value after it, such as address=10.0.0.0/8"),
        ("BTC.* user=", "'user=': allowed is a value after it, such as user=ann"),
        ("channel= lagging", "'channel=': allowed is a value after it, such as channel=BTC.*"),
        ("lagging=", "'lagging=': allowed are lagging, lagging=true and lagging=false"),
        ("lagging=si", "'lagging=si': allowed are lagging, lagging=true and lagging=false"),
        ("user=\udcff", "'user=�': allowed is a text in UTF-8"),
    ],
)
def test_a_filter_that_cannot_be_one_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}$"):
        figures.filters_of(text)


def test_the_sorts_are_those_of_the_api() -> None:
    assert set(figures.SORTS) == set(SORTS)


def test_a_connection_is_shown_line_by_line() -> None:
    transport = {
        "round_trip_ms": 1.5, "unacknowledged_segments": 1, "unsent_bytes": 10,
        "retransmitted_segments": 2, "bytes_acknowledged": 5000, "bytes_received": 100,
    }  # fmt: skip
    text = "\n".join(figures.detail_of(detail(7, transport=transport, user_agent="\x1b[2J")))
    parts = [
        "Connection 7 from 10.0.0.7",
        "every event, 12 events/s",
        "every 1000 ms",
        "paused",
        "policy evict",
        "1.5 ms there and back",
        "0.010s subscribe",
    ]
    assert [part for part in parts if part not in text] == []
    assert "\x1b" not in text


def test_lines_of_a_trace() -> None:
    frame = {
        "type": "frame", "connection": "7", "unix_ms": 3_723_004, "opcode": "text", "bytes": 9,
        "content": "a\x1b[2J", "is_cut": True,
    }  # fmt: skip
    assert figures.line_of_trace(frame) == "01:02:03.004 7 text 9 B a�[2J…"
    assert "Following 3" in figures.line_of_trace({"type": "started", "connections": 3})
    assert "4 frames were not shown" in figures.line_of_trace({"type": "dropped", "frames": 4})
    ended = {"type": "ended", "reason": "time", "frames": 1, "dropped": 0}
    assert figures.line_of_trace(ended) == "Ended (time) after 1 frames"


def test_a_reading_as_text_and_for_scripts() -> None:
    before = reading(10, connection(1, seq=50, age_seconds=58.0), written=0)
    now = reading(12, connection(1), written=10)
    text = "\n".join(figures.as_text("a:1", now, before, 200))
    assert "BTC.trade" in text
    assert "10.0.0.1" in text
    assert "25" in text
    shown = figures.as_json("a:1", now, figures.rates_between(before, now))
    assert shown["rates"]["deliveries"] == 5
    assert set(shown) == {"server", "rates", "overview", "connections", "channels"}
    none = attrs.evolve(now, connections={**now.connections, "connections": []})
    assert "connections: none" in figures.as_text("a:1", none, None, 200)
