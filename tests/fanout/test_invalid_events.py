"""The log names events that cannot be published, and a flood of them does not fill it."""

from __future__ import annotations

from typing import Any

import pytest
import trio.testing

from trio_odin.fanout import invalid_events
from trio_odin.fanout.hub import Hub
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import Invalid
from trio_odin.settings.reading import read_settings
from trio_odin.upstream.nats_message import NatsMessage


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def warning(self, event: str, **facts: Any) -> None:
        self.lines.append({"event": event, **facts})


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    lines = Lines()
    monkeypatch.setattr(invalid_events, "_log", lines)
    return lines.lines


class Reader:
    """A member that takes everything."""

    def deliver(self, *_: Any) -> int:
        return 1

    def defer(self, *_: Any) -> bool:
        return False

    def flush(self) -> None:
        pass


@pytest.fixture
async def hub(mock_clock: trio.testing.MockClock) -> Hub[Any]:
    hub: Hub[Any] = Hub(read_settings({}), Ledger())
    reader: Any = Reader()
    hub.registry.subscribe(reader, ["BTC.trade"])
    return hub


def publish(hub: Hub[Any], subject: str, payload: bytes = b"{}", offset: int = 1) -> None:
    hub.publish(NatsMessage(subject, payload, offset, 0.0))


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b'{"price":NaN}', "JSON is malformed"),
        (b"{nonsense", "JSON is malformed"),
        (b'{"name":"\xff"}', "can't decode byte 0xff"),
    ],
)
async def test_a_bad_payload_is_logged_with_subject_offset_and_reason(
    hub: Hub[Any], log: list[dict[str, Any]], payload: bytes, error: str
) -> None:
    publish(hub, "odin.token.BTC.trade", payload, offset=77)
    (line,) = log
    assert error in line.pop("error")
    assert line == {
        "event": "event.invalid",
        "reason": "payload",
        "subject": "odin.token.BTC.trade",
        "offset": 77,
        "not_logged": 0,
    }


async def test_a_bad_subject_is_logged_with_the_rule(
    hub: Hub[Any], log: list[dict[str, Any]]
) -> None:
    publish(hub, "odin.token.BTC/USD.trade")
    (line,) = log
    assert line["subject"] == "odin.token.BTC/USD.trade"
    assert line["reason"] == "subject"
    assert "each part of letters, digits, _ and -" in line["error"]


async def test_a_hostile_subject_is_cut_and_made_printable(
    hub: Hub[Any], log: list[dict[str, Any]]
) -> None:
    publish(hub, "odin.token.\x1b[2J\u202e\udcdc\n" + 100_000 * "x")
    (line,) = log
    assert line["subject"].startswith("odin.token.\\x1b[2J\\u202e\\udcdc\\nxxx")
    assert len(line["subject"]) < 300
    assert line["subject"].isprintable()


async def test_a_flood_is_one_line_in_ten_seconds_for_each_reason(
    hub: Hub[Any], log: list[dict[str, Any]], mock_clock: trio.testing.MockClock
) -> None:
    for _ in range(1000):
        publish(hub, "odin.token.B/C.trade")
        publish(hub, "odin.token.BTC.trade", b"{")
    mock_clock.jump(10.0)
    publish(hub, "odin.token.B/C.trade")
    told = [(line["reason"], line["not_logged"]) for line in log]
    assert told == [("subject", 0), ("payload", 0), ("subject", 999)]
    assert hub.ledger.publications.invalid == {Invalid.SUBJECT: 1001, Invalid.PAYLOAD: 1000}
