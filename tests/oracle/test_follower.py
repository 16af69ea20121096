"""The three rules of the page, as the client of the oracle applies them."""

from __future__ import annotations

import json
from typing import Any

from tests.oracle import judge
from tests.oracle.follower import Follower, Message, Position, Rate


class Conversation:
    """A follower, and a server with the test's messages."""

    def __init__(self, position: Position | None = None) -> None:
        self.it = Follower({"A.b": 0}, {} if position is None else {"A.b": position})
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
        position = self.it.positions.get("A.b")
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


class Rates:
    """A follower whose channels have rates, and a server with the test's messages."""

    def __init__(self, patterns: dict[str, frozenset[str]] | None = None, **names: Rate) -> None:
        own = {name.replace("_", "."): rate for name, rate in names.items()}
        self.it = Follower(own, patterns=patterns or {})
        self.seq = 0

    def says(self, kind: str, **content: Any) -> Rates:
        message = {"type": kind, **content}
        self.it.receive(json.dumps(message, separators=(",", ":")))
        return self

    def ack(self, command: Message | None, offset: int) -> Rates:
        assert command is not None
        names = {"subscribed": command["channels"], "id": command["id"]}
        rate = {"every_ms": command["every_ms"]} if "every_ms" in command else {}
        state = {} if "after" in command else {"offset": offset}
        self.says("subscription_ack", **names, epoch="x", **rate, **state)
        return self.says("resumed", sent=0, offset=offset) if "after" in command else self

    def begin(self, offset: int) -> Rates:
        """A first connection, at an offset."""
        self.ack(self.it.open(), offset)
        while (command := self.it.next_command()) is not None:
            self.ack(command, offset)
        return self

    def update(self, channel: str, offset: int) -> Rates:
        self.seq += 1
        content = {"seq": self.seq, "ts": 1, "data": {"n": offset}}
        return self.says("price:update", **content, channel=channel, offset=offset)

    def batch(self, *events: tuple[str, int]) -> Rates:
        self.seq += 1
        content = [
            {"channel": channel, "offset": offset, "ts": 1, "data": {"n": offset}}
            for channel, offset in events
        ]
        return self.says("price:batch", seq=self.seq, ts=1, events=content)

    def again(self) -> list[tuple[list[str], Rate, int]]:
        """The commands of a new connection: names, rate, and from where."""
        self.it.broke("test")
        commands: list[tuple[list[str], Rate, int]] = []
        command: Message | None = self.it.open()
        while command is not None:
            commands.append((command["channels"], command.get("every_ms", 0), command["after"]))
            self.ack(command, command["after"])
            command = self.it.next_command()
        assert self.it.errors == []
        return commands


def test_each_rate_is_resumed_from_the_newest_offset_that_came_at_it() -> None:
    talk = Rates(A_x=0, B_x=100, C_x=250).begin(5).update("A.x", 9).batch(("B.x", 7))
    assert talk.again() == [(["A.x"], 0, 9), (["B.x"], 100, 7), (["C.x"], 250, 5)]
    talk.batch(("C.x", 13))
    assert talk.again() == [(["A.x"], 0, 9), (["B.x"], 100, 7), (["C.x"], 250, 13)]


def test_a_position_that_the_server_states_is_one_for_all_rates_but_a_pause() -> None:
    talk = Rates(A_x=0, B_x=100, C_x=None).begin(5).update("A.x", 12)
    talk.says("pong", nats="connected", offset=8)
    assert talk.again() == [(["A.x"], 0, 12), (["B.x"], 100, 8), (["C.x"], None, 5)]
    stated = [one for one in talk.it.journal if isinstance(one, judge.Stated)]
    assert stated[-1].channels == frozenset({"A.x", "B.x"})


def test_a_position_may_be_lower_than_that_of_a_new_channel() -> None:
    """It is that of an event at a rate which waits for its tick."""
    talk = Rates(A_x=0).begin(5)
    talk.ack(talk.it.add(["B.x"], 100, is_resume=False), 7)
    talk.ack(talk.it.add(["C.x"], 100, is_resume=False), 9)
    began = [one for one in talk.it.journal if isinstance(one, judge.Began)]
    assert [one.is_at_least for one in began] == [False, False, True]


def test_the_events_of_a_batch_are_those_of_one_message() -> None:
    talk = Rates(A_x=100, B_x=100).begin(5).batch(("A.x", 6), ("B.x", 8))
    first, second = talk.it.events()
    assert (first.seq, second.seq, first.batch_to, second.batch_to) == (1, 1, 8, 8)
    assert (first.payload, second.payload) == ('{"n":6}', '{"n":8}')
    assert talk.again() == [(["A.x", "B.x"], 100, 8)]


