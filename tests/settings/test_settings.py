from __future__ import annotations

import os
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.net.address import Address
from trio_odin.settings.reading import (
    IGNORED,
    Variable,
    changes,
    differing,
    effective,
    read_settings,
    reloaded,
    variables,
    warnings_about,
    with_nats_url_file,
    with_reload_file,
)
from trio_odin.settings.setting_field import SettingError
from trio_odin.settings.settings import Settings

# wire_compatibility.md, environment names in use.
COMPATIBLE = [
    "WS_ADDR", "NATS_URL", "WS_CPU_LIMIT", "WS_MEMORY_LIMIT", "WS_MAX_CONNECTIONS",
    "WS_WORKER_POOL_SIZE", "WS_WORKER_QUEUE_SIZE", "WS_MAX_NATS_RATE", "WS_MAX_BROADCAST_RATE",
    "WS_MAX_GOROUTINES", "WS_CPU_REJECT_THRESHOLD", "WS_CPU_PAUSE_THRESHOLD", "JS_STREAM_NAME",
    "JS_STREAM_MAX_AGE", "JS_STREAM_MAX_MSGS", "JS_STREAM_MAX_BYTES", "JS_CONSUMER_NAME",
    "METRICS_INTERVAL", "LOG_LEVEL", "LOG_FORMAT", "ENABLE_SUBSCRIPTION_FILTERING",
]  # fmt: skip


class Examples(NamedTuple):
    """Good values of a variable with their results, and bad values."""

    allowed: str
    good: dict[str, Any]
    bad: list[str]


# Texts that are not a number in any setting.
NO_NUMBERS = [
    "-1", "-0", "-0.0", "+1", "1_000", "1,000", "1 2", "1e400", "1e99", "nan", "-nan", "inf",
    "-inf", "Infinity", "0x10", "0b1", "١٢", "\uff11\uff12", "²", "½", "∞", "1e", "e5", ".", "1.",
    ".5", "--1", "1-1", "many", "10k", "10MB", "1\0", "1\n2", "9" * 20, "9" * 400, "1" + "0" * 5000,
    "\udcff",
]  # fmt: skip


def whole(minimum: int, maximum: int, *bad: str) -> Examples:
    return Examples(
        f"a whole number from {minimum:,} to {maximum:,}",
        {str(minimum): minimum, f" 000{minimum} ": minimum, str(maximum): maximum},
        [str(minimum - 1), str(maximum + 1), "1.5", "7.0", "1e3", *NO_NUMBERS, *bad],
    )  # fmt: skip


def number(least: float, maximum: int, unit: int = 1) -> Examples:
    good = {"0": 0.0, "0.0": 0.0, f"{least:g}": least, "1.9": 1.9, "1e3": 1000.0,
            f"{maximum}": float(maximum)}  # fmt: skip
    return Examples(
        f"0, or a number from {least:g} to {maximum:,}",
        {text: value / unit for text, value in good.items()},
        [f"{least / 2:f}", "0.0000001", f"{maximum}.1", "1e-3", "1,5", "50ms", *NO_NUMBERS],
    )


PERCENT = Examples(
    "a percentage from 0 to 100",
    {"0": 0.0, "75": 75.0, "75.0": 75.0, "80%": 80.0, "100": 100.0, " 5% ": 5.0},
    ["100.1", "%", "high", "1e3", "٪", "1%%", *NO_NUMBERS],
)
PATH = Examples("", {"keys.json": Path("keys.json"), "/etc/odin/keys": Path("/etc/odin/keys")}, [])
TEXT = Examples(
    "a text of printable characters in UTF-8",
    {"https://id.example.com": "https://id.example.com", " odin ": "odin", "Größe": "Größe"},
    ["a\x07b", "\udcff"],
)  # fmt: skip
NO_DURATIONS = [
    "0", "0s", "0.0ms", "0.000001s", "0.9ms", "-1s", "s", "30 s", "30S", "1d", "1y", "five", "1e3s",
    "1_000s", "\uff11\uff15s", "\uff11\uff15", "1m 30s", "1.s", ".5s", "1s1", "s1", "1h-1s",
    "9999999999s", "1e400h",
]  # fmt: skip


def duration(*bad: str, least: str = "1ms", most: str = "24h") -> Examples:
    return Examples(
        f"a duration from {least} to {most}, such as 30s or 1m30s",
        {"30s": 30.0, "1m": 60.0, "500ms": 0.5, "2h": 7200.0, "1.5s": 1.5, "0.5m": 30.0, "15": 15.0,
         " 15s ": 15.0, "1m30s": 90.0, "24h": 86400.0},
        [*NO_DURATIONS, *(text for text in NO_NUMBERS if text not in {"1e", ".5"}), *bad],
    )  # fmt: skip


DURATION = duration("24h1ms", "8760h", "999999999h")
RATE = number(0.001, 100_000_000)

