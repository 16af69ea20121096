"""The log says who is refused and why, and a crowd of them does not fill it."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
import trio.testing

from trio_odin.ledger.reasons import Rejection
from trio_odin.listener import refusal_log
from trio_odin.listener.refusal_log import RefusalLog
from trio_odin.wire.handshake import Upgrade, reject

_PAGE = Upgrade({b"origin": b"https://new.example", b"user-agent": b"bot/1"}, b"token=secret")
_ADDRESS = ipaddress.ip_address("192.0.2.7")


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.lines.append({"event": event, **facts})


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    kept = Lines()
    monkeypatch.setattr(refusal_log, "_log", kept)
    return kept.lines


async def test_a_page_of_another_origin_is_named(lines: list[dict[str, Any]]) -> None:
    RefusalLog().write(reject(Rejection.ORIGIN), _PAGE, _ADDRESS)
    assert lines == [
        {
            "event": "handshake.refused",
            "reason": "origin",
            "error": "Origin not allowed",
            "origin": "https://new.example",
            "address": "192.0.2.7",
            "user_agent": "bot/1",
            "not_logged": 0,
            "origins": ["https://new.example"],
        }
    ]


async def test_what_is_unknown_before_the_request_is_read_is_null(
    lines: list[dict[str, Any]],
) -> None:
    RefusalLog().write(reject(Rejection.AT_CAPACITY), Upgrade({}, b""), None)
    (line,) = lines
    assert (line["origin"], line["address"], line["user_agent"]) == (None, None, "")


async def test_a_hostile_origin_is_cut_and_made_printable(lines: list[dict[str, Any]]) -> None:
    hostile = Upgrade({b"origin": b"\x1b[2J\n" + 1000 * b"x"}, b"")
    RefusalLog().write(reject(Rejection.ORIGIN), hostile, _ADDRESS)
    (line,) = lines
    assert line["origin"].isprintable()
    assert len(line["origin"]) < 200


async def test_an_origin_is_made_readable_only_for_a_line_or_to_be_counted(
    lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def shown(text: str) -> str:
        made.append(text)
        return text

    monkeypatch.setattr(refusal_log, "shown", shown)
    log = RefusalLog()
    for _ in range(1000):
        log.write(reject(Rejection.UNAUTHORIZED), _PAGE, _ADDRESS)
    assert [line["origin"] for line in lines] == made == ["https://new.example"]
    for _ in range(10):
        log.write(reject(Rejection.ORIGIN), _PAGE, _ADDRESS)
    assert lines[-1]["origins"] == ["https://new.example"]
    assert len(made) == 1 + 10 + 1


async def test_a_crowd_is_one_line_in_ten_seconds_for_each_reason(
    lines: list[dict[str, Any]], mock_clock: trio.testing.MockClock
) -> None:
    log = RefusalLog()
    for _ in range(1000):
        log.write(reject(Rejection.ORIGIN), _PAGE, _ADDRESS)
        log.write(reject(Rejection.UNAUTHORIZED), _PAGE, _ADDRESS)
    mock_clock.jump(10.0)
    log.write(reject(Rejection.ORIGIN), _PAGE, _ADDRESS)
    logged = [(line["reason"], line["not_logged"]) for line in lines]
    assert logged == [("origin", 0), ("unauthorized", 0), ("origin", 999)]


async def test_a_page_is_named_among_a_thousand_invented_origins(
    lines: list[dict[str, Any]], mock_clock: trio.testing.MockClock
) -> None:
    log = RefusalLog()
    for number in range(1000):
        log.write(reject(Rejection.ORIGIN), Upgrade({b"origin": b"https://%d" % number}, b""), None)
        if number % 8 == 0:
            log.write(reject(Rejection.ORIGIN), _PAGE, _ADDRESS)
    mock_clock.jump(10.0)
    log.write(reject(Rejection.ORIGIN), Upgrade({b"origin": b"https://last"}, b""), None)
    assert [line["origins"][0] for line in lines] == ["https://0", "https://new.example"]
    assert len(lines[1]["origins"]) == 3


@pytest.mark.parametrize("reason", [Rejection.BAD_REQUEST, Rejection.TIMEOUT, Rejection.OVERLOADED])
async def test_what_other_lines_tell_or_anybody_causes_is_not_logged(
    lines: list[dict[str, Any]], reason: Rejection
) -> None:
    RefusalLog().write(reject(reason), _PAGE, _ADDRESS)
    assert lines == []
