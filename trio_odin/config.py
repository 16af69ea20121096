"""Every setting of the server, from the environment: one attrs class is the whole list.

A command-line flag is another spelling of a variable (`--addr` of `WS_ADDR`), so there is one way
in and one kind of error. docs/configuration.md is generated from this class.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import attrs
import environ

from trio_odin.core.address import Address

# Variables that begin so are ours; an unknown one is probably a typing error.
_OWN_PREFIXES = ("WS_", "JS_")
_PORT_MAX = 65535
_WORKERS_MAX = 64

# Known to the server this one replaces, without a meaning in this design.
IGNORED = {
    "WS_WORKER_POOL_SIZE": "there is no worker pool, fan-out is one loop",
    "JS_CONSUMER_NAME": "each process has an ordered consumer of its own, without a shared name",
}


class SettingError(Exception):
    """A variable has a bad value. The message says which, what it is, and what is allowed."""


class _Unacceptable(Exception):
    """A converter's no; the message says what is allowed."""


def _setting(name: str, default: str, convert: Callable[[str], Any], *, help: str) -> Any:  # noqa: A002
    """A variable of the environment; `default` is text too, so that help and docs can show it."""

    def converter(text: str) -> Any:
        try:
            return convert(text)
        except (_Unacceptable, ValueError) as error:
            raise SettingError(
                f"{name}={_without_credentials(text)!r}: allowed is {error}"
            ) from None

    return environ.var(default=default, converter=converter, name=name, help=help)


def _without_credentials(text: str) -> str:
    """What may be shown of a value: nothing before the last @, where a URL has its password."""
    return f"…@{text.rpartition('@')[2]}" if "@" in text else text


def _integer(text: str, minimum: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise _Unacceptable(f"a whole number, {minimum} or more")
    return value


def _count(text: str) -> int:
    return _integer(text, 0)


def _positive(text: str) -> int:
    return _integer(text, 1)


def _milliseconds(text: str) -> float:
    """Zero or more milliseconds, given as seconds."""
    return _number(text) / 1000


def _workers(text: str) -> int:
    if text.strip().lower() == "auto":
        return min(len(os.sched_getaffinity(0)), _WORKERS_MAX)
    try:
        value = _positive(text)
    except _Unacceptable:
        value = _WORKERS_MAX + 1
    if value > _WORKERS_MAX:
        raise _Unacceptable(f"a whole number from 1 to {_WORKERS_MAX}, or auto")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise _Unacceptable("a number, 0 or more")
    return value


def _positive_number(text: str) -> float:
    try:
        value = _number(text)
    except _Unacceptable:
        value = 0.0
    if not value:
        raise _Unacceptable("a number above 0")
    return value


def _percent(text: str) -> float:
    try:
        value = _number(text.removesuffix("%"))
    except _Unacceptable:
        value = 101.0
    if value > 100:
        raise _Unacceptable("a percentage from 0 to 100")
    return value


_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)")
_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration(text: str) -> float:
    """Seconds, of Go's notation: `30s`, `1m30s`, `500ms`. A bare number means seconds."""
    text = text.strip()
    parts = _DURATION.findall(text if text[-1:].isalpha() else f"{text}s")
    seconds = sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in parts)
    is_whole = "".join(number + unit for number, unit in parts) in {text, f"{text}s"}
    if not is_whole or not seconds:
        raise _Unacceptable("a duration above 0 such as 30s, 1m or 500ms")
    return seconds