EXAMPLES = {
    "WS_ADDR": Examples(
        "an address like :3002, 127.0.0.1:3002 or [::1]:3002",
        {":3002": Address("", 3002), "127.0.0.1:0": Address("127.0.0.1", 0),
         "[::1]:80": Address("::1", 80), "[fe80::1%eth0]:80": Address("fe80::1%eth0", 80),
         "my_host-1.example.com:1": Address("my_host-1.example.com", 1),
         "bücher.example:1": Address("bücher.example", 1)},
        ["3002", "localhost", ":65536", "::1:3002", ":http", ":\uff13\uff10",
         ":-0", ":1_0", ":999999",
         "a..b:1", f"{'x' * 64}:1", f"{'x.' * 130}x:1", "a b:1", "a\tb:1", "a/b:1",
         "\udcff:1", "\x07:1", "[]:1", "[a]:1", "[::1:1", "::1]:1", "[1.2.3.4]:1", "*:1",
         "[:]:1", "[:::]:1", "[1:2]:1", "[::1%]:1", "[::1%a b]:1", "[%eth0]:1",
         "é" * 60 + ":1"],
    ),
    "WS_ADMIN_ADDR": Examples(
        "an address like :3002, 127.0.0.1:3002 or [::1]:3002, or off",
        {":9102": Address("", 9102), "127.0.0.1:0": Address("127.0.0.1", 0), "Off": "off"},
        ["9102", "localhost", ":65536", "a..b:1", ":9_1", "none"],
    ),
    "WS_TLS_CERT": PATH,
    "WS_TLS_KEY": PATH,
    "WS_ADMIN_TOKEN_FILE": PATH,
    "WS_RELOAD_FILE": PATH,
    "NATS_URL_FILE": PATH,
    "NATS_USER": TEXT,
    "NATS_PASSWORD_FILE": PATH,
    "NATS_TOKEN_FILE": PATH,
    "NATS_NKEY_FILE": PATH,
    "NATS_CREDS_FILE": PATH,
    "NATS_TLS_CA": PATH,
    "NATS_TLS_CERT": PATH,
    "NATS_TLS_KEY": PATH,
    "NATS_TLS_FIRST": Examples(
        "true, false, 1, 0, yes or no",
        {"true": True, "TRUE": True, "1": True, "yes": True, "false": False, "False": False,
         "0": False, "no": False},
        ["on", "2", "tru", "disabled"],
    ),
    "NATS_URL": Examples(
        "nats://host:port, several separated by commas",
        {
            "nats://10.0.0.1:4222": ("nats://10.0.0.1:4222",),
            "10.0.0.1:4222": ("nats://10.0.0.1:4222",),
            "nats": ("nats://nats",),
            "tls://a:1, b:2 ,nats://c": ("tls://a:1", "nats://b:2", "nats://c"),
            "nats://a/": ("nats://a/",),
            "nats://user:secret@a:1": ("nats://user:secret@a:1",),
            "user:secret@a:1": ("nats://user:secret@a:1",),
            "nats://[::1]:4222,": ("nats://[::1]:4222",),
        },
        ["http://a:4222", "nats://", ",", "a b", "nats://a/path", "nats://a?x=1", "ws://a",
         "a:http", "a:1:2", "a:123456", "nats://[::1"],
    ),
    "NATS_MODE": Examples(
        "auto, jetstream or core",
        {"auto": "auto", "JetStream": "jetstream", " core ": "core"},
        ["js", "jetstreams", "1"],
    ),
    "WS_SNAPSHOT_STREAM": Examples(
        "true, false, 1, 0, yes or no",
        {"true": True, "TRUE": True, "1": True, "yes": True, "false": False, "False": False,
         "0": False, "no": False},
        ["on", "2", "tru", "disabled"],
    ),
    "WS_CLOSE_REFUSED": Examples(
        "true, false, 1, 0, yes or no",
        {"true": True, "TRUE": True, "1": True, "yes": True, "false": False, "False": False,
         "0": False, "no": False},
        ["on", "2", "tru", "disabled"],
    ),
    "ENABLE_SUBSCRIPTION_FILTERING": Examples(
        "true, false, 1, 0, yes or no",
        {"true": True, "TRUE": True, "1": True, "yes": True, "false": False, "False": False,
         "0": False, "no": False},
        ["on", "2", "tru", "disabled"],
    ),
    "WS_WORKERS": Examples(
        "a whole number from 1 to 64, or auto",
        {"1": 1, " 2 ": 2, "64": 64},
        ["0", "65", "1.5", "automatic", "all", *NO_NUMBERS],
    ),
    "WS_MAX_CONNECTIONS": whole(0, 10_000_000),
    "WS_CPU_LIMIT": number(0.01, 4096),
    "WS_MEMORY_LIMIT": whole(0, 2**50),
    "WS_MAX_GOROUTINES": whole(0, 100_000_000),
    "WS_CPU_REJECT_THRESHOLD": PERCENT,
    "WS_CPU_PAUSE_THRESHOLD": PERCENT,
    "WS_MEMORY_REJECT_THRESHOLD": PERCENT,
    "WS_MEMORY_PAUSE_THRESHOLD": PERCENT,
    "WS_LAG_REJECT_MS": number(0.001, 3_600_000, unit=1000),
    "WS_ACCEPT_RATE": number(0.001, 1_000_000),
    "WS_MAX_HALF_OPEN": whole(1, 1_000_000),
    "WS_MAX_CONNECTIONS_PER_IP": whole(0, 10_000_000),
    "WS_TRUSTED_PROXIES": Examples(
        "addresses and networks such as 10.0.0.0/8, separated by commas",
        {"10.0.0.0/8, ::1": (ip_network("10.0.0.0/8"), ip_network("::1")),
         "192.168.7.7,": (ip_network("192.168.7.7"),)},
        ["10.0.0.1/8", "proxy", "10.0.0.0/33", "10.0.0.0/8 ::1"],
    ),
    "WS_ALLOWED_ORIGINS": Examples(
        "origins such as https://example.com, capacitor://localhost or null, separated by commas",
        {"capacitor://localhost, ionic://localhost, null": ("capacitor://localhost",
         "ionic://localhost", "null"), "tauri://localhost": ("tauri://localhost",),
         "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb":
         ("chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",),
         "safari-web-extension://0A1B2C3D-0000-4000-8000-ABCDEF012345,app://.,file://":
         ("safari-web-extension://0A1B2C3D-0000-4000-8000-ABCDEF012345", "app://.", "file://"),
         "https://example.com, http://localhost:3000": ("https://example.com",
         "http://localhost:3000"), "https://[::1]:8443": ("https://[::1]:8443",),
         "https://a:80, http://a:443": ("https://a:80", "http://a:443")},
        ["example.com", "https://example.com/", "https://*.example.com", "*", "Null", "NULL",
         "https://Example.com", "wss://example.com", "ws://example.com", "capacitor://localhost/",
         "Capacitor://localhost", "capacitor:localhost", "tauri://*", "file:///", "https://",
         "https://example.com:\uff18\uff10", "app:// localhost", "https://example.com:", "https://example.com:443",
         "http://[::1]:80"],
    ),
    "WS_PAGE": Examples(
        "on or off",
        {"on": "on", "Off": "off", " off ": "off"},
        ["true", "1", "yes", "none"],
    ),
    "WS_JWT_KEYS": PATH,
    "WS_JWT_ALGORITHMS": Examples(
        "some of HS256, RS256, ES256, separated by commas",
        {"HS256": ("HS256",), "es256, rs256": ("ES256", "RS256")},
        ["none", "HS512", "HS256 RS256", ","],
    ),
    "WS_JWT_ISSUER": TEXT,
    "WS_JWT_AUDIENCE": TEXT,
    "WS_MAX_NATS_RATE": RATE,
    "WS_MAX_BROADCAST_RATE": RATE,
    "WS_WORKER_QUEUE_SIZE": whole(1, 10_000_000),
    "WS_OUTBOX_CAPACITY": whole(1, 1_000_000),
    "WS_OUTBOX_BYTES": whole(1024, 2**40),
    "WS_TOTAL_OUTBOX_BYTES": whole(0, 2**50),
    "WS_REPLAY_BYTES": whole(0, 2**50),
    "WS_SNAPSHOT_CHANNELS": whole(0, 1_000_000),
    "WS_SNAPSHOT_BYTES": whole(1024, 2**50),
    "WS_SNAPSHOT_EVENTS": whole(1, 1_000_000),
    "WS_MAX_PATTERNS": whole(0, 1_000_000),
    "WS_MIN_EVERY_MS": whole(50, 60_000),
    "WS_DICTIONARY": Examples(
        "",
        {"odin.dict": Path("odin.dict"), "off": Path("off"), "/etc/odin/d": Path("/etc/odin/d")},
        [],
    ),
    "WS_COMPRESSION": Examples(
        "off or deflate",
        {"off": "off", "Deflate": "deflate", " off ": "off"},
        ["on", "true", "gzip", "z1", "br"],
    ),
    "WS_SLOW_POLICY": Examples(
        "evict, conflate or drop",
        {"evict": "evict", "Conflate": "conflate", " drop ": "drop"},
        ["kick", "0", "conflation"],
    ),
    "WS_REPLAY_CAPACITY": whole(0, 1_000_000, "1" + "0" * 20),
    "WS_MAX_MESSAGE_BYTES": whole(64, 64 * 2**20),
    "WS_MAX_FRAGMENTS": whole(1, 1_000_000),
    "WS_RESUME_CHANNEL_EVENTS": whole(1, 1_000_000),
    "WS_RESUME_EVENTS": whole(1, 1_000_000),
    "WS_MAX_CHANNELS": whole(1, 1_000_000),
    "WS_COMMAND_BURST": whole(1, 1_000_000),
    "WS_COMMAND_RATE": number(0.001, 1_000_000),
    "WS_MAX_HEAD_BYTES": whole(1024, 2**20, "8KiB"),
    "WS_MAX_HEADERS": whole(8, 1000),
    "WS_HANDSHAKE_TIMEOUT": DURATION,
    "WS_WRITE_DEADLINE": DURATION,
    "WS_PING_INTERVAL": DURATION,
    "WS_KEEPALIVE_TIMEOUT": DURATION,
    "WS_DRAIN_SECONDS": DURATION,
    "WS_WATCHDOG_SECONDS": number(1, 3600),
    "JS_STREAM_NAME": Examples(
        "a name of at most 255 characters, without spaces, . * > / and \\",
        {"ODIN_TOKENS": "ODIN_TOKENS", "other": "other", "x" * 255: "x" * 255},
        ["a b", "a.b", "a*", ">", "a/b", "a\\b", "x" * 256, "a\x07", "\udcff", "a\nb"],
    ),
    "JS_STREAM_MAX_AGE": duration("50ms", "87600h1ms", least="100ms", most="87600h"),
    "JS_STREAM_MAX_MSGS": whole(1, 10**12),
    "JS_STREAM_MAX_BYTES": whole(65_536, 2**50),
    "JS_STREAM_STORAGE": Examples(
        "memory or file", {"memory": "memory", " FILE ": "file"}, ["disk", "memory,file", "0"]
    ),
    "JS_STREAM_REPLICAS": whole(1, 5),
    "OTEL_EXPORTER_OTLP_ENDPOINT": TEXT,
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": TEXT,
    "OTEL_TRACES_EXPORTER": TEXT,
    "OTEL_EXPORTER_OTLP_PROTOCOL": TEXT,
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": TEXT,
    "OTEL_SDK_DISABLED": Examples(
        "true, false, 1, 0, yes or no", {"true": True, "False": False}, ["on", "maybe"]
    ),
    "WS_TRACES_PER_SECOND": whole(1, 1000),
    "METRICS_INTERVAL": DURATION,
    "LOG_LEVEL": Examples(
        "debug, info, warning or error",
        {"debug": "debug", "INFO": "info", "warning": "warning", "error": "error"},
        ["loud", "0", "trace"],
    ),
    "TRIO_ODIN_REVISION": TEXT,
    "LOG_FORMAT": Examples(
        "json, text or pretty",
        {"json": "json", "text": "text", "Pretty": "pretty"},
        ["xml", "jsonl"],
    ),
}  # fmt: skip

