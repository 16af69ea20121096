"""Every setting of the server, from the environment: one attrs class is the whole list.

A command-line flag is another spelling of a variable (`--addr` of `WS_ADDR`), so there is one way
in and one kind of error. docs/configuration.md is generated from this class.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import environ

from trio_odin.net.address import Address
from trio_odin.net.nats_url import NatsUrl
from trio_odin.settings import values
from trio_odin.settings.assignments import parse_assignments

# Variables that begin so are ours; an unknown one is probably a typing error.
_OWN_PREFIXES = ("WS_", "JS_")
# How alike a name has to be to one of the others. Nothing but a typing error is like a long one.
_LIKENESS, _LIKENESS_OF_LONG, _LONG = 0.9, 0.7, 20
_RELOAD_FILE = "WS_RELOAD_FILE"
_NATS_URL, _NATS_URL_FILE = "NATS_URL", "NATS_URL_FILE"

_MEBIBYTE, _TEBIBYTE, _PEBIBYTE = 2**20, 2**40, 2**50

# In the metadata of a setting: whether it can change while the server runs, what it may be, and
# how it may be shown.
_RELOADS, _ALLOWED, _SHOW = "reloads", "allowed", "show"

# Known to the server this one replaces, without a meaning in this design.
IGNORED = {
    "WS_WORKER_POOL_SIZE": "there is no worker pool; one loop does the fan-out",
    "JS_CONSUMER_NAME": "each process has its own ordered consumer, which has no shared name",
}


# What comes before a password in a URL without an @; a token comes after the scheme.
_WITHOUT_A_HOST = re.compile(r"^((?:\w+:)?//(?:[^:]*:)?|[^:]*:|).+", re.DOTALL)

# An absolute path, or the name of a file. A key has neither form.
_PATH_LIKE = re.compile(r"|/[\w./+~-]*|[\w./~-]{0,40}\.[A-Za-z]{2,5}")


class SettingError(Exception):
    """A variable has a bad value. The message says which, what it is, and what is allowed."""


def _setting(
    name: str,
    default: str,
    convert: Callable[[str], Any],
    *,
    help: str,  # noqa: A002
    reloads: bool = False,
    show: Callable[[str], str] = str,
) -> Any:
    """A variable of the environment; `default` is text too, so that help and docs can show it.

    `reloads`: it can change while the server runs. `show`: its text without what is secret in it.
    """

    def converter(text: str) -> Any:
        try:
            return convert(text)
        except (values.Unacceptable, ValueError) as error:
            shown = (_without_credentials if show is str else show)(text)
            raise SettingError(f"{name}={shown!r}: allowed is {error}") from None

    field = environ.var(default=default, converter=converter, name=name, help=help)
    field.metadata[_RELOADS] = reloads
    field.metadata[_ALLOWED] = getattr(convert, "allowed", "")
    field.metadata[_SHOW] = show
    return field


def _without_credentials(text: str) -> str:
    """What may be shown of a value: nothing before the last @, where a URL has its password."""
    return f"…@{text.rpartition('@')[2]}" if "@" in text else text


def _urls_without_credentials(text: str) -> str:
    """What may be shown of some URLs, allowed or not.

    Without an @ what looks like a host may be a user, or a token, and what looks like a port a
    password, so of such a URL that is not allowed only the scheme and the first word are shown.
    """
    return ",".join(_shown_url(url.strip()) for url in text.split(","))


def _shown_url(url: str) -> str:
    if "@" in url:
        return _without_credentials(url)
    try:
        NatsUrl.parse(url)
    except ValueError:
        return _WITHOUT_A_HOST.sub(r"\1…", url)
    return url


def shown_path(text: str) -> str:
    """A path as it may be shown. Somebody may have given what belongs into the file instead."""
    return text if _PATH_LIKE.fullmatch(text) else "…"


@environ.config(prefix="", frozen=True)
class Settings:
    """How one server runs. Times are seconds, sizes are bytes, 0 in a limit means none."""

    address: Address = _setting(
        "WS_ADDR", ":3002", Address.parse, help="Listen on this address; [::] means IPv4 and IPv6."
    )
    admin_address: Address | None = _setting(
        "WS_ADMIN_ADDR",
        "",
        values.optional_address,
        help="Serve /metrics on this address instead of WS_ADDR; empty: on WS_ADDR.",
    )
    reload_file: Path | None = _setting(
        "WS_RELOAD_FILE",
        "",
        values.path,
        help="File of NAME=value lines that override the environment; SIGHUP reads it again.",
        show=shown_path,
    )
    nats_urls: tuple[str, ...] = _setting(
        "NATS_URL",
        "nats://127.0.0.1:4222",
        values.nats_urls,
        help="URL of the NATS server, or several URLs separated by commas.",
        show=_urls_without_credentials,
    )
    nats_url_file: Path | None = _setting(
        "NATS_URL_FILE",
        "",
        values.path,
        help="File that holds NATS_URL, such as a mounted secret; overrides NATS_URL.",
        show=shown_path,
    )
    nats_mode: str = _setting(
        "NATS_MODE",
        "auto",
        values.Choice(("auto", "jetstream", "core")),
        help="Use a JetStream ordered consumer, a core subscription, or the best available (auto).",
    )
    is_filtering: bool = _setting(
        "ENABLE_SUBSCRIPTION_FILTERING",
        "true",
        values.boolean,
        help="false sends every event to every connection, as a fallback if filtering fails.",
    )

    workers: int = _setting(
        "WS_WORKERS",
        "1",
        values.workers,
        help="Processes that share the port, 1 to 64; auto: one for each core.",
    )
    max_connections: int = _setting(
        "WS_MAX_CONNECTIONS",
        "10000",
        values.Whole(0, 10_000_000),
        help="Connections open at once; further ones get a 503.",
        reloads=True,
    )
    cpu_limit_cores: float = _setting(
        "WS_CPU_LIMIT",
        "0",
        values.Number(4096, least=0.01),
        help="Cores that this server may use; 0: the limit of its container.",
    )
    memory_limit_bytes: int = _setting(
        "WS_MEMORY_LIMIT",
        "0",
        values.Whole(0, _PEBIBYTE),
        help="Bytes of memory that this server may use; 0: the limit of its container.",
    )
    max_tasks: int = _setting(
        "WS_MAX_GOROUTINES",
        "0",
        values.Whole(0, 100_000_000),
        help="Tasks (3 for each connection) at which /health becomes degraded.",
    )
    cpu_reject_percent: float = _setting(
        "WS_CPU_REJECT_THRESHOLD",
        "75",
        values.percent,
        help="CPU percentage, of the limit or of a core, at which new connections get a 503.",
        reloads=True,
    )
    cpu_pause_percent: float = _setting(
        "WS_CPU_PAUSE_THRESHOLD",
        "80",
        values.percent,
        help="CPU percentage of the limit at which a growing share of events is shed; 0: never.",
        reloads=True,
    )
    memory_reject_percent: float = _setting(
        "WS_MEMORY_REJECT_THRESHOLD",
        "85",
        values.percent,
        help="Memory percentage of the limit at which new connections get a 503; 0: never.",
        reloads=True,
    )
    memory_pause_percent: float = _setting(
        "WS_MEMORY_PAUSE_THRESHOLD",
        "95",
        values.percent,
        help="Memory percentage of the limit at which all events are shed; 0: never.",
        reloads=True,
    )
    lag_reject_seconds: float = _setting(
        "WS_LAG_REJECT_MS",
        "1000",
        values.Number(3_600_000, unit=1000),
        help="Milliseconds of scheduler lag at which new connections get a 503; 0: never.",
        reloads=True,
    )
    accepts_per_second: float = _setting(
        "WS_ACCEPT_RATE",
        "2000",
        values.Number(1_000_000),
        help="Connections that a process accepts in a second; 0: as many as it can.",
        reloads=True,
    )
    max_pending_handshakes: int = _setting(
        "WS_MAX_HALF_OPEN",
        "1000",
        values.Whole(1, 1_000_000),
        help="Pending handshakes of a process; beyond this number the oldest one is closed.",
        reloads=True,
    )
    max_connections_per_address: int = _setting(
        "WS_MAX_CONNECTIONS_PER_IP",
        "0",
        values.Whole(0, 10_000_000),
        help="Connections of one client address to a process; further ones get a 429; 0: any.",
        reloads=True,
    )
    trusted_proxies: tuple[values.Network, ...] = _setting(
        "WS_TRUSTED_PROXIES",
        "",
        values.networks,
        help="Networks of proxies whose X-Forwarded-For names the client's address.",
    )
    allowed_origins: tuple[str, ...] = _setting(
        "WS_ALLOWED_ORIGINS",
        "",
        values.origins,
        help="Origins that browsers may connect from; others get a 403; empty: all.",
        reloads=True,
    )
    jwt_keys: Path | None = _setting(
        "WS_JWT_KEYS",
        "",
        values.path,
        help="File with the keys that verify tokens (JWK set, PEM or secret); empty: no tokens.",
        reloads=True,
        show=shown_path,
    )
    jwt_algorithms: tuple[str, ...] = _setting(
        "WS_JWT_ALGORITHMS",
        "RS256,ES256",
        values.algorithms,
        help="Algorithms that may sign a token: HS256, RS256, ES256.",
        reloads=True,
    )
    jwt_issuer: str = _setting(
        "WS_JWT_ISSUER",
        "",
        values.printable,
        help="Issuer that a token must name; empty: any.",
        reloads=True,
    )
    jwt_audience: str = _setting(
        "WS_JWT_AUDIENCE",
        "",
        values.printable,
        help="Audience that a token must name; empty: any.",
        reloads=True,
    )
    max_nats_rate: float = _setting(
        "WS_MAX_NATS_RATE",
        "0",
        values.Number(100_000_000),
        help="Messages accepted from NATS in a second; more are shed.",
        reloads=True,
    )
    max_broadcast_rate: float = _setting(
        "WS_MAX_BROADCAST_RATE",
        "0",
        values.Number(100_000_000),
        help="Fan-outs in a second; more events are shed.",
        reloads=True,
    )

    inbound_capacity: int = _setting(
        "WS_WORKER_QUEUE_SIZE",
        "8192",
        values.Whole(1, 10_000_000),
        help="Messages that may wait in the inbound queue for their fan-out; more are shed.",
    )
    outbox_capacity: int = _setting(
        "WS_OUTBOX_CAPACITY",
        "512",
        values.Whole(1, 1_000_000),
        help="Messages that may wait in the outbox of one connection.",
    )
    outbox_bytes: int = _setting(
        "WS_OUTBOX_BYTES",
        "1048576",
        values.Whole(1024, _TEBIBYTE),
        help="Bytes that may wait in the outbox of one connection.",
    )
    total_outbox_bytes: int = _setting(
        "WS_TOTAL_OUTBOX_BYTES",
        "0",
        values.Whole(0, _PEBIBYTE),
        help="Bytes that may wait in all outboxes together; 0: a quarter of the memory.",
    )
    slow_policy: str = _setting(
        "WS_SLOW_POLICY",
        "evict",
        values.Choice(("evict", "conflate", "drop")),
        help="When an outbox is full: evict closes the client, conflate keeps the newest event "
        "of each channel, drop drops events.",
    )
    max_flush_delay_seconds: float = _setting(
        "WS_MAX_FLUSH_DELAY_MS",
        "50",
        values.Number(60_000, unit=1000),
        help="Under load, a write may wait this long to be joined with later ones; 0: no wait.",
    )
    replay_capacity: int = _setting(
        "WS_REPLAY_CAPACITY",
        "100",
        values.Whole(0, 1_000_000),
        help="Messages kept in the replay buffer of one connection.",
    )
    total_replay_bytes: int = _setting(
        "WS_REPLAY_BYTES",
        "0",
        values.Whole(0, _PEBIBYTE),
        help="Bytes of events kept in all replay buffers together; 0: an eighth of the memory.",
    )
    resume_channel_events: int = _setting(
        "WS_RESUME_CHANNEL_EVENTS",
        "100",
        values.Whole(1, 1_000_000),
        help="Events of one channel that a resuming client may get.",
        reloads=True,
    )
    resume_events: int = _setting(
        "WS_RESUME_EVENTS",
        "500",
        values.Whole(1, 1_000_000),
        help="Events that a resuming client may get in all, besides the newest of each channel.",
        reloads=True,
    )
    max_message_bytes: int = _setting(
        "WS_MAX_MESSAGE_BYTES",
        "16384",
        values.Whole(64, 64 * _MEBIBYTE),
        help="Longest message that a client may send, in bytes.",
    )
    max_fragments: int = _setting(
        "WS_MAX_FRAGMENTS",
        "64",
        values.Whole(1, 1_000_000),
        help="Frames that one message of a client may consist of.",
    )
    max_channels: int = _setting(
        "WS_MAX_CHANNELS",
        "256",
        values.Whole(1, 1_000_000),
        help="Channels that one connection may subscribe to.",
        reloads=True,
    )
    command_burst: int = _setting(
        "WS_COMMAND_BURST",
        "100",
        values.Whole(1, 1_000_000),
        help="Messages that a client may send in one burst.",
        reloads=True,
    )
    commands_per_second: float = _setting(
        "WS_COMMAND_RATE",
        "10",
        values.Number(1_000_000),
        help="Messages a second that a client may send on average.",
        reloads=True,
    )

    max_head_bytes: int = _setting(
        "WS_MAX_HEAD_BYTES",
        "16384",
        values.Whole(1024, _MEBIBYTE),
        help="Longest request head in bytes, with cookies and token; a longer one gets a 431.",
        reloads=True,
    )
    max_headers: int = _setting(
        "WS_MAX_HEADERS",
        "64",
        values.Whole(8, 1000),
        help="Header lines that a request may have; one with more gets a 431.",
        reloads=True,
    )
    handshake_seconds: float = _setting(
        "WS_HANDSHAKE_TIMEOUT",
        "5s",
        values.Duration(),
        help="Time from accept to the end of the handshake.",
    )
    write_deadline_seconds: float = _setting(
        "WS_WRITE_DEADLINE",
        "5s",
        values.Duration(),
        help="A connection whose write makes no progress for this long is closed.",
    )
    ping_interval_seconds: float = _setting(
        "WS_PING_INTERVAL", "27s", values.Duration(), help="Time between pings on one connection."
    )
    keepalive_seconds: float = _setting(
        "WS_KEEPALIVE_TIMEOUT",
        "60s",
        values.Duration(),
        help="A connection that is silent for this long is closed at the next ping.",
    )
    drain_seconds: float = _setting(
        "WS_DRAIN_SECONDS",
        "30s",
        values.Duration(),
        help="Time in which all clients leave at shutdown.",
    )
    watchdog_seconds: float = _setting(
        "WS_WATCHDOG_SECONDS",
        "30",
        values.Number(3600, least=1),
        help="A process that hangs for this long exits, to be started again; 0: it does not exit.",
    )

    stream_name: str = _setting(
        "JS_STREAM_NAME",
        "ODIN_TOKENS",
        values.stream_name,
        help="Name of the JetStream stream; the server creates it if it does not exist.",
    )
    stream_max_age_seconds: float = _setting(
        "JS_STREAM_MAX_AGE",
        "30s",
        values.Duration("87600h", minimum="100ms"),
        help="Age limit of a stream that the server creates.",
    )
    stream_max_messages: int = _setting(
        "JS_STREAM_MAX_MSGS",
        "100000",
        values.Whole(1, 10**12),
        help="Message limit of a stream that the server creates.",
    )
    stream_max_bytes: int = _setting(
        "JS_STREAM_MAX_BYTES",
        "52428800",
        # Less would hold none of many events, and then nothing ever comes.
        values.Whole(65_536, _PEBIBYTE),
        help="Size limit of a stream that the server creates, in bytes.",
    )
    stream_storage: str = _setting(
        "JS_STREAM_STORAGE",
        "memory",
        values.Choice(("memory", "file")),
        help="Where a stream that the server creates keeps its events.",
    )
    stream_replicas: int = _setting(
        "JS_STREAM_REPLICAS",
        "1",
        values.Whole(1, 5),
        help="NATS servers of a cluster that store a stream that the server creates.",
    )

    summary_seconds: float = _setting(
        "METRICS_INTERVAL", "15s", values.Duration(), help="Time between summary lines in the log."
    )
    log_level: str = _setting(
        "LOG_LEVEL",
        "info",
        values.level,
        help="Lowest level that is logged: debug, info, warning or error.",
        reloads=True,
    )
    revision: str = _setting(
        "TRIO_ODIN_REVISION",
        "",
        values.printable,
        help="Revision of the code, for the log and ws_build_info; the image sets it.",
    )
    log_format: str = _setting(
        "LOG_FORMAT",
        "json",
        values.Choice(("json", "text", "pretty")),
        help="Format of the log lines.",
    )


@attrs.frozen
class Variable:
    """One variable as the documentation shows it; `allowed` is empty where its help says it."""

    name: str
    default: str
    allowed: str
    help: str
    reloads: bool


def variables() -> list[Variable]:
    """All variables of `Settings`, in order."""
    return [
        Variable(
            name=entry.name,
            default=entry.default,
            allowed=field.metadata[_ALLOWED],
            help=entry.help,
            reloads=field.metadata[_RELOADS],
        )
        for field, entry in _entries()
    ]


def _entries() -> list[tuple[Any, Any]]:
    """Each field of `Settings`, and what the environment knows of it."""
    fields = attrs.fields(cast("Any", Settings))
    return [(field, field.metadata["environ_config"]) for field in fields]


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings from `environment`; an empty variable counts as unset.

    Raises:
        SettingError: a value is not allowed.
    """
    given = {name: text for name, text in environment.items() if text.strip()}
    return environ.to_config(Settings, given)


