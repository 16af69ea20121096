from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.server.rig import Rig
from trio_odin.core.closing import CloseReason
from trio_odin.server import evictions


class Lines:
    """A log that remembers."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.lines.append({"event": event, **facts})


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    lines = Lines()
    monkeypatch.setattr(evictions, "_log", lines)
    return lines.lines


async def test_the_log_explains_an_eviction(
    nursery: trio.Nursery, log: list[dict[str, Any]], autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery, WS_OUTBOX_CAPACITY="2")
    await rig.subscribe("BTC.trade")
    (connection,) = rig.hub.members
    connection.outlet._stream = trio.testing.lockstep_stream_pair()[0]
    await trio.sleep(2)
    rig.publish("BTC.trade")
    await trio.sleep(0.5)  # the writer has it
    for _ in range(5):
        rig.publish("BTC.trade")
    await rig.listener.wait_empty()
    (line,) = log
    events = line.pop("events")
    assert "0.000s subscribe" in events
    assert events[-1] == "2.500s dropped: outbox full x3"
    assert line.pop("queued_bytes") > 0
    assert line == {
        "event": "connection.evicted",
        "connection": connection.number,
        "reason": "outbox_full",
        "seconds": 2.5,
        "silent_seconds": 2.5,
        "seq": 6,
        "queued": 3,
    }
    assert rig.hub.outbox_rules.budget.used_bytes == 0
    rig.check_balance()


@pytest.mark.parametrize(
    ("reason", "is_logged"),
    [
        (CloseReason.KEEPALIVE_TIMEOUT, True),
        (CloseReason.INTERNAL_ERROR, True),
        (CloseReason.TOKEN_EXPIRED, True),
        (CloseReason.PEER_GONE, False),  # it was not us
    ],
)
async def test_every_close_by_force_is_logged_once(
    reason: CloseReason, *, is_logged: bool, nursery: trio.Nursery, log: list[dict[str, Any]]
) -> None:
    rig = Rig(nursery)
    await rig.subscribe("BTC.trade")
    (connection,) = rig.hub.members
    connection.evict(reason)
    connection.evict(CloseReason.OUTBOX_FULL)
    await rig.listener.wait_empty()
    assert [line["reason"] for line in log] == [reason.label] * is_logged


async def test_a_flood_of_evictions_is_some_lines_and_a_number(
    nursery: trio.Nursery, log: list[dict[str, Any]], mock_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery)
    for _ in range(30):
        await rig.subscribe("BTC.trade")
    connections = list(rig.hub.members)
    for connection in connections[:25]:
        connection.evict(CloseReason.KEEPALIVE_TIMEOUT)
    assert len(log) == 20
    mock_clock.jump(1)
    for connection in connections[25:27]:
        connection.evict(CloseReason.KEEPALIVE_TIMEOUT)
    assert [line.get("evictions_not_logged") for line in log[20:]] == [5, None]
    rig.hub.evictions.write_rest()
    assert len(log) == 22
    for _ in range(30):
        rig.hub.evictions.write(1, CloseReason.OUTBOX_FULL, connections[29].outlet)
    rig.hub.evictions.write_rest()
    rig.hub.evictions.write_rest()
    assert log[-1] == {"event": "connection.evicted", "evictions_not_logged": 30 - 18}
    assert len(log) == 22 + 18 + 1