FIELDS = {
    field.metadata["environ_config"].name: field.name
    for field in attrs.fields(cast("Any", Settings))
}
GOOD = [(n, text, value) for n, (_, good, _) in EXAMPLES.items() for text, value in good.items()]
BAD = [(n, text, allowed) for n, (allowed, _, bad) in EXAMPLES.items() for text in bad]


def test_there_are_examples_for_every_variable() -> None:
    assert EXAMPLES.keys() == FIELDS.keys() == {variable.name for variable in variables()}


# The two variables that limit each other, as far apart as can be.
WIDE = {"WS_PING_INTERVAL": "1ms", "WS_KEEPALIVE_TIMEOUT": "24h"}


def by_name(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, field) for name, field in FIELDS.items()}


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_good_value_is_used_and_nothing_else_changes(name: str, text: str, value: Any) -> None:
    taken = by_name(read_settings(WIDE | {name: text}))
    assert taken == by_name(read_settings(WIDE)) | {name: value}
    assert type(taken[name]) is type(value)


@pytest.mark.parametrize(("name", "text", "allowed"), BAD)
def test_the_complaint_names_the_variable_its_value_and_the_rule(
    name: str, text: str, allowed: str
) -> None:
    with pytest.raises(SettingError) as caught:
        read_settings({name: text})
    shown = repr(text)
    if name == "NATS_URL":  # a bad part may be a password: see "secrets"
        shown = str(caught.value).removeprefix("NATS_URL=").partition(": allowed")[0]
    assert str(caught.value).startswith(f"{name}={shown}: allowed is {allowed}")
    assert str(caught.value).isprintable(), "one line, whatever was in it"


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_an_empty_variable_counts_as_unset(name: str, text: str) -> None:
    assert read_settings({name: text}) == read_settings({})