def _choice(*allowed: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        value = text.strip().lower()
        if value not in allowed:
            raise _Unacceptable(" or ".join([", ".join(allowed[:-1]), allowed[-1]]))
        return value

    return convert


def _boolean(text: str) -> bool:
    return _choice("true", "false", "1", "0", "yes", "no")(text) in {"true", "1", "yes"}


def _level(text: str) -> str:
    """A level; `warn` is how the replaced server spelt it."""
    word = "warning" if text.strip().lower() == "warn" else text
    return _choice("debug", "info", "warning", "error")(word)


def _stream_name(text: str) -> str:
    """NATS ADR-6: no white space, and nothing that means something in a subject or a path."""
    if not re.fullmatch(r"[^\s.*>/\\]+", text):
        raise _Unacceptable("a name without spaces, . * > / and \\")
    return text


_NATS_URL = re.compile(
    r"((nats|tls)://)?([^\s,/?#@]+@)?([^\s,/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>\d{1,5}))?/?"
)


def _nats_urls(text: str) -> tuple[str, ...]:
    """URLs as clients of the replaced server wrote them: the scheme may be left out."""
    urls = tuple(url.strip() for url in text.split(",") if url.strip())
    matches = [_NATS_URL.fullmatch(url) for url in urls]
    if not matches or not all(m and int(m["port"] or 0) <= _PORT_MAX for m in matches):
        raise _Unacceptable("nats://host:port, several separated by commas")
    return tuple(url if "://" in url else f"nats://{url}" for url in urls)


@environ.config(prefix="", frozen=True)
class Settings:
    """How one server runs. Times are seconds, sizes are bytes, 0 in a limit means none."""

    address: Address = _setting("WS_ADDR", ":3002", Address.parse, help="Address to listen on.")
    nats_urls: tuple[str, ...] = _setting(
        "NATS_URL", "nats://127.0.0.1:4222", _nats_urls, help="NATS server, or several with commas."
    )
    nats_mode: str = _setting(
        "NATS_MODE",
        "auto",
        _choice("auto", "jetstream", "core"),
        help="JetStream ordered consumer, core subscription, or the best that is there.",
    )
    is_filtering: bool = _setting(
        "ENABLE_SUBSCRIPTION_FILTERING",
        "true",
        _boolean,
        help="false sends every event to every connection (the way back, should filtering fail).",
    )

    workers: int = _setting(
        "WS_WORKERS",
        "1",
        _workers,
        help="Processes that serve the port together, 1 to 64; auto: one for each core.",
    )
    max_connections: int = _setting(
        "WS_MAX_CONNECTIONS", "10000", _count, help="Connections at once; further ones get a 503."
    )
    cpu_limit_cores: float = _setting(
        "WS_CPU_LIMIT", "0", _number, help="Cores this server may use; 0: those of the machine."
    )
    memory_limit_bytes: int = _setting(
        "WS_MEMORY_LIMIT", "0", _count, help="Memory this server may use; 0: that of the machine."
    )
    max_tasks: int = _setting(
        "WS_MAX_GOROUTINES",
        "0",
        _count,
        help="Tasks (3 a connection) beyond which health degrades.",
    )
    cpu_reject_percent: float = _setting(
        "WS_CPU_REJECT_THRESHOLD",
        "75",
        _percent,
        help="CPU, in percent of the limit, from which new connections get a 503.",
    )
    cpu_pause_percent: float = _setting(
        "WS_CPU_PAUSE_THRESHOLD",
        "80",
        _percent,
        help="CPU, in percent of the limit, from which health warns; nothing is paused yet.",
    )
    max_nats_rate: float = _setting(
        "WS_MAX_NATS_RATE", "0", _number, help="Messages a second taken from NATS; more are shed."
    )
    max_broadcast_rate: float = _setting(
        "WS_MAX_BROADCAST_RATE", "0", _number, help="Fan-outs a second; more are shed."
    )

    feed_capacity: int = _setting(
        "WS_WORKER_QUEUE_SIZE",
        "8192",
        _positive,
        help="Messages from NATS that may wait for their fan-out; more are shed.",
    )
    outbox_capacity: int = _setting(
        "WS_OUTBOX_CAPACITY", "512", _positive, help="Envelopes that may wait for one connection."
    )
    max_flush_delay_seconds: float = _setting(
        "WS_MAX_FLUSH_DELAY_MS",
        "50",
        _milliseconds,
        help="Under load, writes may wait this long to be joined with later ones; 0: not at all.",
    )
    replay_capacity: int = _setting(
        "WS_REPLAY_CAPACITY", "100", _count, help="Envelopes of a connection kept for replay."
    )
    max_message_bytes: int = _setting(
        "WS_MAX_MESSAGE_BYTES", "16384", _positive, help="Longest message a client may send."
    )
    max_channels: int = _setting(
        "WS_MAX_CHANNELS", "256", _positive, help="Channels one connection may subscribe to."
    )
    command_burst: int = _setting(
        "WS_COMMAND_BURST", "100", _positive, help="Messages a client may send at once."
    )
    commands_per_second: float = _setting(
        "WS_COMMAND_RATE",
        "10",
        _number,
        help="Messages a second a client may send in the long run.",
    )

    handshake_seconds: float = _setting(
        "WS_HANDSHAKE_TIMEOUT", "5s", _duration, help="From accept to the end of the handshake."
    )
    write_deadline_seconds: float = _setting(
        "WS_WRITE_DEADLINE", "5s", _duration, help="A write without progress ends the connection."
    )
    ping_interval_seconds: float = _setting(
        "WS_PING_INTERVAL", "27s", _duration, help="Time between pings to one connection."
    )
    keepalive_seconds: float = _setting(
        "WS_KEEPALIVE_TIMEOUT",
        "60s",
        _duration,
        help="Silence after which a connection is ended, at the next ping.",
    )
    drain_seconds: float = _setting(
        "WS_DRAIN_TIMEOUT", "30s", _duration, help="At shutdown, time for outboxes to empty."
    )

    stream_name: str = _setting(
        "JS_STREAM_NAME",
        "ODIN_TOKENS",
        _stream_name,
        help="JetStream stream, made if there is none.",
    )
    stream_max_age_seconds: float = _setting(
        "JS_STREAM_MAX_AGE", "30s", _duration, help="Age limit of a stream that is made."
    )
    stream_max_messages: int = _setting(
        "JS_STREAM_MAX_MSGS", "100000", _positive, help="Message limit of a stream that is made."
    )
    stream_max_bytes: int = _setting(
        "JS_STREAM_MAX_BYTES", "52428800", _positive, help="Size limit of a stream that is made."
    )

    summary_seconds: float = _setting(
        "METRICS_INTERVAL", "15s", _duration, help="Time between summary lines in the log."
    )
    log_level: str = _setting(
        "LOG_LEVEL",
        "info",
        _level,
        help="Least level logged: debug, info, warning or error.",
    )
    log_format: str = _setting(
        "LOG_FORMAT", "json", _choice("json", "text", "pretty"), help="How log lines look."
    )


@attrs.frozen
class Variable:
    """One variable as the documentation shows it."""

    name: str
    default: str
    help: str


def variables() -> list[Variable]:
    """All variables of `Settings`, in order."""
    entries = [field.metadata["environ_config"] for field in attrs.fields(cast("Any", Settings))]
    return [Variable(entry.name, entry.default, entry.help) for entry in entries]


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings from `environment`; an empty variable counts as unset.

    Raises:
        SettingError: a value is not allowed.
    """
    given = {name: text for name, text in environment.items() if text.strip()}
    return environ.to_config(Settings, given)


def warnings_about(settings: Settings, environment: Mapping[str, str]) -> Iterable[str]:
    """A sentence for each variable that is ours but has no effect, or not the one it should.

    `settings` are those in force, which flags may have changed.
    """
    if settings.ping_interval_seconds >= settings.keepalive_seconds:
        yield (
            f"WS_PING_INTERVAL of {settings.ping_interval_seconds:g} s is not below "
            f"WS_KEEPALIVE_TIMEOUT of {settings.keepalive_seconds:g} s: quiet clients are ended"
        )
    known = {variable.name for variable in variables()}
    for name in sorted(environment):
        if name in IGNORED:
            yield f"{name} has no effect: {IGNORED[name]}"
        elif name.startswith(_OWN_PREFIXES) and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            yield f"{name} is unknown and has no effect; the nearest known one is {nearest}"
