"""The three rules of the page, as the client of the oracle applies them."""

from __future__ import annotations

import json
from typing import Any

from tests.oracle import judge
from tests.oracle.follower import Follower, Message, Position


class Conversation:
    """A follower, and a server with the test's messages."""

    def __init__(self, position: Position | None = None) -> None:
        self.it = Follower({"A.b"}, position)
        self.command: Message = {}
        self.seq = 0

    def open(self) -> Conversation:
        self.command, self.seq = self.it.open(), 0
        return self

    def ack(self, **content: Any) -> Conversation:
        names = {"subscribed": self.command["channels"], "id": self.command["id"]}
        return self.says("subscription_ack", **names, **content)

    def event(self, offset: int) -> Conversation:
        self.seq += 1
        content = {"seq": self.seq, "ts": 1, "type": "price:update", "priority": 1}
        content |= {"data": {"n": offset}, "channel": "A.b", "offset": offset}
        self.it.receive(json.dumps(content, separators=(",", ":")))
        return self

    def says(self, kind: str, **content: Any) -> Conversation:
        self.it.receive(json.dumps({"type": kind, **content}))
        return self

    def gap(self, reason: str, epoch: str, to: int | None = None) -> Conversation:
        return self.says("gap", reason=reason, epoch=epoch, to=to, **{"from": None})

    def broken(self) -> Conversation:
        self.it.broke("test")
        return self

    @property
    def position(self) -> tuple[str, int] | None:
        position = self.it.position
        return None if position is None else (position.epoch, position.offset)


def test_the_position_is_the_largest_stated_offset() -> None:
    talk = Conversation().open()
    assert "after" not in talk.command
    assert talk.ack(epoch="x", offset=3).position == ("x", 3)
    assert talk.event(5).position == ("x", 5)
    assert talk.says("pong", nats="connected", offset=9).position == ("x", 9)
    assert talk.event(7).position == ("x", 9)
    assert talk.it.journal[-1].__class__ is judge.Event


def test_a_missing_offset_is_not_a_position() -> None:
    talk = Conversation().open().ack(epoch=None, offset=None)
    assert talk.says("pong", nats="disconnected", offset=None).position is None
    assert talk.gap("start", "x", to=4).position == ("x", 4)
    talk = Conversation(Position("x", 7)).open().ack(epoch=None)
    assert talk.says("resumed", sent=0, offset=None).position == ("x", 7)


def test_a_client_resumes_from_its_position() -> None:
    talk = Conversation(Position("x", 7)).open()
    assert (talk.command["after"], talk.command["epoch"]) == (7, "x")


def test_the_position_stays_during_a_resume() -> None:
    talk = Conversation(Position("x", 7)).open()
    talk.ack(epoch="x").event(8).says("pong", nats="connected", offset=9)
    assert talk.position == ("x", 7)
    assert talk.says("resumed", sent=1, offset=8).position == ("x", 9)


def test_events_of_a_broken_resume_are_ignored_when_they_come_again() -> None:
    talk = Conversation(Position("x", 7)).open().ack(epoch="x").event(8).event(9)
    talk.broken().open()
    assert talk.command["after"] == 7
    talk.ack(epoch="x").event(8).event(9).event(10).says("resumed", sent=3, offset=10).event(11)
    ignored = [event.offset for event in talk.it.events() if event.is_ignored]
    assert ignored == [8, 9]
    assert talk.it.numbers == {8, 9, 10, 11}


def test_live_events_during_a_broken_resume_may_come_again() -> None:
    talk = Conversation(Position("x", 7)).open().ack(epoch="x").event(8).broken().open()
    talk.ack(epoch="x").says("resumed", sent=0, offset=7).event(8).event(9).event(9)
    ignored = [event.offset for event in talk.it.events() if event.is_ignored]
    assert ignored == [8], "9 is a repeat that nothing explains"


def test_an_event_of_another_epoch_is_not_a_repeat() -> None:
    talk = Conversation(Position("x", 7)).open().ack(epoch="x").event(8)
    talk.broken().open().ack(epoch="y").event(2).event(3)
    assert not any(event.is_ignored for event in talk.it.events())


def test_a_server_that_lags_by_a_stream_brings_nothing_twice() -> None:
    talk = Conversation(Position("y", 0)).open().ack(epoch="y").says("resumed", sent=0, offset=0)
    talk.event(1).event(2).broken().open().ack(epoch="x").event(9)
    talk.says("resume_incomplete", channels=["A.b"]).says("resumed", sent=1, offset=9).gap(
        "stream", "y"
    )
    assert talk.position == ("y", 0)
    talk.event(1).event(2).event(3)
    assert [event.offset for event in talk.it.events() if event.is_ignored] == [1, 2]
    assert talk.position == ("y", 3)


def test_the_position_starts_anew_with_another_epoch() -> None:
    talk = Conversation().open().ack(epoch="x", offset=3).gap("stream", "y")
    assert talk.position == ("y", 0)
    assert talk.event(1).position == ("y", 1)
    talk = Conversation(Position("x", 7)).open().ack(epoch="y").event(2)
    assert talk.position == ("x", 7)
    assert talk.says("resumed", sent=1, offset=5).position == ("y", 5)


def test_a_gap_of_the_same_epoch_leaves_the_position() -> None:
    talk = Conversation().open().ack(epoch="x", offset=3).gap("window", "x", to=9)
    assert talk.position == ("x", 3)


def test_an_unexpected_answer_is_kept_as_an_error() -> None:
    talk = Conversation().open().says("error", code="INVALID_COMMAND", message="no")
    assert "INVALID_COMMAND" in talk.it.errors[0]