@given(
    name=st.sampled_from(sorted(EXAMPLES)),
    text=st.text() | st.text(st.sampled_from("0123456789.-+e_%smh:/@,[]")),
)
def test_any_text_is_a_value_or_a_complaint_with_the_name(name: str, text: str) -> None:
    try:
        read_settings(WIDE | {name: text})
    except SettingError as error:
        names = WIDE if name in WIDE else [name]
        assert str(error).startswith(tuple(f"{one}=" for one in names))  # noqa: PT017


def test_the_defaults_are_those_of_the_wire_document() -> None:
    settings = read_settings({})
    assert settings.address == Address("", 3002)
    assert settings.is_filtering is True
    assert (settings.cpu_reject_percent, settings.cpu_pause_percent) == (75.0, 80.0)
    assert (settings.max_nats_rate, settings.max_broadcast_rate) == (0.0, 0.0)
    assert (settings.outbox_capacity, settings.replay_capacity) == (512, 100)
    assert (settings.command_burst, settings.commands_per_second) == (100, 10.0)
    assert (settings.max_message_bytes, settings.max_channels) == (16384, 256)
    assert settings.write_deadline_seconds == 5.0
    assert settings.ping_interval_seconds == 27.0
    assert settings.keepalive_seconds >= 60.0
    assert settings.stream_name == "ODIN_TOKENS"
    assert settings.stream_max_age_seconds == 30.0
    assert settings.stream_max_messages == 100_000
    assert settings.stream_max_bytes == 50 * 1024 * 1024
    assert settings.summary_seconds == 15.0


