from __future__ import annotations

import io
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from trio_odin.client import Event, Gap, Refused, State
from trio_odin.demo.watch_table import (
    PerSecond,
    Rows,
    duration,
    percent_text,
    price_text,
    size,
    state_line,
    table_of,
)

NOW_MS = 1_000_000


def event(channel: str, data: Any, **more: Any) -> Event:
    return Event(channel=channel, data=data, unix_ms=NOW_MS - 1_500, **more)


def drawn(rows: Rows, width: int = 80, height: int = 24, now: float = 10.0) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(table_of(rows.in_order(), now, NOW_MS, width, height))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_row_has_what_is_known_of_a_channel() -> None:
    rows = Rows(["BTC.trade", "ETH.trade", "*.social"], 0.0)
    rows.take(event("BTC.trade", {"price": 64_000, "priceChange24h": -1.25}), 9.0)
    rows.take(event("BTC.trade", {"price": 64_100.5, "priceChange24h": 0.5}, skipped=3), 9.5)
    rows.take(Gap(channels=("BTC.trade",), missed=7, reason="slow"), 9.6)
    assert [line.split() for line in drawn(rows)] == [
        ["channel", "price", "change", "age", "events/s", "gaps"],
        ["BTC.trade", "64,100.50", "+0.50", "%", "24h", "1.5", "s", "0.5", "1", "(7)"],
        ["ETH.trade", "no", "event", "yet"],
        ["*.social", "no", "event", "yet"],
    ]


def test_without_a_change_of_24_hours_it_is_that_since_the_first_price() -> None:
    rows = Rows(["BTC.trade"], 0.0)
    rows.take(event("BTC.trade", {"price": 200}), 1.0)
    rows.take(event("BTC.trade", {"price": 199}), 2.0)
    assert "-0.50 %" in drawn(rows)[1]
    assert "24h" not in drawn(rows)[1]


@pytest.mark.parametrize("data", [None, 7, "é", [1], {"price": "x"}, {"price": True}, {}])
def test_data_without_a_price_is_shown_as_json(data: Any) -> None:
    rows = Rows(["BTC.trade"], 0.0)
    rows.take(event("BTC.trade", data), 1.0)
    assert str(data).replace("'", '"')[:3].lower()[0] in drawn(rows)[1].lower()


def test_a_pattern_is_a_row_until_it_has_found_a_channel() -> None:
    rows = Rows(["*.trade"], 0.0)
    assert len(drawn(rows)) == 2
    rows.take(event("BTC.trade", {"price": 1}), 1.0)
    assert [line.split()[0] for line in drawn(rows)] == ["channel", "BTC.trade"]
    rows.take(Gap(channels=("*.trade",), missed=None, reason="window"), 2.0)
    assert drawn(rows)[1].endswith(" 1")


def test_a_name_that_is_refused_says_why() -> None:
    rows = Rows(["*.trade"], 0.0)
    rows.take(Refused(channel="*.trade", code="TOO_MANY_PATTERNS"), 1.0)
    assert "refused: TOO_MANY_PATTERNS" in drawn(rows)[1]


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"\A[A-Z]{1,30}\.[a-z]{1,30}\Z") | st.text(),
            st.one_of(st.none(), st.floats(), st.integers(), st.just(10**400), st.text()),
        ),
        max_size=60,
    ),
    st.integers(20, 200),
    st.integers(3, 60),
)
def test_it_fits_into_any_terminal(events: list[tuple[str, Any]], width: int, height: int) -> None:
    rows = Rows(["BTC.trade", "*.social"], 0.0)
    for channel, data in events:
        is_number = isinstance(data, float | int)
        rows.take(event(channel, {"price": data} if is_number else data), 1.0)
    lines = drawn(rows, width, height)
    assert len(lines) <= height - 1, "the last line is for the state"
    assert all(cell_len(line) <= width for line in lines)


HUGE = [1e308, -1e308, 10**400, -(10**400), math.inf, -math.inf, math.nan, 1e-308, 2**70]


