"""The metadata of a JetStream message, which NATS puts into its reply subject."""

from __future__ import annotations

import re
from calendar import timegm
from time import strptime
from typing import NamedTuple

# $JS.ACK . stream . consumer . delivered . stream sequence . consumer sequence . time . pending
_TOKENS = 9
# With domain and account after $JS.ACK, a random token at the end, and maybe more some day.
_TOKENS_WITH_DOMAIN = 11
_DOMAIN_TOKENS = 2
_DIGITS_MAX = 4 * 20  # four numbers of 64 bits


class MessageMetadata(NamedTuple):
    """Where a message is in its stream and in its consumer.

    Attributes:
        offset: its sequence in the stream.
        consumer_sequence: how many messages the consumer has delivered, including this one.
        unix_ns: when NATS stored it.
        pending: how many more messages the consumer has to deliver.
    """

    offset: int
    consumer_sequence: int
    unix_ns: int
    pending: int


def metadata_of(reply: str) -> MessageMetadata | None:
    """Parse the reply subject of a message that a consumer delivered; None if it is not one.

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
    digits = "".join(numbers)
    is_number = digits.isascii() and digits.isdecimal() and len(digits) <= _DIGITS_MAX
    if not (all(numbers) and is_number):
        return None
    return MessageMetadata(*map(int, numbers))


_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")


def unix_ns_of(text: str) -> int:
    """Parse a time as NATS writes it, such as `2026-01-31T12:00:00.123456789Z`.

    Raises:
        ValueError: `text` is not of this form.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"not a time in UTC: {text!r}")
    seconds, fraction = found.groups()
    whole = timegm(strptime(seconds, "%Y-%m-%dT%H:%M:%S"))
    return whole * 10**9 + int((fraction or "0").ljust(9, "0"))