@pytest.mark.parametrize("variable", variables(), ids=lambda variable: variable.name)
def test_a_default_written_out_equals_an_unset_variable(variable: Variable) -> None:
    assert read_settings({variable.name: variable.default}) == read_settings({})
    assert variable.help.endswith(".")


def test_the_environment_of_the_plan_is_accepted() -> None:
    environment = {
        "WS_CPU_LIMIT": "1.9",
        "WS_MEMORY_LIMIT": "7516192768",
        "WS_MAX_CONNECTIONS": "10000",
        "WS_WORKER_POOL_SIZE": "256",
        "WS_WORKER_QUEUE_SIZE": "25600",
        "WS_MAX_NATS_RATE": "1000",
        "WS_MAX_BROADCAST_RATE": "1000",
        "WS_MAX_GOROUTINES": "25000",
        "WS_CPU_REJECT_THRESHOLD": "75.0",
        "WS_CPU_PAUSE_THRESHOLD": "80.0",
        "LOG_LEVEL": "info",
        "LOG_FORMAT": "json",
    }
    settings = read_settings(environment)
    assert settings.memory_limit_bytes == 7_516_192_768
    assert settings.inbound_capacity == 25600
    (warning,) = warnings_about(read_settings(environment), environment)
    assert warning.startswith("WS_WORKER_POOL_SIZE has no effect: ")


def test_workers_auto_means_the_number_of_usable_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert read_settings({"WS_WORKERS": "auto"}).workers == min(cores, 64)
    assert read_settings({"WS_WORKERS": " Auto"}).workers == min(cores, 64)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        read_settings({}).max_channels = 5


# --- two variables that limit each other


def test_a_token_for_an_admin_api_that_is_off_gets_a_warning() -> None:
    environment = {"WS_ADMIN_ADDR": "off", "WS_ADMIN_TOKEN_FILE": "/etc/token"}
    assert list(warnings_about(read_settings(environment), environment)) == [
        "WS_ADMIN_TOKEN_FILE has no effect with WS_ADMIN_ADDR=off"
    ]


@pytest.mark.parametrize(
    "environment",
    [
        {"WS_PING_INTERVAL": "60s"},
        {"WS_PING_INTERVAL": "2m"},
        {"WS_KEEPALIVE_TIMEOUT": "27s"},
        {"WS_KEEPALIVE_TIMEOUT": "15s", "WS_PING_INTERVAL": ""},
    ],
)
def test_pings_that_are_too_late_for_quiet_clients_get_a_warning(
    environment: dict[str, str],
) -> None:
    (warning,) = warnings_about(read_settings(environment), environment)
    settings = read_settings(environment)
    assert f"WS_PING_INTERVAL of {settings.ping_interval_seconds:g} s" in warning
    assert f"WS_KEEPALIVE_TIMEOUT of {settings.keepalive_seconds:g} s" in warning


def test_a_keepalive_longer_than_the_ping_interval_gets_no_warning() -> None:
    assert list(warnings_about(read_settings({"WS_PING_INTERVAL": "59s"}), {})) == []


# --- a file of settings, and those that change while the server runs


def test_a_file_takes_precedence_over_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("\ufeff# limits\nWS_MAX_CHANNELS='7'\nWS_OUTBOX_CAPACITY=\n", "utf-8")
    environment = {
        "WS_RELOAD_FILE": str(file), "WS_MAX_CHANNELS": "5", "WS_OUTBOX_CAPACITY": "5",
        "WS_REPLAY_CAPACITY": "5",
    }  # fmt: skip
    settings = read_settings(with_reload_file(environment))
    assert settings.max_channels == 7
    assert settings.outbox_capacity == 512, "an empty value counts as unset"
    assert settings.replay_capacity == 5


