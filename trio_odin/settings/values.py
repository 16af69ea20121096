"""The texts of settings as values. Each function raises `Unacceptable` for what is not allowed."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import attrs

from trio_odin.net.address import Address
from trio_odin.net.nats_url import NatsUrl

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORT_MAX = 65535
_WORKERS_MAX = 64


class Unacceptable(Exception):
    """A converter's no; the message says what is allowed."""


@attrs.frozen
class Whole:
    """Converts to a whole number from `minimum` to `maximum`, written in ASCII digits."""

    minimum: int
    maximum: int

    @property
    def allowed(self) -> str:
        """What is allowed, for a complaint and for the documentation."""
        return f"a whole number from {self.minimum:,} to {self.maximum:,}"

    def __call__(self, text: str) -> int:
        """Convert `text`."""
        text = text.strip()
        if not _DIGITS.fullmatch(text) or not self.minimum <= int(text) <= self.maximum:
            raise Unacceptable(self.allowed)
        return int(text)


@attrs.frozen
class Number:
    """Converts to a number up to `maximum`, with a fraction, or to 0, which mostly means no limit.

    What is above 0 and below `least` is taken for a slip of the pen. The result is divided by
    `unit`: 1000 for milliseconds that become seconds.
    """

    maximum: float
    least: float = 0.001
    unit: float = 1.0

    @property
    def allowed(self) -> str:
        """What is allowed, for a complaint and for the documentation."""
        return f"0, or a number from {self.least:g} to {self.maximum:,.0f}"

    def __call__(self, text: str) -> float:
        """Convert `text`."""
        text = text.strip()
        value = float(text) if _NUMBER.fullmatch(text) else -1.0
        if value and not self.least <= value <= self.maximum:
            raise Unacceptable(self.allowed)
        return value / self.unit


@attrs.frozen
class Duration:
    """Converts Go's notation to seconds: `30s`, `1m30s`, `500ms`. A bare number means seconds."""

    maximum: str = "24h"
    minimum: str = "1ms"

    @property
    def allowed(self) -> str:
        """What is allowed, for a complaint and for the documentation."""
        return f"a duration from {self.minimum} to {self.maximum}, such as 30s or 1m30s"

    def __call__(self, text: str) -> float:
        """Convert `text`."""
        seconds = _seconds(text.strip())
        if not _seconds(self.minimum) <= seconds <= _seconds(self.maximum):
            raise Unacceptable(self.allowed)
        return seconds


@attrs.frozen
class Choice:
    """Converts to one of `words`, written in upper or lower case."""

    words: tuple[str, ...]

    @property
    def allowed(self) -> str:
        """What is allowed, for a complaint and for the documentation."""
        return " or ".join([", ".join(self.words[:-1]), self.words[-1]])

    def __call__(self, text: str) -> str:
        """Convert `text`."""
        word = text.strip().lower()
        if word not in self.words:
            raise Unacceptable(self.allowed)
        return word


_DIGITS = re.compile(r"[0-9]{1,19}")
_NUMBER = re.compile(r"[0-9]{1,19}(\.[0-9]{1,19})?(e\+?[0-9]{1,3})?", re.IGNORECASE)
_DURATION_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(text: str) -> float:
    """What a duration means; not a number if `text` is none."""
    if _NUMBER.fullmatch(text):
        text = f"{text}s"
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return math.nan
    return sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in parts)


def workers(text: str) -> int:
    """How many processes; auto: one for each core that we may use."""
    if text.strip().lower() == "auto":
        return min(len(os.sched_getaffinity(0)), _WORKERS_MAX)
    try:
        return Whole(1, _WORKERS_MAX)(text)
    except Unacceptable as error:
        raise Unacceptable(f"{error}, or auto") from None


def percent(text: str) -> float:
    """A percentage from 0 to 100, with or without its sign."""
    try:
        return Number(100, least=0.0)(text.strip().removesuffix("%"))
    except Unacceptable:
        raise Unacceptable("a percentage from 0 to 100") from None


