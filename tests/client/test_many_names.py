"""The core with very many names: the work grows with their number, and no faster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from trio_odin.client.core import Core
from trio_odin.client.items import Dial, Send


def calls_of(act: Callable[[], object]) -> int:
    """How many calls of functions it takes, which is the same on any machine."""
    count = 0

    def note(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event.endswith("call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before)
    return count


def answer_all(core: Core) -> float:
    """Give what a server would: connections, and a first value of each channel; when it is done."""
    seqs: dict[int, int] = {}
    now = 0.0
    for _ in range(1_000):
        now += 200
        core.tick(now)
        for output in core.take():
            if isinstance(output, Dial):
                core.opened(now, output.conn)
            elif isinstance(output, Send):
                answer(core, now, output, seqs)
        if core.state.name == "live":
            return now
    raise AssertionError("it is never live")


def answer(core: Core, now: float, send: Send, seqs: dict[int, int]) -> None:
    conn, message = send.conn, send.message
    if message["type"] != "subscribe":
        core.received(now, conn, {"type": "pong", "nats": "connected", "age_ms": 0})
        return
    names: list[str] = message["channels"]
    reply: dict[str, Any] = {"epoch": "e1", "offset": 10, "id": message["id"]}
    core.received(now, conn, reply | {"type": "subscription_ack", "subscribed": names})
    for name in names:
        seqs[conn] = seqs.get(conn, 0) + 1
        event = {"type": "price:update", "ts": 1, "data": 1, "channel": name, "offset": 5}
        core.received(now, conn, event | {"seq": seqs[conn], "snapshot": True})
    done = {"type": "snapshot_done", "sent": len(names), "total": len(names)}
    core.received(now, conn, done | {"id": message["id"]})


def calls_for_one_more_subscription(count: int) -> int:
    """What a subscription to a name costs that is known already, next to so many of them."""
    core = Core(["wss://a/ws"])
    core.start(0)
    names = [f"T{number}.trade" for number in range(count)]
    for number, name in enumerate(names):
        core.subscribe(0, number, [name])
    now = answer_all(core)
    assert core.newest(names[-1]) is not None
    return calls_of(lambda: core.subscribe(now, count, [names[0]]))


def test_another_subscription_does_not_look_at_each_channel() -> None:
    few, many = calls_for_one_more_subscription(50), calls_for_one_more_subscription(200)
    assert many < few * 2