def test_the_value_of_a_wrong_reload_file_is_not_shown() -> None:
    given = {"WS_RELOAD_FILE": "NATS_URL=nats://odin:CANARY@nats:4222"}
    with pytest.raises(SettingError, match="WS_RELOAD_FILE") as caught:
        with_reload_file(given)
    assert "No such file" in str(caught.value)
    assert "CANARY" not in str(caught.value) + effective(given)["WS_RELOAD_FILE"]


@pytest.mark.parametrize("environment", [{}, {"WS_RELOAD_FILE": " "}])
def test_without_a_file_the_environment_alone_counts(environment: dict[str, str]) -> None:
    assert with_reload_file({"WS_ADDR": ":1", **environment}) == {"WS_ADDR": ":1", **environment}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        (b"WS_MAX_CHANNELS=5\nSECRET", "line 2 is not NAME=value"),
        (b"WS_MAX_CHANNELS=\xff", "decode"),
        (b"WS_RELOAD_FILE=/other", "WS_RELOAD_FILE cannot be set by the file that it names"),
    ],
)
def test_a_bad_file_gives_a_sentence_without_its_content(
    content: bytes | None, complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingError, match=complaint) as caught:
        with_reload_file({"WS_RELOAD_FILE": str(file)})
    assert str(caught.value).startswith("WS_RELOAD_FILE")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_reload_changes_only_reloadable_settings(name: str, text: str, value: Any) -> None:
    running, wanted = read_settings(WIDE), read_settings(WIDE | {name: text})
    after = reloaded(running, wanted)
    (variable,) = (variable for variable in variables() if variable.name == name)
    expected = wanted if variable.reloads else running
    assert by_name(after) == by_name(expected)
    assert type(after) is Settings
    assert changes(running, wanted) == ([name] if wanted != running else [])


def test_limits_origins_and_keys_are_reloadable() -> None:
    names = {variable.name for variable in variables() if variable.reloads}
    assert {
        "WS_MAX_CONNECTIONS", "WS_MAX_CONNECTIONS_PER_IP", "WS_CPU_REJECT_THRESHOLD",
        "WS_CPU_PAUSE_THRESHOLD", "WS_MEMORY_REJECT_THRESHOLD", "WS_MEMORY_PAUSE_THRESHOLD",
        "WS_LAG_REJECT_MS", "WS_ACCEPT_RATE", "WS_MAX_HALF_OPEN", "WS_MAX_NATS_RATE",
        "WS_MAX_PATTERNS", "WS_MIN_EVERY_MS", "WS_SNAPSHOT_EVENTS", "WS_CLOSE_REFUSED",
        "WS_MAX_BROADCAST_RATE", "WS_MAX_CHANNELS", "WS_COMMAND_BURST", "WS_COMMAND_RATE",
        "WS_RESUME_CHANNEL_EVENTS", "WS_RESUME_EVENTS",
        "WS_ADMIN_TOKEN_FILE", "WS_ALLOWED_ORIGINS", "WS_JWT_KEYS", "WS_JWT_ALGORITHMS",
        "WS_JWT_ISSUER", "WS_JWT_AUDIENCE", "WS_MAX_HEAD_BYTES", "WS_MAX_HEADERS", "LOG_LEVEL",
        "WS_COMPRESSION", "WS_TLS_CERT", "WS_TLS_KEY", "WS_TRACES_PER_SECOND",
    } == names  # fmt: skip


# --- names


@pytest.mark.parametrize("name", COMPATIBLE)
def test_every_documented_name_has_an_effect_or_a_reason(name: str) -> None:
    assert (name in FIELDS) != (name in IGNORED)
    text = next(iter(EXAMPLES[name].good)) if name in EXAMPLES else "1"
    warnings = list(warnings_about(read_settings({}), {name: text}))
    assert warnings == ([f"{name} has no effect: {IGNORED[name]}"] if name in IGNORED else [])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("WS_MAX_CONECTIONS", "WS_MAX_CONNECTIONS"),
        ("WS_MAXCHANNELS", "WS_MAX_CHANNELS"),
        ("WS_ADDRESS", "WS_ADDR"),
        ("JS_STREAM_MAX_MESSAGES", "JS_STREAM_MAX_MSGS"),
        ("JS_STREAM", "JS_STREAM_NAME"),
        ("WS_CPU_REJECT", "WS_CPU_REJECT_THRESHOLD"),
    ],
)
def test_an_unknown_name_gets_a_warning_with_the_nearest_known_one(name: str, nearest: str) -> None:
    (warning,) = warnings_about(read_settings({}), {name: "x"})
    assert warning == f"{name} is unknown and has no effect; the nearest known one is {nearest}"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ENABLE_SUBSCRIPTIONS_FILTERING", "ENABLE_SUBSCRIPTION_FILTERING"),
        ("ENABLE_SUBSCRIBTION_FILTERING", "ENABLE_SUBSCRIPTION_FILTERING"),
        ("ENABLE_SUBSCRIPTION_FILTER", "ENABLE_SUBSCRIPTION_FILTERING"),
        ("SUBSCRIPTION_FILTERING", "ENABLE_SUBSCRIPTION_FILTERING"),
        ("ENABLE_FILTERING", "ENABLE_SUBSCRIPTION_FILTERING"),
        ("DISABLE_SUBSCRIPTION_FILTERING", "ENABLE_SUBSCRIPTION_FILTERING"),
        ("NATS_URLS", "NATS_URL"),
        ("NATSURL", "NATS_URL"),
        ("NATS_ULR", "NATS_URL"),
        ("NATS_MODES", "NATS_MODE"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("LOG_LEVLE", "LOG_LEVEL"),
        ("LOG_FROMAT", "LOG_FORMAT"),
        ("METRIC_INTERVAL", "METRICS_INTERVAL"),
        ("METRICS_INTERVAL_MS", "METRICS_INTERVAL"),
    ],
)
def test_a_misspelt_name_without_a_prefix_gets_a_suggestion(name: str, nearest: str) -> None:
    (warning,) = warnings_about(read_settings({}), {name: "x", "PATH": "/bin"})
    assert warning == f"{name} is unknown and has no effect; the nearest known one is {nearest}"
    given = {name: "x", nearest: next(iter(EXAMPLES[nearest].good))}
    assert not list(warnings_about(read_settings({}), given)), "somebody else's, then"


