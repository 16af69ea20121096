"""Every setting of the server, from the environment: one attrs class is the whole list.

A command-line flag is another spelling of a variable (`--addr` of `WS_ADDR`), so there is one way
in and one kind of error. docs/configuration.md is generated from this class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import environ

from trio_odin.net.address import Address
from trio_odin.settings import values
from trio_odin.settings.setting_field import setting, shown_collector, shown_path, shown_urls
from trio_odin.wire.rates import RATES_MS

_MEBIBYTE, _TEBIBYTE, _PEBIBYTE = 2**20, 2**40, 2**50


@environ.config(prefix="", frozen=True)
class Settings:
    """How one server runs. Times are seconds, sizes are bytes, 0 in a limit means none."""

    address: Address = setting(
        "WS_ADDR", ":3002", Address.parse, help="Listen on this address; [::] means IPv4 and IPv6."
    )
    tls_cert: Path | None = setting(
        "WS_TLS_CERT",
        "",
        values.path,
        help="File with a certificate and its chain in PEM: WS_ADDR then speaks TLS (wss, https) "
        "and nothing else; empty: a proxy does that.",
        reloads=True,
        show=shown_path,
    )
    tls_key: Path | None = setting(
        "WS_TLS_KEY",
        "",
        values.path,
        help="File with its private key; empty: it is in the file of the certificate.",
        reloads=True,
        show=shown_path,
    )
    admin_address: Address | Literal["off"] | None = setting(
        "WS_ADMIN_ADDR",
        "",
        values.admin_address,
        help="Serve the admin API on this address, and /metrics here instead of on WS_ADDR; empty: "
        "the API on 127.0.0.1:3008, or another port if that is taken, and /metrics on WS_ADDR; "
        "off: no API.",
    )
    admin_token_file: Path | None = setting(
        "WS_ADMIN_TOKEN_FILE",
        "",
        values.path,
        help="File with the token that the admin API asks for. Without one the API is refused "
        "unless its address is loopback.",
        reloads=True,
        show=shown_path,
    )
    reload_file: Path | None = setting(
        "WS_RELOAD_FILE",
        "",
        values.path,
        help="File of NAME=value lines that override the environment; SIGHUP reads it again.",
        show=shown_path,
    )
    nats_urls: tuple[str, ...] = setting(
        "NATS_URL",
        "nats://127.0.0.1:4222",
        values.nats_urls,
        help="URL of the NATS server, or several URLs separated by commas.",
        show=shown_urls,
    )
    nats_url_file: Path | None = setting(
        "NATS_URL_FILE",
        "",
        values.path,
        help="File that holds NATS_URL, such as a mounted secret; overrides NATS_URL.",
        show=shown_path,
    )
    nats_user: str = setting(
        "NATS_USER",
        "",
        values.printable,
        help="User of NATS, whose password is in the file that NATS_PASSWORD_FILE names.",
    )
    nats_password_file: Path | None = setting(
        "NATS_PASSWORD_FILE",
        "",
        values.path,
        help="File with the password of NATS_USER.",
        show=shown_path,
    )
    nats_token_file: Path | None = setting(
        "NATS_TOKEN_FILE",
        "",
        values.path,
        help="File with a token for NATS.",
        show=shown_path,
    )
    nats_nkey_file: Path | None = setting(
        "NATS_NKEY_FILE",
        "",
        values.path,
        help="File with the seed of an nkey, which begins with SU; needs the extra nkeys.",
        show=shown_path,
    )
    nats_creds_file: Path | None = setting(
        "NATS_CREDS_FILE",
        "",
        values.path,
        help="Credentials file as nsc makes it, with a JWT and a seed; needs the extra nkeys.",
        show=shown_path,
    )
    nats_tls_ca: Path | None = setting(
        "NATS_TLS_CA",
        "",
        values.path,
        help="File with the authorities, in PEM, that may sign the certificate of NATS; empty: "
        "those of the system. Nothing is then sent unencrypted.",
        show=shown_path,
    )
    nats_tls_cert: Path | None = setting(
        "NATS_TLS_CERT",
        "",
        values.path,
        help="File with a certificate, in PEM, that is shown to NATS.",
        show=shown_path,
    )
    nats_tls_key: Path | None = setting(
        "NATS_TLS_KEY",
        "",
        values.path,
        help="File with its private key; empty: it is in the file of the certificate.",
        show=shown_path,
    )
    nats_tls_first: bool = setting(
        "NATS_TLS_FIRST",
        "false",
        values.boolean,
        help="Whether to start TLS before NATS sends anything, for a NATS with handshake_first.",
    )
    nats_mode: str = setting(
        "NATS_MODE",
        "auto",
        values.Choice(("auto", "jetstream", "core")),
        help="Use a JetStream ordered consumer, a core subscription, or the best available (auto).",
    )
    is_filtering: bool = setting(
        "ENABLE_SUBSCRIPTION_FILTERING",
        "true",
        values.boolean,
        help="false sends every event to every connection, as a fallback if filtering fails.",
    )

    workers: int = setting(
        "WS_WORKERS",
        "1",
        values.workers,
        help="Processes that share the port, 1 to 64; auto: one for each core.",
    )
    max_connections: int = setting(
        "WS_MAX_CONNECTIONS",
        "10000",
        values.Whole(0, 10_000_000),
        help="Connections open at once; further ones get a 503.",
        reloads=True,
    )
    cpu_limit_cores: float = setting(
        "WS_CPU_LIMIT",
        "0",
        values.Number(4096, least=0.01),
        help="Cores that this server may use; 0: the limit of its container.",
    )
    memory_limit_bytes: int = setting(
        "WS_MEMORY_LIMIT",
        "0",
        values.Whole(0, _PEBIBYTE),
        help="Bytes of memory that this server may use; 0: the limit of its container.",
    )
    max_tasks: int = setting(
        "WS_MAX_GOROUTINES",
        "0",
        values.Whole(0, 100_000_000),
        help="Tasks (3 for each connection) at which /health becomes degraded.",
    )
    cpu_reject_percent: float = setting(
        "WS_CPU_REJECT_THRESHOLD",
        "75",
        values.percent,
        help="CPU percentage, of the limit or of a core, at which new connections get a 503.",
        reloads=True,
    )
    cpu_pause_percent: float = setting(
        "WS_CPU_PAUSE_THRESHOLD",
        "80",
        values.percent,
        help="CPU percentage of the limit at which a growing share of events is shed; 0: never.",
        reloads=True,
    )
    memory_reject_percent: float = setting(
        "WS_MEMORY_REJECT_THRESHOLD",
        "85",
        values.percent,
        help="Memory percentage of the limit at which new connections get a 503; 0: never.",
        reloads=True,
    )
    memory_pause_percent: float = setting(
        "WS_MEMORY_PAUSE_THRESHOLD",
        "95",
        values.percent,
        help="Memory percentage of the limit at which all events are shed; 0: never.",
        reloads=True,
    )
    lag_reject_seconds: float = setting(
        "WS_LAG_REJECT_MS",
        "1000",
        values.Number(3_600_000, unit=1000),
        help="Milliseconds of scheduler lag at which new connections get a 503; 0: never.",
        reloads=True,
    )
    accepts_per_second: float = setting(
        "WS_ACCEPT_RATE",
        "2000",
        values.Number(1_000_000),
        help="Connections that a process accepts in a second; 0: as many as it can.",
        reloads=True,
    )
    max_pending_handshakes: int = setting(
        "WS_MAX_HALF_OPEN",
        "1000",
        values.Whole(1, 1_000_000),
        help="Pending handshakes of a process; beyond this number the oldest one is closed.",
        reloads=True,
    )
    max_connections_per_address: int = setting(
        "WS_MAX_CONNECTIONS_PER_IP",
        "0",
        values.Whole(0, 10_000_000),
        help="Connections of one client address to a process; further ones get a 429; 0: any.",
        reloads=True,
    )
    trusted_proxies: tuple[values.Network, ...] = setting(
        "WS_TRUSTED_PROXIES",
        "",
        values.networks,
        help="Networks of proxies whose X-Forwarded-For names the client's address.",
    )
    allowed_origins: tuple[str, ...] = setting(
        "WS_ALLOWED_ORIGINS",
        "",
        values.origins,
        help="Origins that browsers may connect from; others get a 403; empty: all.",
        reloads=True,
    )
    closes_refused: bool = setting(
        "WS_CLOSE_REFUSED",
        "false",
        values.boolean,
        help="Whether clients that offer our subprotocol are refused after the upgrade, by a close "
        "with 4401, 4403, 4429 or 4503, which a page can read.",
        reloads=True,
    )
    page: str = setting(
        "WS_PAGE",
        "on",
        values.Choice(("on", "off")),
        help="on: browsers get a page with live prices at /; off: the text that programs get.",
    )
    jwt_keys: Path | None = setting(
        "WS_JWT_KEYS",
        "",
        values.path,
        help="File with the keys that verify tokens (JWK set, PEM or secret); empty: no tokens.",
        reloads=True,
        show=shown_path,
    )
    jwt_algorithms: tuple[str, ...] = setting(
        "WS_JWT_ALGORITHMS",
        "RS256,ES256",
        values.algorithms,
        help="Algorithms that may sign a token: HS256, RS256, ES256.",
        reloads=True,
    )
    jwt_issuer: str = setting(
        "WS_JWT_ISSUER",
        "",
        values.printable,
        help="Issuer that a token must name; empty: any.",
        reloads=True,
    )
    jwt_audience: str = setting(
        "WS_JWT_AUDIENCE",
        "",
        values.printable,
        help="Audience that a token must name; empty: any.",
        reloads=True,
    )
    max_nats_rate: float = setting(
        "WS_MAX_NATS_RATE",
        "0",
        values.Number(100_000_000),
        help="Messages accepted from NATS in a second; more are shed.",
        reloads=True,
    )
    max_broadcast_rate: float = setting(
        "WS_MAX_BROADCAST_RATE",
        "0",
        values.Number(100_000_000),
        help="Fan-outs in a second; more events are shed.",
        reloads=True,
    )

    inbound_capacity: int = setting(
        "WS_WORKER_QUEUE_SIZE",
        "8192",
        values.Whole(1, 10_000_000),
        help="Messages that may wait in the inbound queue for their fan-out; more are shed.",
    )
    outbox_capacity: int = setting(
        "WS_OUTBOX_CAPACITY",
        "512",
        values.Whole(1, 1_000_000),
        help="Messages that may wait in the outbox of one connection.",
    )
    outbox_bytes: int = setting(
        "WS_OUTBOX_BYTES",
        "1048576",
        values.Whole(1024, _TEBIBYTE),
        help="Bytes that may wait in the outbox of one connection.",
    )
    total_outbox_bytes: int = setting(
        "WS_TOTAL_OUTBOX_BYTES",
        "0",
        values.Whole(0, _PEBIBYTE),
        help="Bytes that may wait in all outboxes together; 0: a quarter of the memory.",
    )
    slow_policy: str = setting(
        "WS_SLOW_POLICY",
        "evict",
        values.Choice(("evict", "conflate", "drop")),
        help="When an outbox is full: evict closes the client, conflate keeps the newest event "
        "of each channel, drop drops events.",
    )
    replay_capacity: int = setting(
        "WS_REPLAY_CAPACITY",
        "100",
        values.Whole(0, 1_000_000),
        help="Messages kept in the replay buffer of one connection.",
    )
    total_replay_bytes: int = setting(
        "WS_REPLAY_BYTES",
        "0",
        values.Whole(0, _PEBIBYTE),
        help="Bytes of events kept in all replay buffers together; 0: an eighth of the memory.",
    )
    resume_channel_events: int = setting(
        "WS_RESUME_CHANNEL_EVENTS",
        "100",
        values.Whole(1, 1_000_000),
        help="Events of one channel that a resuming client may get.",
        reloads=True,
    )
    resume_events: int = setting(
        "WS_RESUME_EVENTS",
        "500",
        values.Whole(1, 1_000_000),
        help="Events that a resuming client may get in all, besides the newest of each channel.",
        reloads=True,
    )
    snapshot_channels: int = setting(
        "WS_SNAPSHOT_CHANNELS",
        "10000",
        values.Whole(0, 1_000_000),
        help="Channels whose newest event is kept for clients that subscribe with a snapshot; the "
        "quietest go first; 0: no snapshots.",
    )
    snapshot_bytes: int = setting(
        "WS_SNAPSHOT_BYTES",
        "16777216",
        values.Whole(1024, _PEBIBYTE),
        help="Bytes of these events.",
    )
    snapshot_events: int = setting(
        "WS_SNAPSHOT_EVENTS",
        "1000",
        values.Whole(1, 1_000_000),
        help="Events that a client may get as a snapshot of one command.",
        reloads=True,
    )
    keeps_newest: bool = setting(
        "WS_SNAPSHOT_STREAM",
        "true",
        values.boolean,
        help="Whether a mirror of the stream, JS_STREAM_NAME with _NEWEST behind it, keeps the "
        "newest event of each channel longer than JS_STREAM_MAX_AGE.",
    )
    dictionary: Path | None = setting(
        "WS_DICTIONARY",
        "",
        values.path,
        help="File with the dictionary of the subprotocol trio-odin.z1, see trio-odin dictionary; "
        "empty: the built-in one; off: the subprotocol is not selected.",
    )
    compression: str = setting(
        "WS_COMPRESSION",
        "off",
        values.Choice(("off", "deflate")),
        help="deflate: events are compressed for clients that offer permessage-deflate; off: only "
        "for those that offer the subprotocol trio-odin.z1.",
        reloads=True,
    )
    max_message_bytes: int = setting(
        "WS_MAX_MESSAGE_BYTES",
        "16384",
        values.Whole(64, 64 * _MEBIBYTE),
        help="Longest message that a client may send, in bytes.",
    )
    max_fragments: int = setting(
        "WS_MAX_FRAGMENTS",
        "64",
        values.Whole(1, 1_000_000),
        help="Frames that one message of a client may consist of.",
    )
    max_channels: int = setting(
        "WS_MAX_CHANNELS",
        "256",
        values.Whole(1, 1_000_000),
        help="Channels that one connection may subscribe to.",
        reloads=True,
    )
    max_patterns: int = setting(
        "WS_MAX_PATTERNS",
        "16",
        values.Whole(0, 1_000_000),
        help="Patterns such as BTC.* that one connection may subscribe to; 0: none.",
        reloads=True,
    )
    least_every_ms: int = setting(
        "WS_MIN_EVERY_MS",
        "100",
        values.Whole(RATES_MS[0], RATES_MS[-1]),
        help="Shortest time, in milliseconds, that a client with a rate (every_ms) waits for the "
        "next update; to get every event is always allowed.",
        reloads=True,
    )
    command_burst: int = setting(
        "WS_COMMAND_BURST",
        "100",
        values.Whole(1, 1_000_000),
        help="Messages that a client may send in one burst.",
        reloads=True,
    )
    commands_per_second: float = setting(
        "WS_COMMAND_RATE",
        "10",
        values.Number(1_000_000),
        help="Messages a second that a client may send on average.",
        reloads=True,
    )

    max_head_bytes: int = setting(
        "WS_MAX_HEAD_BYTES",
        "16384",
        values.Whole(1024, _MEBIBYTE),
        help="Longest request head in bytes, with cookies and token; a longer one gets a 431.",
        reloads=True,
    )
    max_headers: int = setting(
        "WS_MAX_HEADERS",
        "64",
        values.Whole(8, 1000),
        help="Header lines that a request may have; one with more gets a 431.",
        reloads=True,
    )
    handshake_seconds: float = setting(
        "WS_HANDSHAKE_TIMEOUT",
        "5s",
        values.Duration(),
        help="Time from accept to the end of the handshake.",
    )
    write_deadline_seconds: float = setting(
        "WS_WRITE_DEADLINE",
        "5s",
        values.Duration(),
        help="A connection whose write makes no progress for this long is closed.",
    )
    ping_interval_seconds: float = setting(
        "WS_PING_INTERVAL", "27s", values.Duration(), help="Time between pings on one connection."
    )
    keepalive_seconds: float = setting(
        "WS_KEEPALIVE_TIMEOUT",
        "60s",
        values.Duration(),
        help="A connection that is silent for this long is closed at the next ping.",
    )
    drain_seconds: float = setting(
        "WS_DRAIN_SECONDS",
        "30s",
        values.Duration(),
        help="Time in which all clients leave at shutdown.",
    )
    watchdog_seconds: float = setting(
        "WS_WATCHDOG_SECONDS",
        "30",
        values.Number(3600, least=1),
        help="A process that hangs for this long exits, to be started again; 0: it does not exit.",
    )

    stream_name: str = setting(
        "JS_STREAM_NAME",
        "ODIN_TOKENS",
        values.stream_name,
        help="Name of the JetStream stream; the server creates it if it does not exist.",
    )
    stream_max_age_seconds: float = setting(
        "JS_STREAM_MAX_AGE",
        "30s",
        values.Duration("87600h", minimum="100ms"),
        help="Age limit of a stream that the server creates.",
    )
    stream_max_messages: int = setting(
        "JS_STREAM_MAX_MSGS",
        "100000",
        values.Whole(1, 10**12),
        help="Message limit of a stream that the server creates.",
    )
    stream_max_bytes: int = setting(
        "JS_STREAM_MAX_BYTES",
        "52428800",
        # Less would hold none of many events, and then nothing ever comes.
        values.Whole(65_536, _PEBIBYTE),
        help="Size limit of a stream that the server creates, in bytes.",
    )
    stream_storage: str = setting(
        "JS_STREAM_STORAGE",
        "memory",
        values.Choice(("memory", "file")),
        help="Where a stream that the server creates keeps its events.",
    )
    stream_replicas: int = setting(
        "JS_STREAM_REPLICAS",
        "1",
        values.Whole(1, 5),
        help="NATS servers of a cluster that store a stream that the server creates.",
    )

    traces_endpoint: str = setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "",
        values.printable,
        help="Send traces by OTLP over HTTP to the collector at this URL, to its path /v1/traces; "
        "empty: no traces.",
        show=shown_collector,
    )
    traces_url: str = setting(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "",
        values.printable,
        help="Send traces to exactly this URL instead.",
        show=shown_collector,
    )
    traces_exporter: str = setting(
        "OTEL_TRACES_EXPORTER",
        "otlp",
        values.printable,
        help="none sends no traces; otlp is the only exporter here.",
    )
    otlp_protocol: str = setting(
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "http/protobuf",
        values.printable,
        help="Protocol of the collector. http/protobuf is the only one here; with another one the "
        "server warns and sends no traces.",
    )
    traces_protocol: str = setting(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "",
        values.printable,
        help="Protocol of the collector for traces; empty: OTEL_EXPORTER_OTLP_PROTOCOL.",
    )
    is_tracing_disabled: bool = setting(
        "OTEL_SDK_DISABLED", "false", values.boolean, help="true sends no traces anywhere."
    )
    traces_per_second: int = setting(
        "WS_TRACES_PER_SECOND",
        "20",
        values.Whole(1, 1000),
        help="Events that a process traces in a second, of those with a sampled traceparent.",
        reloads=True,
    )
    summary_seconds: float = setting(
        "METRICS_INTERVAL", "15s", values.Duration(), help="Time between summary lines in the log."
    )
    log_level: str = setting(
        "LOG_LEVEL",
        "info",
        values.level,
        help="Lowest level that is logged: debug, info, warning or error.",
        reloads=True,
    )
    revision: str = setting(
        "TRIO_ODIN_REVISION",
        "",
        values.printable,
        help="Revision of the code, for the log and ws_build_info; the image sets it.",
    )
    log_format: str = setting(
        "LOG_FORMAT",
        "json",
        values.Choice(("json", "text", "pretty")),
        help="Format of the log lines.",
    )
