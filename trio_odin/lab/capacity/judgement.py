"""The questions of the first stage, and their answers from what clients received. No waiting here.

Every answer is a `Check`, and no input whatsoever is taken for granted: it comes from the server
that is being judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import msgspec

from trio_odin.lab.load.criteria import Check

# A message of the server, decoded.
Message: TypeAlias = dict[str, Any]

_UNREADABLE = "unreadable"
_SHOWN_CHARS = 120
_UNIX_MS_MIN = 10**12  # 2001; in seconds it would be far less


@attrs.frozen
class Question:
    """What is checked. `source` says whose wish it is: "plan" or "ours"."""

    what: str
    wanted: str
    source: str = "plan"

    def answer(self, measured: str, *, is_met: bool) -> Check:
        """The check, once it is known."""
        return Check(
            what=self.what,
            wanted=self.wanted,
            measured=measured,
            is_met=is_met,
            source=self.source,
        )


SUBSCRIBE = Question("subscribe to BTC.trade and ETH.trade", "acknowledged, count 2")
BTC_TRADE = Question("odin.token.BTC.trade is published", "received")
ETH_TRADE = Question("odin.token.ETH.trade is published", "received")
SOL_TRADE = Question("odin.token.SOL.trade is published", "not received")
BTC_LIQUIDITY = Question(
    "odin.token.BTC.liquidity is published", "not received: another event type"
)
UNSUBSCRIBE = Question("unsubscribe from BTC.trade", "acknowledged, count 1", "ours")
AFTERWARDS = Question("odin.token.BTC.trade, then ETH.trade are published", "only ETH.trade")
NUMBERS = Question("seq of all these events", "1, 2, 3 … without a gap", "ours")
ENVELOPES = Question(
    "envelopes of all these events", "seq, ts, type, priority, and data as published", "ours"
)
CROWD = Question("100 clients, each with channels of its own; 200 events", "each gets its own")
REPLAY = Question("replay of a range of seq", "the same envelopes again", "ours")
BAD_COMMANDS = Question("three bad commands", "an error with its code for each", "ours")
UNDISTURBED = Question("events before and after these commands", "received, seq 1 and 2", "ours")
HEARTBEAT = Question("heartbeat", "pong with the time", "ours")

QUESTIONS = (
    SUBSCRIBE,
    BTC_TRADE,
    ETH_TRADE,
    SOL_TRADE,
    BTC_LIQUIDITY,
    UNSUBSCRIBE,
    AFTERWARDS,
    NUMBERS,
    ENVELOPES,
    CROWD,
    REPLAY,
    BAD_COMMANDS,
    UNDISTURBED,
    HEARTBEAT,
)


@attrs.frozen
class Event:
    """Something to publish. `name` is in its payload, and no other event of any run has it."""

    channel: str
    name: str

    @property
    def subject(self) -> str:
        """The NATS subject."""
        return f"odin.token.{self.channel}"

    @property
    def data(self) -> dict[str, Any]:
        """What is published; the rest of it is there to be spoilt on the way."""
        return {"event": self.name, "price": 64123.5, "of": ["Zürich", None, True, {"n": -1}]}

    @property
    def payload(self) -> bytes:
        """`data` as JSON."""
        return msgspec.json.encode(self.data)


@attrs.frozen
class Received:
    """What one client got in one wait.

    Args:
        messages: in order; the last one is what was waited for, if that came.
        failure: why that did not come, a sentence; "" if it came.
    """

    messages: Sequence[Message]
    failure: str = ""

    @property
    def answer(self) -> Message | None:
        """What was waited for."""
        return None if self.failure else self.messages[-1]


def read_message(text: str | bytes) -> Message:
    """One message of the server; one that says so if it is no JSON object in a text frame."""
    if isinstance(text, str):
        try:
            return msgspec.json.decode(text, type=Message)
        except (msgspec.DecodeError, RecursionError):
            pass
    return {_UNREADABLE: str(text)}


def event_name(message: Message) -> str | None:
    """The name of the event in `message`; None if it is no envelope, or not of an `Event`."""
    data = message.get("data")
    name = data.get("event") if isinstance(data, dict) else None
    return name if isinstance(name, str) else None


def envelopes_of(messages: Sequence[Message]) -> list[Message]:
    """What is meant to be an envelope, well-formed or not: answers have neither of these keys."""
    return [m for m in messages if "seq" in m or "data" in m or _UNREADABLE in m]


def acknowledged(question: Question, got: Received, wanted: Message) -> Check:
    """Whether the answer says what is `wanted`; it may say more."""
    answer = got.answer
    if answer is None:
        return question.answer(got.failure, is_met=False)
    is_met = all(answer.get(key) == value for key, value in wanted.items())
    return question.answer(f"count {wanted['count']}" if is_met else _shown(answer), is_met=is_met)


def arrived(question: Question, got: Received, event: Event) -> Check:
    """Whether `event` was received, once."""
    times = Counter(map(event_name, got.messages))[event.name]
    measured = {0: got.failure or "not received", 1: "received"}.get(times, f"{times} times")
    return question.answer(measured, is_met=times == 1)


def kept_away(question: Question, got: Received, foreign: Event, marker: Event) -> Check:
    """Whether `marker`, published after `foreign`, was received, and nothing before it.

    Events come in order, so that is the proof that `foreign` was not only late.
    """
    names = [event_name(m) for m in envelopes_of(got.messages)]
    if foreign.name in names:
        return question.answer("received", is_met=False)
    if marker.name not in names:
        return question.answer(f"undecided: {got.failure}", is_met=False)
    if names != [marker.name]:
        return question.answer("not received, but something else was", is_met=False)
    return question.answer("not received; an event published after it was", is_met=True)


def numbered(question: Question, messages: Sequence[Message]) -> Check:
    """Whether `seq` counts all envelopes of a connection from 1."""
    numbers = [message.get("seq") for message in envelopes_of(messages)]
    shown = ", ".join(map(str, numbers)) or "no envelope"
    is_met = bool(numbers) and numbers == [*range(1, len(numbers) + 1)]
    return question.answer(shown[:_SHOWN_CHARS], is_met=is_met)


def well_formed(
    question: Question, messages: Sequence[Message], published: Sequence[Event]
) -> Check:
    """Whether every envelope has its keys, and the data of one of the events `published`."""
    data_of = {event.name: event.data for event in published}
    envelopes = envelopes_of(messages)
    for envelope in envelopes:
        wrong = _wrong_keys(envelope, data_of.get(event_name(envelope) or ""))
        if wrong:
            measured = f"{', '.join(wrong)} of {_shown(envelope)}"
            return question.answer(measured, is_met=False)
    return question.answer(f"{len(envelopes)} envelopes", is_met=bool(envelopes))


def _wrong_keys(envelope: Message, data: dict[str, Any] | None) -> list[str]:
    ts = envelope.get("ts")
    is_right = {
        "seq": type(envelope.get("seq")) is int,
        "ts": type(ts) is int and ts > _UNIX_MS_MIN,
        "type": envelope.get("type") == "price:update",
        "priority": envelope.get("priority") == 1,
        "data": data is not None and envelope.get("data") == data,
    }
    return [key for key, right in is_right.items() if not right]


def each_got_its_own(
    question: Question, crowd: Sequence[tuple[Received, Sequence[Event]]]
) -> Check:
    """Whether every client received what is due to it: nothing else, nothing twice, in order.

    Args:
        question: is answered.
        crowd: what each client received, and what it had to.
    """
    wrong = [
        f"client {number}: {why}"
        for number, (got, due) in enumerate(crowd)
        if (why := _difference(got, due))
    ]
    right = f"{len(crowd) - len(wrong)} of {len(crowd)}"
    if wrong:
        return question.answer(f"{right}; {wrong[0]}", is_met=False)
    envelopes = sum(len(due) for _, due in crowd)
    return question.answer(f"{right}, {envelopes:,} envelopes", is_met=bool(envelopes))


def _difference(got: Received, due: Sequence[Event]) -> str:
    """What is wrong with what a client got, "" if nothing."""
    envelopes = envelopes_of(got.messages)
    had = [event_name(message) for message in envelopes]
    if had == [event.name for event in due]:
        is_numbered = [m.get("seq") for m in envelopes] == [*range(1, len(had) + 1)]
        return "" if is_numbered else "seq is not 1, 2, 3 …"
    wanted: Counter[str | None] = Counter(event.name for event in due)
    lost, more = (wanted - Counter(had)).total(), (Counter(had) - wanted).total()
    difference = f"{lost} lost, {more} foreign or doubled" if lost or more else "not in order"
    return f"{difference}; {got.failure}" if got.failure else difference


def same_again(
    question: Question, originals: Sequence[Message], got: Received, first: int, last: int
) -> Check:
    """Whether the envelopes `first` to `last` came again as they were.

    Args:
        question: is answered.
        originals: envelopes of the connection.
        got: from the replay to an answer behind it.
        first: a seq.
        last: another, inclusive.
    """
    wanted = _within(originals, first, last)
    again = _within(got.messages, first, last)
    if again == wanted and len(wanted) == last - first + 1:
        return question.answer(f"seq {first} to {last}, the same", is_met=True)
    differing = sum(a != b for a, b in zip(again, wanted, strict=False))
    measured = f"{len(again)} of {last - first + 1} envelopes, {differing} of them different"
    return question.answer("; ".join(filter(None, (measured, got.failure))), is_met=False)


def _within(messages: Sequence[Message], first: int, last: int) -> list[Message]:
    numbers = range(first, last + 1)
    return [message for message in messages if message.get("seq") in numbers]


def complained(question: Question, answers: Sequence[Received], codes: Sequence[str]) -> Check:
    """Whether the errors are those with `codes`."""
    had = [a.failure if (m := a.answer) is None else str(m.get("code")) for a in answers]
    return question.answer(", ".join(had), is_met=had == list(codes))


def went_on(
    question: Question, before: Received, after: Received, events: Sequence[Event]
) -> Check:
    """Whether two `events` came, as the first and the second of their connection."""
    envelopes = envelopes_of([*before.messages, *after.messages])
    had = [(event_name(message), message.get("seq")) for message in envelopes]
    if had == [(event.name, number) for number, event in enumerate(events, 1)]:
        return question.answer("received, seq 1 and 2", is_met=True)
    shown = ", ".join(str(number) for _, number in had) or "nothing"
    failure = before.failure or after.failure
    measured = f"received with seq: {shown}"
    return question.answer(f"{measured}; {failure}" if failure else measured, is_met=False)


def beats(question: Question, got: Received) -> Check:
    """Whether the answer is a pong with the time in Unix milliseconds."""
    answer = got.answer
    if answer is None:
        return question.answer(got.failure, is_met=False)
    ts = answer.get("ts")
    is_met = answer.get("type") == "pong" and type(ts) is int and ts > _UNIX_MS_MIN
    return question.answer(_shown(answer), is_met=is_met)


def _shown(message: Message) -> str:
    return msgspec.json.encode(message).decode()[:_SHOWN_CHARS]
