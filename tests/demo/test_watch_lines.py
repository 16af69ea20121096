from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trio

from trio_odin.client import Event, Gap, Position, Refused, State
from trio_odin.demo.watch_lines import Lines, described
from trio_odin.demo.watch_words import why_of


def test_an_event_has_the_keys_of_the_protocol() -> None:
    event = Event(channel="BTC.trade", data={"price": 1.5}, unix_ms=5)
    assert described(event, 9) == {
        "type": "price:update",
        "channel": "BTC.trade",
        "ts": 5,
        "data": {"price": 1.5},
    }
    whole = Event(
        channel="BTC.trade",
        data=None,
        unix_ms=5,
        offset=4,
        prev=3,
        skipped=2,
        is_snapshot=True,
        epoch="e",
    )
    assert (
        described(whole, 9).items()
        >= {
            "data": None,
            "offset": 4,
            "prev": 3,
            "epoch": "e",
            "skipped": 2,
            "snapshot": True,
        }.items()
    )
    uncounted = Event(channel="BTC.trade", data=1, unix_ms=5, skipped=None)
    assert described(uncounted, 9)["skipped"] is None


def test_everything_else_has_a_type_of_its_own() -> None:
    gap = Gap(channels=("BTC.trade", "*.social"), missed=None, reason="window")
    assert described(gap, 9) == {
        "type": "gap",
        "ts": 9,
        "channels": ("BTC.trade", "*.social"),
        "missed": None,
        "reason": "window",
        "why": "the server was without NATS for too long",
    }
    assert described(Refused(channel="A.b", code="FORBIDDEN_CHANNEL"), 9) == {
        "type": "refused",
        "ts": 9,
        "channel": "A.b",
        "code": "FORBIDDEN_CHANNEL",
    }
    assert described(State(name="live"), 9) == {"type": "state", "ts": 9, "state": "live"}
    offline = State(name="offline", cause="no answer", at=1_000, retry_at=1_250.4)
    assert described(offline, 9) == {
        "type": "state",
        "ts": 9,
        "state": "offline",
        "cause": "no answer",
        "retry_in_ms": 250,
    }


def test_each_reason_of_a_gap_has_words() -> None:
    """Those of the table in docs/clients/reconnecting.md."""
    page = (Path(__file__).parents[2] / "docs" / "clients" / "reconnecting.md").read_text()
    table = page[page.index("| `reason` of a gap |") :]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    reasons = set(re.findall(r"`(\w+)`", " ".join(cells))) - {"reason"}
    assert len(reasons) >= 10
    assert not [reason for reason in reasons if why_of(reason) == reason]


async def test_each_line_is_one_object() -> None:
    lines: list[str] = []
    view = Lines(lines.append)
    await view.take(Event(channel="BTC.trade", data={"text": "a\nb"}, unix_ms=5))
    assert "\n" not in lines[0]
    assert json.loads(lines[0])["data"] == {"text": "a\nb"}


async def test_a_position_is_a_line_when_it_has_moved() -> None:
    lines: list[str] = []
    view = Lines(lines.append)
    for offset in (3, 3, 4):
        await view.reach(Position("e", offset))
    found = [json.loads(line) for line in lines]
    assert all(one.pop("ts") > 0 for one in found)
    assert found == [{"type": "position", "epoch": "e", "offset": offset} for offset in (3, 4)]


async def test_a_full_pipe_blocks_nobody_else() -> None:
    release = trio.Event()

    def write(_: str) -> None:
        trio.from_thread.run(release.wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Lines(write).take, State(name="live"))
        await trio.sleep(0.01)
        release.set()


async def test_once_it_is_live_it_names_what_has_never_had_an_event() -> None:
    lines: list[str] = []
    view = Lines(lines.append, ["BTC.trade", "*.social", "*.trade", "sol.none", "A.refused"])
    await view.take(Event(channel="BTC.trade", data=1, unix_ms=5, is_snapshot=True))
    await view.take(Refused(channel="A.refused", code="FORBIDDEN_CHANNEL"))
    await view.take(State(name="live"))
    await view.take(State(name="live"))
    found = [json.loads(line) for line in lines]
    assert [(one["channel"], one.get("hint")) for one in found if one["type"] == "no_event"] == [
        ("*.social", None),
        ("sol.none", "SOL.none"),
    ]


@pytest.mark.parametrize("text", ["a\x9b2Jb\x7f", "a\u2028\u2029\x85b", "\ud800", 10**30])
async def test_a_line_is_nothing_but_text_to_a_terminal(text: object) -> None:
    lines: list[str] = []
    await Lines(lines.append).take(Event(channel="A.b", data={"text": text}, unix_ms=5))
    assert lines[0].isprintable()
    assert json.loads(lines[0])["data"] == {"text": text}
