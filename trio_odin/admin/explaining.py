"""A line of the log about the end of a connection, as sentences for a person."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from trio_odin.auth.identity import shown
from trio_odin.fanout.flight import FlightEvent
from trio_odin.fanout.slow_consumers import FULL_OUTBOXES_IN_A_ROW
from trio_odin.ledger.reasons import CloseReason

_EVICTED, _CLOSED = "connection.evicted", "connection.closed"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Lines of `text` and of `pretty`. A value has quotes, brackets, or no blanks.
_PAIR = re.compile(
    r"""(?P<name>\w+)=(?P<value>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\[[^]]*\]|\S*)"""
)
_RECORD = re.compile(r"(?P<at>[0-9.]+)s (?P<text>.+?)(?: x(?P<count>[0-9]+))?")
_LINE_MAX: Final = 1_000_000
# Where log shippers put the line itself.
_WRAPPINGS: Final = ("log", "message", "MESSAGE", "line", "msg")

_WHY: Final = {
    CloseReason.OUTBOX_FULL: "It read too slowly: {in_a_row} messages in a row found no room in "
    "its outbox.",
    CloseReason.WRITE_DEADLINE: "It had stopped reading, or its network was gone: a write made no "
    "progress until the deadline.",
    CloseReason.KEEPALIVE_TIMEOUT: "It gave no sign of life, not even an answer to a ping.",
    CloseReason.TOKEN_EXPIRED: "The time of its token was over.",
    CloseReason.TOKEN_REVOKED: "The key that had signed its token was withdrawn.",
    CloseReason.OPERATOR: "An operator closed it, by the admin API or in trio-odin top.",
    CloseReason.DRAINING: "The server shut down in order.",
    CloseReason.STOPPED: "The server was stopped.",
    CloseReason.INTERNAL_ERROR: "A fault of the server ended it: the log has a line "
    "connection.failed with the traceback.",
    CloseReason.PEER_CLOSED: "The client closed it.",
    CloseReason.PEER_GONE: "The client went away without a word: its process ended, or its network "
    "was gone.",
    CloseReason.PROTOCOL_ERROR: "The client broke the WebSocket protocol.",
    CloseReason.MESSAGE_TOO_BIG: "The client sent a message that was too large.",
    CloseReason.WORKER_LOST: "The worker that held it ended.",
}
_ADVICE: Final = {
    CloseReason.OUTBOX_FULL: "What helps: a client that reads faster, fewer channels, a rate "
    "(every_ms), or WS_SLOW_POLICY=conflate, which keeps the newest event of each channel "
    "(docs/protocol.md, When you read too slowly).",
    CloseReason.WRITE_DEADLINE: "If the client was alive, look at what it did for so long, such as "
    "a blocked loop or a tab in the background; WS_WRITE_DEADLINE is the time that it has.",
    CloseReason.KEEPALIVE_TIMEOUT: "Mostly the client's machine slept or its network changed. If "
    "many end so at once, look at the proxy or the network between.",
    CloseReason.TOKEN_EXPIRED: "A client can renew its token before that, with the command token.",
    CloseReason.INTERNAL_ERROR: "This is a fault of trio-odin: please report it.",
    CloseReason.MESSAGE_TOO_BIG: "WS_MAX_MESSAGE_BYTES and WS_MAX_FRAGMENTS are the limits.",
}
_HAPPENED: Final = {
    FlightEvent.SUBSCRIBE: "it subscribed",
    FlightEvent.UNSUBSCRIBE: "it unsubscribed",
    FlightEvent.REPLAY: "it asked for a replay",
    FlightEvent.HEARTBEAT: "it sent a heartbeat",
    FlightEvent.CHANNELS: "it asked for a list of channels",
    FlightEvent.TOKEN: "it sent a new token",
    FlightEvent.MALFORMED: "it sent a command that could not be read",
    FlightEvent.UNKNOWN: "it sent a command that does not exist",
    FlightEvent.RATE_LIMITED: "it sent more commands than are allowed",
    FlightEvent.REPLY_WAITED: "a reply had to wait for it",
    FlightEvent.CUT_SHORT: "a resume, a replay or a snapshot ended early for want of room",
    FlightEvent.BEGAN_TO_WAIT: "its socket took no more, and messages began to wait",
    FlightEvent.DEPTH: "{count} messages waited",
    FlightEvent.EMPTIED: "it had caught up: nothing waited",
    FlightEvent.OUTBOX_FULL: "a message was dropped, as the outbox was full",
    FlightEvent.OUTBOX_BYTES: "a message was dropped, as the outbox had no room for its bytes",
    FlightEvent.TOTAL_OUTBOX_BYTES: "a message was dropped, as all outboxes together were full",
    FlightEvent.CONFLATED: "{count} messages gave way to newer ones",
    FlightEvent.PING: "a ping was sent",
    FlightEvent.PING_SKIPPED: "a ping was skipped, as its socket took nothing",
    FlightEvent.PONG: "it answered a ping",
    FlightEvent.SLOW_WRITE: "a write took a second or more",
    FlightEvent.STALLED: "a write made no progress until the deadline",
    FlightEvent.CLOSING: "a close frame was sent",
}
_COUNTED: Final = {FlightEvent.DEPTH, FlightEvent.CONFLATED}


def facts_in(line: str) -> dict[str, Any] | None:
    """What a line of the log states, if it is about the end of a connection; else None.

    The line may be of any LOG_FORMAT, with something before it, or in the JSON of a log shipper.
    """
    line = _ANSI.sub("", line[:_LINE_MAX])
    if _EVICTED not in line and _CLOSED not in line:
        return None
    facts = _facts_in_json(line)
    if facts is None:
        facts = _facts_in_pairs(line)
    return facts if facts.get("event") in {_EVICTED, _CLOSED} else None


def _facts_in_json(line: str) -> dict[str, Any] | None:
    start = line.find("{")
    if start < 0:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(line[start:])
    except (ValueError, RecursionError):
        return None
    if "event" in found:
        return dict(found)
    inner = next((found[name] for name in _WRAPPINGS if isinstance(found.get(name), str)), None)
    return None if inner is None else facts_in(inner) or {}


def _facts_in_pairs(line: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for pair in _PAIR.finditer(line):
        facts[pair["name"]] = _value(pair["value"])
    if "event" not in facts:  # `pretty` writes it without a name, and the time before it
        facts["event"] = _EVICTED if _EVICTED in line else _CLOSED
        first = line.split(maxsplit=1)[0]
        facts.setdefault("timestamp", first)
    return facts


def _value(text: Any) -> Any:
    """A value as it was before it was written: of a list in quotes the list."""
    for _ in range(2):
        if not isinstance(text, str) or text[:1] not in {"'", '"', "["}:
            break
        try:
            text = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            break
    return None if isinstance(text, str) and text in {"None", "null", ""} else text


def explain(facts: Mapping[str, Any]) -> Iterator[str]:
    """The sentences about a connection that has ended, one a line."""
    reason = next((one for one in CloseReason if one.label == facts.get("reason")), None)
    if facts.get("reason") is None:
        yield from _left_out(facts)
        return
    yield _who(facts, reason)
    if reason is None:
        yield f"The reason is {_text(facts['reason'])!r}, which this version does not know."
    else:
        yield _WHY[reason].format(in_a_row=FULL_OUTBOXES_IN_A_ROW)
    yield from _state(facts)
    yield from _events(facts)
    if reason is not None and reason.code is not None:
        may = "may" if reason.code < 4500 else "should not"
        yield f"Its close code was {reason.code}, so it {may} come back."
    if reason in _ADVICE:
        yield _ADVICE[reason]
    yield from _left_out(facts)


def _who(facts: Mapping[str, Any], reason: CloseReason | None) -> str:
    name = f"Connection {_text(facts.get('connection'))}"
    if facts.get("worker") is not None:
        name += f" of worker {_text(facts['worker'])}"
    about = []
    if facts.get("address"):
        about.append(f"from {_text(facts['address'])}")
    if facts.get("sub"):
        about.append(f"with a token of {_text(facts['sub'])}")
    if facts.get("user_agent"):
        about.append(f"user agent {_text(facts['user_agent'])}")
    who = f"{name} ({', '.join(about)})" if about else name
    is_ours = reason is not None and reason.code is not None
    ended = "was closed by the server" if is_ours else "ended"
    sentence = f"{who} {ended}"
    if (at := _time(facts.get("timestamp"))) is not None:
        sentence += f" at {at}"
    if (seconds := _number(facts.get("seconds"))) is not None:
        sentence += f", {_duration(seconds)} after it had connected"
    return f"{sentence}."


def _state(facts: Mapping[str, Any]) -> Iterator[str]:
    figures = {
        name: int(_number(facts.get(name)) or 0)
        for name in ("seq", "dropped", "conflated", "queued", "queued_bytes")
    }
    parts = [f"It had {_count(figures['seq'], 'numbered message')} in all"]
    if figures["dropped"]:
        parts.append(f"{figures['dropped']:,} found no room and were dropped")
    if figures["conflated"]:
        parts.append(f"{figures['conflated']:,} gave way to newer ones of their channel")
    yield f"{', '.join(parts)}."
    if figures["queued"] or figures["queued_bytes"]:
        size = f"{figures['queued_bytes'] / 1024:,.1f} KiB"
        yield f"At the end {_count(figures['queued'], 'message')} ({size}) waited."
    if (silent := _number(facts.get("silent_seconds"))) is not None:
        yield f"The last sign of life had come {_duration(silent)} before."


def _events(facts: Mapping[str, Any]) -> Iterator[str]:
    events = facts.get("events")
    if not isinstance(events, list) or not events:
        return
    yield "What had happened, by the time since it had connected:"
    for event in events:
        record = _RECORD.fullmatch(str(event))
        if record is None:
            yield f"  {_text(event)}"
            continue
        count = int(record["count"] or 1)
        known = next((one for one in FlightEvent if one.value == record["text"]), None)
        if known is None:
            yield f"  {record['at']} s: {_text(record['text'])}"
            continue
        text = _HAPPENED[known].format(count=count)
        times = f", {count:,} times up to then" if count > 1 and known not in _COUNTED else ""
        yield f"  {record['at']} s: {text}{times}"


def _left_out(facts: Mapping[str, Any]) -> Iterator[str]:
    if (number := int(_number(facts.get("not_logged")) or 0)) > 0:
        yield (
            f"{_count(number, 'further connection')} ended like this without a line, as only 20 a "
            "second are written: ws_connections_closed_total has all of them by reason."
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _number(value: object) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 1e15 else None


def _time(value: object) -> str | None:
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _text(value: object) -> str:
    """Foreign text: it must not steer the terminal."""
    return shown(str(value))
