"""NATS subjects, and the channels that clients subscribe to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

CHANNEL_MAX_CHARS = 64
_CHANNEL = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# odin . token . SYMBOL . event_type [. whatever follows]
_SYMBOL, _EVENT_TYPE, _REST = 2, 3, 4

CHANNEL_RULE = (
    f"a channel is SYMBOL.event_type, at most {CHANNEL_MAX_CHARS} characters, "
    "each part of letters, digits, _ and -"
)


def is_channel(name: str) -> bool:
    """Whether `name` is a well-formed channel such as `BTC.trade`."""
    return len(name) <= CHANNEL_MAX_CHARS and _is_pair(name)


# Cached, because clients ask for the same few names again and again.
@lru_cache(maxsize=8192)
def _is_pair(name: str) -> bool:
    return _CHANNEL.fullmatch(name) is not None


# Wildcards of NATS, for the two parts of a channel; `>` is what remains, so one part or two.
_PATTERN = re.compile(r">|\*\.(?:[A-Za-z0-9_-]+|[*>])|[A-Za-z0-9_-]+\.[*>]")


def is_pattern(name: str) -> bool:
    """Whether `name` is a well-formed pattern: `BTC.*`, `*.trade`, `*.*`, or `>` for `*`."""
    has_wildcard = "*" in name or ">" in name
    return has_wildcard and len(name) <= CHANNEL_MAX_CHARS and _is_pattern(name)


@lru_cache(maxsize=8192)
def _is_pattern(name: str) -> bool:
    return _PATTERN.fullmatch(name) is not None


def is_name(name: str) -> bool:
    """Whether clients may subscribe to `name`: a channel or a pattern."""
    return is_channel(name) or is_pattern(name)


@lru_cache(maxsize=1 << 15)  # more than are scanned for one command
def patterns_for(channel: str) -> tuple[str, ...]:
    """All patterns that match `channel`: these are few, as a channel has two parts."""
    symbol, event_type = channel.split(".")
    return (f"{symbol}.*", f"{symbol}.>", f"*.{event_type}", "*.*", "*.>", ">")


def overlap(one: str, other: str) -> bool:
    """Whether some channel matches both names."""
    return all(
        a == b or "*" in {a, b} for a, b in zip(_two_parts(one), _two_parts(other), strict=True)
    )


def _two_parts(name: str) -> tuple[str, str]:
    symbol, _, event_type = name.replace(">", "*").partition(".")
    return symbol, event_type or "*"


class ChannelSet:
    """The channels that some `names` stand for.

    Attributes:
        names: channels and patterns, in order, each once.
        exact: the channels among them.
        patterns: the patterns among them.
    """

    __slots__ = ("_found", "exact", "names", "patterns")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.patterns = tuple(filter(is_pattern, self.names))
        self.exact = tuple(name for name in self.names if name not in self.patterns)
        self._found = frozenset(self.names)

    def __contains__(self, channel: str) -> bool:
        return channel in self._found or (
            bool(self.patterns) and not self._found.isdisjoint(patterns_for(channel))
        )


@lru_cache(maxsize=8192)
def channel_of_subject(subject: str) -> str | None:
    """The channel of a NATS subject: `odin.token.BTC.trade` gives `BTC.trade`.

    Parts after the fourth are ignored. None if there are fewer than four, or if the third and
    fourth do not make a well-formed channel, to which nobody could have subscribed.
    """
    parts = subject.split(".", _REST)
    if len(parts) < _REST:
        return None
    channel = f"{parts[_SYMBOL]}.{parts[_EVENT_TYPE]}"
    return channel if is_channel(channel) else None


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that matches `subject` also matches `pattern` (NATS wildcards).

    Both may contain wildcards: `odin.>` covers `odin.token.>`, but `odin.*.trade` does not.
    """
    wide, narrow = pattern.split("."), subject.split(".")
    for position, part in enumerate(wide):
        if part == ">":
            return len(narrow) > position
        if position >= len(narrow) or narrow[position] == ">":
            return False
        if part not in {"*", narrow[position]}:
            return False
    return len(wide) == len(narrow)