def effective(environment: Mapping[str, str]) -> dict[str, str]:
    """The text of every variable in force, from `environment`, without what is secret in it."""
    return {
        entry.name: field.metadata[_SHOW](_text_of(entry.name, environment) or entry.default)
        for field, entry in _entries()
    }


def differing(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of them that are not what they are by default.

    Raises:
        SettingError: a value is not allowed.
    """
    names = changes(read_settings({}), read_settings(environment))
    return {name: text for name, text in effective(environment).items() if name in names}


def _text_of(name: str, environment: Mapping[str, str]) -> str:
    return environment.get(name, "").strip()


def with_nats_url_file(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, with the NATS_URL that is in the file that NATS_URL_FILE names.

    A password in a variable is in the output of `docker inspect`, and in each process' environment.

    Raises:
        SettingError: the file cannot be read.
    """
    path = environment.get(_NATS_URL_FILE, "").strip()
    if not path:
        return dict(environment)
    try:
        return {**environment, _NATS_URL: Path(path).read_text("utf-8-sig").strip()}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingError(
            f"{_NATS_URL_FILE}={shown_path(path)!r}: allowed is a file with a NATS_URL in it "
            f"({reason})"
        ) from None


def with_reload_file(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, with what the file that WS_RELOAD_FILE names says in place of it.

    Raises:
        SettingError: there is no such file, or something else is in it.
    """
    path = environment.get(_RELOAD_FILE, "").strip()
    if not path:
        return dict(environment)
    try:
        given = parse_assignments(Path(path).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingError(
            f"{_RELOAD_FILE}={shown_path(path)!r}: allowed is a file of NAME=value lines ({reason})"
        ) from None
    if _RELOAD_FILE in given:
        raise SettingError(f"{_RELOAD_FILE} cannot be set by the file that it names")
    return {**environment, **given}


def reloaded(running: Settings, wanted: Settings) -> Settings:
    """The settings of a running server with those of `wanted` that can change while it runs."""
    both = copy.copy(running)
    for field, _ in _entries():
        if field.metadata[_RELOADS]:
            # Not attrs.evolve, which would convert again what was converted from text.
            object.__setattr__(both, field.name, getattr(wanted, field.name))
    return both


def changes(before: Settings, after: Settings) -> list[str]:
    """The names of the variables in which the two differ, in order."""
    return [
        entry.name
        for field, entry in _entries()
        if getattr(before, field.name) != getattr(after, field.name)
    ]


def warnings_about(settings: Settings, environment: Mapping[str, str]) -> Iterable[str]:
    """A sentence for each variable that is ours but has no effect, or not the one it should.

    `settings` are those in force, which flags may have changed.
    """
    if settings.ping_interval_seconds >= settings.keepalive_seconds:
        yield (
            f"WS_PING_INTERVAL of {settings.ping_interval_seconds:g} s is not below "
            f"WS_KEEPALIVE_TIMEOUT of {settings.keepalive_seconds:g} s: quiet clients are closed"
        )
    known = {variable.name for variable in variables()}
    for name in sorted(environment):
        if name in IGNORED:
            yield f"{name} has no effect: {IGNORED[name]}"
        elif name not in known and (nearest := _meant_by(name, known, environment)):
            yield f"{name} is unknown and has no effect; the nearest known one is {nearest}"


def _meant_by(name: str, known: Collection[str], environment: Mapping[str, str]) -> str | None:
    """The variable of ours that was meant by an unknown `name`, if one was.

    One that begins like most of ours was. Any other may be of another program, so it has to be a
    typing error away from one that is not set: letters swapped, a few too many or too few.
    """
    if name.startswith(_OWN_PREFIXES):
        return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    for candidate in known:
        if candidate.startswith(_OWN_PREFIXES) or candidate in environment:
            continue
        least = _LIKENESS_OF_LONG if len(candidate) > _LONG else _LIKENESS
        is_like = difflib.get_close_matches(name, [candidate], cutoff=least)
        if is_like or sorted(name) == sorted(candidate):
            return candidate
    return None