@pytest.mark.parametrize("price", HUGE)
@pytest.mark.parametrize("before", [1, 1e-308, *HUGE])
def test_no_number_widens_the_table(price: float, before: float) -> None:
    rows = Rows(["BTC.trade"], 0.0)
    rows.take(event("BTC.trade", {"price": before}), 1.0)
    rows.take(event("BTC.trade", {"price": price}, skipped=10**30), 1.0)
    rows.take(Gap(channels=("BTC.trade",), missed=10**30, reason="slow"), 2.0)
    header, line = drawn(rows, 120)
    assert header.split() == ["channel", "price", "change", "age", "events/s", "gaps"]
    assert cell_len(line) < 80
    assert "…" not in line
    rows.take(event("BTC.trade", {"price": 1, "priceChange24h": price}), 2.0)
    assert "…" not in drawn(rows, 120)[1]
    assert cell_len(state_line(State(name="live"), 0, 1e308, 0).plain) < 80


@pytest.mark.parametrize("data", ["\ud800", 10**30, [10**30], {"a": "\ud800"}, "a\r\nb", "\x9b2J"])
def test_whatever_json_can_hold_is_shown_on_one_line(data: Any) -> None:
    rows = Rows([], 0.0)
    rows.take(event("A\nB\x1b[2J\u2028.trade", data), 1.0)
    lines = drawn(rows, 120)
    assert len(lines) == 2
    assert lines[1].isprintable()
    assert "A\\nB\\x1b[2J\\u2028.trade" in lines[1]


def test_the_last_gap_is_explained() -> None:
    rows = Rows(["BTC.trade"], 0.0)
    assert rows.last_gap(0.0) == ""
    rows.take(Gap(channels=("BTC.trade",), missed=7, reason="slow"), 10.0)
    assert rows.last_gap(12.0) == (
        "gap 2.0 s ago, 7 events of BTC.trade: taken too slowly by this program or its network"
    )
    rows.take(Gap(channels=("BTC.trade", "x\n"), missed=None, reason="new\n"), 20.0)
    assert rows.last_gap(20.0) == "gap 0.0 s ago, events of BTC.trade and 1 more: new\\n"


def test_a_name_in_small_letters_gets_a_hint() -> None:
    rows = Rows(["btc.trade", "ETH.trade", "btc.*"], 0.0)
    assert rows.hint == "btc.trade: did you mean BTC.trade ? (1 more like it)"
    rows.take(event("btc.trade", 1), 1.0)
    assert rows.hint == ""


def test_rows_that_do_not_fit_are_counted() -> None:
    rows = Rows([f"T{number:02}.trade" for number in range(30)], 0.0)
    assert drawn(rows, height=12)[-1] == "… and 21 more"


def test_the_state_comes_with_its_reason_and_what_happens_next() -> None:
    assert state_line(State(name="live"), 0, 12.34, 4_321).plain == (
        "● live · 12.3 events/s · 4.3 kB/s"
    )
    offline = State(name="offline", cause="no answer", at=0, retry_at=3_200)
    assert state_line(offline, 1_000, 0, 0).plain == (
        "● offline, again in 2.2 s: no answer · 0.0 events/s · 0 B/s"
    )


def test_a_rate_is_that_of_the_last_ten_seconds() -> None:
    rate = PerSecond(100.0)
    assert rate.rate(100.0) == 0
    for number in range(40):
        rate.add(100 + number / 2)
    assert rate.rate(120) == pytest.approx(2.0)
    assert rate.rate(140) == 0
    early = PerSecond(0.0)
    early.add(0.5, 5)
    assert early.rate(0.6) == 5, "a second at least"


def test_numbers_are_short() -> None:
    assert [percent_text(one) for one in (-0.001, 0.005, -1.5, 1e7)] == [
        *["+0.00", "+0.01", "-1.50", "+1e+07"]
    ]
    prices = [64_000.123456, 3.14159265, 0.0000123456789, -2_000.0, 0]
    assert [price_text(one) for one in prices] == [
        "64,000.12",
        "3.1416",
        "1.23457e-05",
        "-2,000.00",
        "0",
    ]
    times = [0.04, 9.9, 59, 119, 300, 7_000, 200_000]
    assert [duration(one) for one in times] == [
        "0.0 s",
        "9.9 s",
        "59 s",
        "119 s",
        "5 min",
        "117 min",
        "2 d",
    ]
    assert [size(one) for one in (0, 999, 1_500, 2_500_000)] == ["0 B", "999 B", "1.5 kB", "2.5 MB"]