def test_events_of_a_stream_that_has_gone_only_have_a_number() -> None:
    talk = Rates(A_x=100, B_x=100).begin(5)
    old = {"channel": "A.x", "ts": 1, "data": {"n": 3}}
    talk.says("price:batch", seq=1, ts=1, events=[old])
    assert isinstance(talk.it.journal[-1], judge.OfGoneStream)
    new = {"channel": "B.x", "offset": 6, "ts": 1, "data": {"n": 6}}
    talk.says("price:batch", seq=2, ts=1, events=[old, new])
    assert [one.offset for one in talk.it.events()] == [6]
    assert talk.again() == [(["A.x", "B.x"], 100, 6)]


def test_what_is_due_before_an_acknowledgement_is_no_position_of_other_names() -> None:
    talk = Rates(A_x=100, B_x=100).begin(5)
    command = talk.it.change_rate(["A.x"], 0)
    talk.batch(("A.x", 9)).ack(command, 7)
    assert talk.again() == [(["A.x"], 0, 7), (["B.x"], 100, 7)], "8 of B may wait"


def test_a_change_that_is_not_acknowledged_brings_no_position() -> None:
    talk = Rates(A_x=0, B_x=100).begin(5)
    talk.it.change_rate(["B.x"], 0)
    talk.update("A.x", 9)
    assert talk.again() == [(["A.x", "B.x"], 0, 5)]


def test_a_resume_without_an_answer_begins_again_where_it_was() -> None:
    talk = Rates(A_x=100).begin(5)
    talk.it.add(["B.x"], 100, is_resume=True)
    talk.batch(("A.x", 9))
    assert talk.again() == [(["A.x", "B.x"], 100, 5)], "8 of B may be missing"


def test_a_pause_keeps_its_position_until_it_ends() -> None:
    talk = Rates(A_x=0, B_x=None).begin(5).update("A.x", 9)
    assert talk.again() == [(["A.x"], 0, 9), (["B.x"], None, 5)]
    talk.ack(talk.it.change_rate(["B.x"], 250), 11)
    assert talk.again() == [(["A.x"], 0, 11), (["B.x"], 250, 11)]


def test_a_pattern_is_resumed_after_its_faster_channels() -> None:
    talk = Rates({">": frozenset({"A.x", "B.x"})}, A_x=0)
    talk.it.names[">"] = 250
    talk.begin(5).update("A.x", 9).batch(("B.x", 7))
    assert talk.again() == [(["A.x"], 0, 9), ([">"], 250, 7)]
    resumed = [one.channels for one in talk.it.journal if isinstance(one, judge.Resuming)]
    assert resumed == [frozenset({"B.x"})]


def test_events_that_come_again_at_a_rate_are_ignored() -> None:
    talk = Rates(A_x=0, B_x=100).begin(5).update("A.x", 9)
    talk.ack(talk.it.change_rate(["A.x"], 100), 7)
    talk.it.broke("test")
    assert talk.it.open()["after"] == 7, "8 of B waited"
    talk.update("A.x", 9).update("B.x", 8)
    assert [one.offset for one in talk.it.events() if one.is_ignored] == [9]


def test_messages_of_the_wrong_kind_are_kept_as_errors() -> None:
    assert Rates(A_x=100).begin(5).update("A.x", 6).it.errors
    assert Rates(A_x=0).begin(5).batch(("A.x", 6)).it.errors
    talk = Rates(A_x=100)
    command = talk.it.open() | {"every_ms": 200}
    assert talk.ack(command, 5).it.errors


def test_a_tick_takes_its_time() -> None:
    talk = Rates(A_x=60_000, B_x=30_000).begin(5).batch(("A.x", 6)).batch(("B.x", 7))
    talk.batch(("A.x", 8))
    assert talk.it.errors == [], "one more may come when the server drains"
    assert "more than every 60000 ms" in talk.batch(("A.x", 9)).it.errors[0]


def test_a_channel_that_leaves_a_rate_takes_its_position_along() -> None:
    """What waited for the tick of its own name comes with the tick of the pattern."""
    patterns = {">": frozenset({"A.x", "B.x"})}
    talk = Rates(patterns, A_x=100)
    talk.it.names[">"] = 250
    talk.begin(5).batch(("B.x", 9))
    talk.it.drop(["A.x"])
    talk.batch(("B.x", 12))
    assert talk.again() == [([">"], 250, 5)], "6 to 8 of A may have waited"
    talk.batch(("A.x", 13))
    talk.it.add(["A.x"], 100, is_resume=False)
    assert talk.again() == [(["A.x"], 100, 13), ([">"], 250, 13)]
