"""Where in its stream a message of JetStream is: NATS says so in the subject for its answer."""

from __future__ import annotations

import re
from calendar import timegm
from time import strptime
from typing import NamedTuple

# $JS.ACK . stream . consumer . delivered . stream sequence . consumer sequence . time . pending
_TOKENS = 9
# Behind $JS.ACK also domain and account, and at the end one by chance, and maybe more some day.
_TOKENS_WITH_DOMAIN = 11
_DOMAIN_TOKENS = 2


class MessageMetadata(NamedTuple):
    """Where a message is.

    Attributes:
        offset: its sequence in the stream.
        consumer_sequence: how many the consumer has delivered with it.
        unix_ns: when NATS stored it.
        pending: how many more the consumer has to deliver.
    """

    offset: int
    consumer_sequence: int
    unix_ns: int
    pending: int


def metadata_of(reply: str) -> MessageMetadata | None:
    """Read the reply subject of a message that a consumer delivered; None if it is none.

    The forms are those of NATS' ADR-15.
    """
    tokens = reply.split(".")
    if len(tokens) >= _TOKENS_WITH_DOMAIN:
        del tokens[2 : 2 + _DOMAIN_TOKENS]
    elif len(tokens) != _TOKENS:
        return None
    if tokens[:2] != ["$JS", "ACK"]:
        return None
    numbers = tokens[5:9]
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        return None
    return MessageMetadata(*map(int, numbers))


_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")


def unix_ns_of(text: str) -> int:
    """The time in a description of NATS', such as `2026-01-31T12:00:00.123456789Z`.

    Raises:
        ValueError: it is not of this form.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"not a time in UTC: {text!r}")
    seconds, fraction = found.groups()
    whole = timegm(strptime(seconds, "%Y-%m-%dT%H:%M:%S"))
    return whole * 10**9 + int((fraction or "0").ljust(9, "0"))