def printable(text: str) -> str:
    """A text without control characters, and without bytes that are not UTF-8."""
    text = text.strip()
    if not text.isprintable():
        raise Unacceptable("a text of printable characters in UTF-8")
    return text


def words(text: str) -> tuple[str, ...]:
    """What is separated by commas, in order."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def networks(text: str) -> tuple[Network, ...]:
    """Addresses and networks, separated by commas."""
    try:
        return tuple(ipaddress.ip_network(word) for word in words(text))
    except ValueError as error:
        raise Unacceptable(
            f"addresses and networks such as 10.0.0.0/8, separated by commas ({error})"
        ) from None


def origins(text: str) -> tuple[str, ...]:
    """Origins as clients send them (RFC 6454, 6.2), which are compared letter by letter.

    Those of pages: scheme and host in lower case, the port if it is not the scheme's own. Those of
    apps and extensions: whatever their web view sends. `null` is what pages send that have none,
    such as files and sandboxed frames of any site.
    """
    origins = words(text)
    if not all(_ORIGIN.fullmatch(origin) for origin in origins):
        raise Unacceptable(
            "origins such as https://example.com, capacitor://localhost or null, "
            "separated by commas"
        )
    return origins


def path(text: str) -> Path | None:
    """A path; None for an empty text."""
    return Path(text) if text.strip() else None


def admin_address(text: str) -> Address | Literal["off"] | None:
    """An address; None for an empty text."""
    if text.strip().lower() == "off":
        return "off"
    try:
        return Address.parse(text) if text.strip() else None
    except ValueError as error:
        raise Unacceptable(f"{error}, or off") from None


def collector_url(text: str) -> str:
    """The URL of a collector of traces; empty for an empty text.

    Passwords belong into the headers, which OpenTelemetry has another variable for.
    """
    url = text.strip()
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    has_more = not url.isprintable() or any(mark in url for mark in " @?#\\")
    if url and (not is_whole or has_more):
        raise Unacceptable("a URL such as http://collector:4318, without user and password")
    return url


_ALGORITHMS = ("HS256", "RS256", "ES256")


def algorithms(text: str) -> tuple[str, ...]:
    """How tokens may be signed, separated by commas."""
    names = words(text.upper())
    if not names or not set(names) <= set(_ALGORITHMS):
        raise Unacceptable(f"some of {', '.join(_ALGORITHMS)}, separated by commas")
    return names


_BOOLEAN = Choice(("true", "false", "1", "0", "yes", "no"))
_LEVEL = Choice(("debug", "info", "warning", "error"))


def boolean(text: str) -> bool:
    """A claim, as people write it."""
    return _BOOLEAN(text) in {"true", "1", "yes"}


def level(text: str) -> str:
    """A level; `warn` is how the replaced server spelt it."""
    word = "warning" if text.strip().lower() == "warn" else text
    return _LEVEL(word)


def stream_name(text: str) -> str:
    """NATS ADR-6: nothing that means something in a subject or a path; the server's own limit."""
    if not _STREAM_NAME.fullmatch(text) or not text.isprintable():
        raise Unacceptable("a name of at most 255 characters, without spaces, . * > / and \\")
    return text


_STREAM_NAME = re.compile(r"[^\s.*>/\\]{1,255}")

# RFC 6454, 6.2, without user names, paths and the default port's being written out. The host of
# another scheme is opaque, and may be absent (file://).
_ORIGIN = re.compile(
    r"(?!https://.*:443$|http://.*:80$)https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?"
    r"|(?!(?:https?|wss?)://)[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]*(:[0-9]{1,5})?"
    r"|null"
)


def nats_urls(text: str) -> tuple[str, ...]:
    """URLs as clients of the replaced server wrote them: the scheme may be left out."""
    urls = tuple(url.strip() for url in text.split(",") if url.strip())
    try:
        if not urls:
            raise ValueError("nats://host:port")
        for url in urls:
            NatsUrl.parse(url)
    except ValueError as error:
        raise Unacceptable(f"{error}, several separated by commas") from None
    return tuple(url if "://" in url else f"nats://{url}" for url in urls)
