"""The texts of settings as values. Each function raises `Unacceptable` for what is not allowed."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from trio_odin.core.address import Address

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORT_MAX = 65535
_WORKERS_MAX = 64


class Unacceptable(Exception):
    """A converter's no; the message says what is allowed."""


def integer(text: str, minimum: int) -> int:
    """A whole number, `minimum` or more."""
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise Unacceptable(f"a whole number, {minimum} or more")
    return value


def count(text: str) -> int:
    """A whole number, 0 or more."""
    return integer(text, 0)


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    return integer(text, 1)


def milliseconds(text: str) -> float:
    """Zero or more milliseconds, given as seconds."""
    return number(text) / 1000


def workers(text: str) -> int:
    """How many processes; auto: one for each core that we may use."""
    if text.strip().lower() == "auto":
        return min(len(os.sched_getaffinity(0)), _WORKERS_MAX)
    try:
        value = positive(text)
    except Unacceptable:
        value = _WORKERS_MAX + 1
    if value > _WORKERS_MAX:
        raise Unacceptable(f"a whole number from 1 to {_WORKERS_MAX}, or auto")
    return value


def number(text: str) -> float:
    """A finite number, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Unacceptable("a number, 0 or more")
    return value


def percent(text: str) -> float:
    """A percentage from 0 to 100, with or without its sign."""
    try:
        value = number(text.removesuffix("%"))
    except Unacceptable:
        value = 101.0
    if value > 100:
        raise Unacceptable("a percentage from 0 to 100")
    return value


_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)")
_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds, of Go's notation: `30s`, `1m30s`, `500ms`. A bare number means seconds."""
    text = text.strip()
    parts = _DURATION.findall(text if text[-1:].isalpha() else f"{text}s")
    seconds = sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in parts)
    is_whole = "".join(number + unit for number, unit in parts) in {text, f"{text}s"}
    if not is_whole or not seconds:
        raise Unacceptable("a duration above 0 such as 30s, 1m or 500ms")
    return seconds


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
    """Origins as browsers send them (RFC 6454, 6.2): scheme and host in lower case, port if odd."""
    origins = words(text)
    if not all(_ORIGIN.fullmatch(origin) for origin in origins):
        raise Unacceptable("origins such as https://example.com, separated by commas")
    return origins


def path(text: str) -> Path | None:
    """A path; None for an empty text."""
    return Path(text) if text.strip() else None


def optional_address(text: str) -> Address | None:
    """An address; None for an empty text."""
    return Address.parse(text) if text.strip() else None


_ALGORITHMS = ("HS256", "RS256", "ES256")


def algorithms(text: str) -> tuple[str, ...]:
    """How tokens may be signed, separated by commas."""
    names = words(text.upper())
    if not names or not set(names) <= set(_ALGORITHMS):
        raise Unacceptable(f"some of {', '.join(_ALGORITHMS)}, separated by commas")
    return names


def choice(*allowed: str) -> Callable[[str], str]:
    """A converter that takes one of `allowed`, in upper or lower case."""

    def convert(text: str) -> str:
        value = text.strip().lower()
        if value not in allowed:
            raise Unacceptable(" or ".join([", ".join(allowed[:-1]), allowed[-1]]))
        return value

    return convert


def boolean(text: str) -> bool:
    """A claim, as people write it."""
    return choice("true", "false", "1", "0", "yes", "no")(text) in {"true", "1", "yes"}


def level(text: str) -> str:
    """A level; `warn` is how the replaced server spelt it."""
    word = "warning" if text.strip().lower() == "warn" else text
    return choice("debug", "info", "warning", "error")(word)


def stream_name(text: str) -> str:
    """NATS ADR-6: no white space, and nothing that means something in a subject or a path."""
    if not re.fullmatch(r"[^\s.*>/\\]+", text):
        raise Unacceptable("a name without spaces, . * > / and \\")
    return text


# RFC 6454, 6.2, without user names, paths and the default port's being written out.
_ORIGIN = re.compile(
    r"(?!https://.*:443$|http://.*:80$)https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?"
)

_NATS_URL = re.compile(
    r"((nats|tls)://)?([^\s,/?#@]+@)?([^\s,/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>\d{1,5}))?/?"
)


def nats_urls(text: str) -> tuple[str, ...]:
    """URLs as clients of the replaced server wrote them: the scheme may be left out."""
    urls = tuple(url.strip() for url in text.split(",") if url.strip())
    matches = [_NATS_URL.fullmatch(url) for url in urls]
    if not matches or not all(m and int(m["port"] or 0) <= _PORT_MAX for m in matches):
        raise Unacceptable("nats://host:port, several separated by commas")
    return tuple(url if "://" in url else f"nats://{url}" for url in urls)
