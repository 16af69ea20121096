"""What only the core in Python has; the rest is in the vectors and in the simulation."""

from __future__ import annotations

from trio_odin.client.core import Core
from trio_odin.client.items import Deliver, Event, Gap, Send


def sent(core: Core) -> list[dict[str, object]]:
    return [output.message for output in core.take() if isinstance(output, Send)]


def test_it_begins_after_the_position_of_an_earlier_program() -> None:
    core = Core(["wss://a/ws"])
    core.start(0)
    core.subscribe(0, 1, ["A.t", "B.t"])
    core.subscribe(0, 2, ["C.t"], 1000)
    core.begin_after(0, "e1", 70)
    core.opened(5, 1)
    assert sent(core) == [
        {
            "type": "subscribe",
            "channels": ["A.t", "B.t"],
            "id": 1,
            "snapshot": True,
            "after": 70,
            "epoch": "e1",
            "notices": True,
        }
    ]
    ack = {"type": "subscription_ack", "subscribed": ["A.t", "B.t"], "count": 2, "epoch": "e1"}
    core.received(6, 1, ack | {"id": 1})
    core.received(7, 1, {"type": "resumed", "sent": 0, "offset": 80, "id": 1})
    assert [(message["channels"], message["after"]) for message in sent(core)] == [(["C.t"], 70)]


def test_an_event_is_the_newest_one_of_its_channel_until_nobody_wants_it() -> None:
    core = Core(["wss://a/ws"])
    core.start(0)
    core.subscribe(0, 1, ["A.t"])
    core.opened(5, 1)
    ack = {"type": "subscription_ack", "subscribed": ["A.t"], "count": 1, "epoch": "e1"}
    core.received(6, 1, ack | {"offset": 3, "id": 1})
    assert core.newest("A.t") is None
    event = {"seq": 1, "type": "price:update", "ts": 9, "data": None, "channel": "A.t", "offset": 2}
    core.received(7, 1, event | {"snapshot": True})
    found = core.newest("A.t")
    assert found is not None
    assert (found.data, found.offset, found.is_snapshot) == (None, 2, True)
    core.received(8, 1, {"type": "snapshot_done", "sent": 1, "total": 1, "id": 1})
    core.unsubscribe(9, 1)
    core.received(10, 1, {"type": "unsubscription_ack", "unsubscribed": ["A.t"], "id": 2})
    assert core.newest("A.t") is None


def test_after_the_end_nothing_is_handed_out() -> None:
    core = Core(["wss://a/ws"])
    core.start(0)
    core.close(1)
    core.take()
    core.subscribe(2, 1, ["A.t"])
    core.received(3, 1, {"type": "gap", "reason": "shed", "epoch": "e1", "to": None})
    core.tick(4)
    assert not [one for one in core.take() if isinstance(one, Deliver | Event | Gap)]
    assert core.deadline() is None
