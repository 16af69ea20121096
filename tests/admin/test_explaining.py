from __future__ import annotations

import json
from typing import Any

import pytest
import structlog
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.admin.explaining import _HAPPENED, _WHY, explain, facts_in
from trio_odin.cli import main
from trio_odin.fanout.flight import FlightEvent, FlightRecorder
from trio_odin.ledger.reasons import CloseReason
from trio_odin.telemetry.logs import _renderers

FACTS: dict[str, Any] = {
    "event": "connection.evicted",
    "level": "info",
    "timestamp": "2026-11-29T03:12:08.106268Z",
    "worker": 2,
    "connection": 1207,
    "address": "10.0.0.1",
    "sub": "ann",
    "user_agent": 'Python/3.11 "web sockets"=1 it\'s',
    "reason": "outbox_full",
    "seconds": 12.5,
    "seq": 1600,
    "dropped": 3,
    "conflated": 0,
    "silent_seconds": 5.2,
    "queued": 512,
    "queued_bytes": 190_000,
    "events": [
        "0.010s subscribe x2",
        "5.100s outbox began to fill",
        "9.000s messages waiting x256",
        "12.500s dropped: outbox full x3",
    ],
    "not_logged": 4,
}
STYLES = ("json", "text", "pretty")


def line_of(facts: dict[str, Any], style: str) -> str:
    """The line that the server writes."""
    *_, renderer = _renderers(style)
    return str(renderer(structlog.get_logger(), "info", dict(facts)))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("before", ["", "ws-1  | ", "Nov 29 03:12:08 node trio-odin[7]: "])
def test_a_line_of_each_format_says_the_same(style: str, before: str) -> None:
    if style == "pretty" and before:
        pytest.skip("its time comes first")
    facts = facts_in(before + line_of(FACTS, style))
    assert facts is not None
    said = list(explain(facts))
    assert said == [
        (
            "Connection 1207 of worker 2 (from 10.0.0.1, with a token of ann, user agent "
            'Python/3.11 "web sockets"=1 it\'s) was closed by the server at 2026-11-29 03:12:08 '
            "UTC, 12.5 s after it had connected."
        ),
        "It read too slowly: 3 messages in a row found no room in its outbox.",
        "It had 1,600 numbered messages in all, 3 found no room and were dropped.",
        "At the end 512 messages (185.5 KiB) waited.",
        "The last sign of life had come 5.2 s before.",
        "What had happened, by the time since it had connected:",
        "  0.010 s: it subscribed, 2 times up to then",
        "  5.100 s: its socket took no more, and messages began to wait",
        "  9.000 s: 256 messages waited",
        "  12.500 s: a message was dropped, as the outbox was full, 3 times up to then",
        "Its close code was 1008, so it may come back.",
        (
            "What helps: a client that reads faster, fewer channels, a rate (every_ms), or "
            "WS_SLOW_POLICY=conflate, which keeps the newest event of each channel "
            "(docs/protocol.md, When you read too slowly)."
        ),
        (
            "4 further connections ended like this without a line, as only 20 a second are "
            "written: ws_connections_closed_total has all of them by reason."
        ),
    ]


@pytest.mark.parametrize("key", ["log", "message", "MESSAGE"])
def test_a_line_within_the_json_of_a_log_shipper_is_found(key: str) -> None:
    wrapped = json.dumps({key: line_of(FACTS, "json") + "\n", "stream": "stderr"})
    assert facts_in(wrapped) == FACTS


@pytest.mark.parametrize("reason", CloseReason)
@pytest.mark.parametrize("style", STYLES)
def test_each_reason_has_a_sentence(reason: CloseReason, style: str) -> None:
    few = {
        "event": "connection.closed",
        "timestamp": FACTS["timestamp"],
        "level": "info",
        "connection": 1,
        "address": None,
        "sub": None,
        "user_agent": "",
        "reason": reason.label,
        "seconds": 9000.0,
        "seq": 1,
        "dropped": 0,
        "conflated": 2,
    }
    facts = facts_in(line_of(few, style))
    assert facts is not None
    first, why, state, *rest = explain(facts)
    assert first.startswith("Connection 1 ")
    assert "2.5 h after" in first
    assert why == _WHY[reason].format(in_a_row=3)
    assert state.endswith(", 2 gave way to newer ones of their channel.")
    codes = [line for line in rest if "close code" in line]
    assert len(codes) == (reason.code is not None)
    if reason.code == 4501:
        assert "should not come back" in codes[0]


def test_each_event_of_the_flight_recorder_has_a_sentence() -> None:
    assert set(_HAPPENED) == set(FlightEvent)
    recorder = FlightRecorder(0.0)
    for number, event in enumerate(FlightEvent):
        recorder.add(event, number / 10, 2)
    said = list(explain(FACTS | {"events": recorder.lines()}))
    for event in FlightEvent:
        assert any(_HAPPENED[event].format(count=2) in line for line in said), event


def test_a_line_that_only_counts_others_is_explained() -> None:
    (said,) = explain({"event": "connection.evicted", "not_logged": 1})
    assert said.startswith("1 further connection ended")


def test_foreign_text_does_not_steer_the_terminal() -> None:
    facts = facts_in(json.dumps(FACTS | {"user_agent": "\x1b]0;x\x07", "reason": "\x1b[2J"}))
    assert facts is not None
    assert "\x1b" not in "".join(explain(facts))


@pytest.mark.parametrize(
    "line",
    ["", "{}", "server.listening", '{"event":"server.listening"}', "{" * 10_000,
     '{"event": "x", "reason": "connection.evicted"}', "a connection.evictedness"],
)  # fmt: skip
def test_other_lines_are_passed_over_or_said_little_about(line: str) -> None:
    facts = facts_in(line)
    assert facts is None or list(explain(facts)) == []


@given(st.text(), st.text(), st.sampled_from(["", "{", '{"event":"connection.evicted",']))
def test_no_line_raises(before: str, after: str, start: str) -> None:
    facts = facts_in(f"{before}{start} connection.evicted {after}")
    if facts is not None:
        list(explain(facts))


@given(
    st.dictionaries(
        st.sampled_from(sorted(FACTS)),
        st.one_of(st.none(), st.text(), st.floats(), st.integers(), st.lists(st.text())),
    )
)
def test_no_facts_raise(odd: dict[str, Any]) -> None:
    list(explain(FACTS | odd))


def test_the_command_takes_a_line_or_a_log() -> None:
    line = line_of(FACTS, "json")
    runner = CliRunner()
    by_argument = runner.invoke(main, ["explain", line])
    assert by_argument.exit_code == 0
    assert by_argument.stdout.startswith("Connection 1207 of worker 2 ")
    log = f"server.listening\n{line}\n{line}\n"
    by_input = runner.invoke(main, ["explain"], input=log)
    assert by_input.stdout == f"{by_argument.stdout}\n{by_argument.stdout}"
    nothing = runner.invoke(main, ["explain"], input="server.listening\n")
    assert nothing.exit_code == 2
    assert "there is no line with the event connection.evicted" in nothing.output