@pytest.mark.parametrize(
    "name",
    [
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "OTEL_BSP_SCHEDULE_DELAY",
    ],
)
def test_variables_of_the_library_for_traces_are_not_taken_for_misspelt_ones(name: str) -> None:
    assert not list(warnings_about(read_settings({}), {name: "x"}))


@given(st.text().map("WS_{}".format))
def test_any_unknown_name_has_a_nearest_one(name: str) -> None:
    if name not in FIELDS and name not in IGNORED:
        (warning,) = warnings_about(read_settings({}), {name: "x"})
        assert warning.rpartition(" ")[2] in FIELDS


# Variables of shells, of containers, of Kubernetes for a service `nats`, of other programs.
OTHERS = [
    "PATH", "HOME", "HOSTNAME", "LANG", "SHLVL", "NATS_URI", "XWS_ADDR", "ws_addr", "NATS_USER",
    "NATS_PORT", "NATS_SERVICE_HOST", "NATS_SERVICE_PORT", "NATS_PORT_4222_TCP", "NATS_CONTEXT",
    "NATS_HOST", "NATS_CREDS", "NATS_SERVER", "LOG_FILE", "LOG_DIR", "LOG_PATH", "LOGNAME", "LEVEL",
    "LOG_COLOR", "RUST_LOG", "METRICS_PORT", "METRICS_ENABLED", "METRICS_PATH", "INTERVAL", "MODE",
    "ENABLE_METRICS", "ENABLE_DEBUG", "PYTHONUNBUFFERED", "DATABASE_URL", "REDIS_URL", "AMQP_URL",
    "TRIO_ODIN_IMAGE", "GRAFANA_URL", "REVISION", "FORMAT", "ADDR",
]  # fmt: skip


def test_names_of_other_programs_are_ignored() -> None:
    environment = dict.fromkeys(set(OTHERS).difference(FIELDS), "x")
    assert list(warnings_about(read_settings(environment), environment)) == []
    assert read_settings(environment) == read_settings({})


def test_warnings_come_in_order_of_name() -> None:
    environment = {"WS_B": "", "JS_CONSUMER_NAME": "", "WS_A": "", "WS_ADDR": ""}
    names = [
        warning.split()[0] for warning in warnings_about(read_settings(environment), environment)
    ]
    assert names == ["JS_CONSUMER_NAME", "WS_A", "WS_B"]


# --- shown values


def test_all_settings_in_force_are_shown_as_text() -> None:
    shown = effective({"WS_ADDR": " :1 ", "WS_WORKERS": "", "HOME": "/root"})
    assert shown == {v.name: v.default for v in variables()} | {"WS_ADDR": ":1"}


