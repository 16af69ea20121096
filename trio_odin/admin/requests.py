"""Requests of the admin API as questions: what each may say in its path and query string."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from trio_odin.admin.paging import SORTS, cursor_of_text
from trio_odin.admin.questions import (
    ROWS_MAX,
    TRACE_FRAMES_MAX,
    TRACE_SECONDS_MAX,
    Channels,
    Connections,
    StartTrace,
)
from trio_odin.wire.channels import CHANNEL_RULE, is_name

_ID = re.compile(r"(?:(?P<worker>[0-9]{1,3})-)?(?P<number>[0-9]{1,18})")
_WATCH_SECONDS_MAX: Final = 5.0


class BadQuery(Exception):
    """A request asks for something that is not allowed; the message says what is."""


class ConnectionId(NamedTuple):
    """Which connection of which worker; worker 0: that of a server without workers."""

    worker: int
    number: int

    def __str__(self) -> str:
        return f"{self.worker}-{self.number}" if self.worker else str(self.number)


class Trace(NamedTuple):
    """What to follow, and the worker if it is one connection."""

    question: StartTrace
    worker: int | None


def connection_id(text: str) -> ConnectionId:
    """Read the id of a connection.

    Raises:
        BadQuery: it is not one.
    """
    found = _ID.fullmatch(text)
    if found is None:
        raise BadQuery(f"{_shown(text)}: allowed is an id such as 1207, or 2-1207 with workers")
    return ConnectionId(int(found["worker"] or 0), int(found["number"]))


def connections(query: bytes) -> Connections:
    """Read what `GET /connections` asks for.

    Raises:
        BadQuery: a parameter is unknown, or its value is not allowed.
    """
    filters = ["address", "subject", "channel", "lagging"]
    given = _parameters(query, ["sort", "order", "limit", "after", *filters])
    sort = _one_of("sort", given.get("sort", "queued_bytes"), SORTS)
    order = _one_of("order", given.get("order", ""), {"asc": 0, "desc": 0, "": 0})
    after = given.get("after")
    try:
        cursor = cursor_of_text(after, sort) if after else None
    except ValueError:
        raise BadQuery(
            f"after={_shown(after or '')}: allowed is `next` of the page before"
        ) from None
    return Connections(
        sort=sort,
        is_descending=SORTS[sort] if not order else order == "desc",
        limit=_whole(given, "limit", 100, ROWS_MAX),
        after=cursor,
        address=_address(given.get("address", "")),
        subject=given.get("subject"),
        channel=_channel(given.get("channel", "")),
        is_lagging=_boolean(given, "lagging"),
    )


def channels(query: bytes) -> Channels:
    """Read what `GET /channels` asks for.

    Raises:
        BadQuery: as in `connections`.
    """
    given = _parameters(query, ["seconds", "limit"])
    seconds = _number(given, "seconds", 1.0, _WATCH_SECONDS_MAX)
    return Channels(seconds=seconds, limit=_whole(given, "limit", 100, ROWS_MAX))


def trace(query: bytes) -> Trace:
    """Read what `GET /trace` asks for.

    Raises:
        BadQuery: as in `connections`.
    """
    given = _parameters(query, ["connection", "channel", "user", "frames", "seconds"])
    if sum(name in given for name in ("connection", "channel", "user")) != 1:
        raise BadQuery("allowed is exactly one of connection=, channel= and user=")
    worker = number = None
    if "connection" in given:
        worker, number = connection_id(given["connection"])
    if "channel" in given and not given["channel"]:
        raise BadQuery(f"channel='': {CHANNEL_RULE}")
    question = StartTrace(
        connection=number,
        channel=_channel(given.get("channel", "")),
        user=given.get("user"),
        frames=_whole(given, "frames", 1000, TRACE_FRAMES_MAX),
        seconds=_number(given, "seconds", 60.0, TRACE_SECONDS_MAX),
    )
    return Trace(question, worker)


def none_in(query: bytes) -> None:
    """Check that a request has no parameters.

    Raises:
        BadQuery: it has some.
    """
    _parameters(query, [])


def _parameters(query: bytes, known: list[str]) -> dict[str, str]:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs):
        raise BadQuery("allowed is each parameter once")
    for name in given:
        if name not in known:
            allowed = f"allowed are {', '.join(known)}" if known else "it takes none"
            raise BadQuery(f"{_shown(name)} is not a parameter of this request: {allowed}")
    return given


def _one_of(name: str, value: str, allowed: Mapping[str, Any]) -> str:
    if value not in allowed:
        raise BadQuery(f"{name}={_shown(value)}: allowed is {', '.join(filter(None, allowed))}")
    return value


def _whole(given: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = given.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise BadQuery(f"{name}={_shown(text)}: allowed is a whole number from 1 to {most:,}")
    return int(text)


def _number(given: Mapping[str, str], name: str, default: float, most: float) -> float:
    text = given.get(name, str(default))
    number = _converted(text, float)
    if number is None or not 0 < number <= most:
        raise BadQuery(f"{name}={_shown(text)}: allowed is a number above 0, up to {most:g}")
    return number


def _converted(text: str, convert: Callable[[str], float]) -> float | None:
    try:
        number = convert(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _boolean(given: Mapping[str, str], name: str) -> bool | None:
    if name not in given:
        return None
    return _one_of(name, given[name], {"true": 0, "false": 0}) == "true"


def _address(text: str) -> str:
    if text:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise BadQuery(
                f"address={_shown(text)}: allowed is an address or a network such as 10.0.0.0/8"
            ) from None
    return text


def _channel(text: str) -> str:
    if text and not is_name(text):
        raise BadQuery(f"channel={_shown(text)}: {CHANNEL_RULE}")
    return text


def _shown(text: str) -> str:
    return repr(text[:80])