def test_the_changed_settings_are_those_with_another_value() -> None:
    given = {
        "WS_ADDR": " :3002", "WS_PING_INTERVAL": "27.0", "WS_KEEPALIVE_TIMEOUT": "2m",
        "ENABLE_SUBSCRIPTION_FILTERING": "YES", "WS_MAX_CHANNELS": "256", "HOME": "/",
        "LOG_LEVEL": "debug",
    }  # fmt: skip
    assert differing(given) == {"WS_KEEPALIVE_TIMEOUT": "2m", "LOG_LEVEL": "debug"}
    assert differing({}) == {}


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("NATS_URL", "nats://user:SECRET@a:1", "…@a:1"),
        ("NATS_URL", "nats://SECRET@a:1,tls://user:SECRET@b, c", "…@a:1,…@b,c"),
        ("NATS_URL", "user:SECRET@a", "…@a"),
        ("NATS_URL", "nats://a:4222, tls://b", "nats://a:4222,tls://b"),
        ("WS_JWT_KEYS", "/run/secrets/jwt-keys.v2", "/run/secrets/jwt-keys.v2"),
        ("WS_JWT_KEYS", "keys.json", "keys.json"),
        ("WS_JWT_KEYS", "SECRET", "…"),
        ("WS_JWT_KEYS", "c2VjcmV0IHNlY3JldCBzZWNyZXQ/SECRET+", "…"),
        ("WS_JWT_KEYS", '{"keys":[{"k":"SECRET"}]}', "…"),
        ("WS_JWT_KEYS", "-----BEGIN PRIVATE KEY-----\nSECRET", "…"),
    ],
)
def test_nothing_secret_is_shown(name: str, text: str, shown: str) -> None:
    assert effective({name: text})[name] == shown
    assert differing({name: text}) == {name: shown}


# --- secrets


@pytest.mark.parametrize(
    "url",
    [
        "http://user:SECRET@host:4222",
        "nats://SECRET@host:4222/path",
        "nats://user:SECRET@host:4222,http://other:SECRET@b",
        "nats://good:SECRET@host:4222,not a url",
        "nats://user:SECRET@with@host/path",
        "user:SECRET@host:4222/path",
        "SECRET@host name:4222",
        "nats://user:pa/SECRET@host:4222",
        "nats://user:pa SECRET@host:4222",
        "nats://user:pa?SECRET#SECRET@host:4222",
        "nats://user:pa,SECRET/x@host:4222",
        "a,user:SECRET@b/path",
        "bob:SECRET",
        "nats://bob:SECRET",
        "nats://SECRET/x",
        "SECRET a",
        "nats://a:1,bob:SECRET",
        "nats://user:x@a,nats://bob:SECRET",
        "nats://bob:SECRET,nats://user:x@a",
        "tls:SECRET",
        "bob:SECRET:4222",
        "nats://bob:%zzSECRET@a",
        "nats://bob:x%@SECRET@a",
    ],
)
def test_the_complaint_about_a_nats_url_hides_its_credentials(url: str) -> None:
    with pytest.raises(SettingError) as caught:
        read_settings({"NATS_URL": url})
    assert "SECRET" not in str(caught.value)
    assert str(caught.value).startswith("NATS_URL=")
    assert "allowed is nats://host:port" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["bob:{}", "nats://bob:{}", "a,bob:{}", "bob:{},a", "tls://a,nats://bob:{}"]
)
def test_a_password_of_digits_is_not_shown_as_a_port(url: str) -> None:
    secret = "7391846205"
    with pytest.raises(SettingError) as caught:
        read_settings({"NATS_URL": url.format(secret)})
    assert secret not in str(caught.value)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "nats://", "tls://", "http://", "//", "nats:/", "://"]),
            st.text("ab:/%? ", max_size=4),
            st.text("ab:/%?# @", max_size=4),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_no_complaint_shows_a_possible_password(urls: list[tuple[str, str, str]]) -> None:
    text = ",".join(f"{scheme}{user}:SECRET{rest}" for scheme, user, rest in urls)
    with suppress(SettingError):
        read_settings({"NATS_URL": text})
        return
    with pytest.raises(SettingError) as caught:
        read_settings({"NATS_URL": text})
    assert "SECRET" not in str(caught.value)


def test_the_complaint_still_shows_the_wrong_host() -> None:
    with pytest.raises(SettingError, match=r"host:4222/path"):
        read_settings({"NATS_URL": "nats://user:secret@host:4222/path"})


def test_a_url_without_a_host_does_not_show_its_password() -> None:
    with pytest.raises(SettingError) as caught:
        read_settings({"NATS_URL": "nats://bob:s3cret"})
    assert "s3cret" not in str(caught.value)


def test_the_nats_url_can_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "nats_url"
    file.write_text("tls://ws:secret@nats:4222\n")
    environment = {"NATS_URL": "nats://elsewhere:4222", "NATS_URL_FILE": str(file)}
    found = with_nats_url_file(environment)
    assert read_settings(found).nats_urls == ("tls://ws:secret@nats:4222",)
    assert with_nats_url_file({"NATS_URL_FILE": " "}) == {"NATS_URL_FILE": " "}


def test_an_unreadable_file_of_the_url_gives_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"NATS_URL_FILE=.*No such file or directory"):
        with_nats_url_file({"NATS_URL_FILE": str(tmp_path / "nowhere")})
    (tmp_path / "image").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match="it is not text"):
        with_nats_url_file({"NATS_URL_FILE": str(tmp_path / "image")})
    # A value in the wrong variable is not shown.
    with pytest.raises(SettingError) as raised:
        with_nats_url_file({"NATS_URL_FILE": "tls://ws:secret@nats:4222"})
    assert "secret" not in str(raised.value)
