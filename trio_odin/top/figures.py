"""What `top` shows: rates from two readings, and texts that fit. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from trio_odin.top.source import Reading

SORTS: Final = (
    "queued_bytes", "queued", "dropped", "skipped", "silent_seconds", "age_seconds", "seq", "bytes",
    "channels", "address", "subject", "connection",
)  # fmt: skip
_CONTENT_SHOWN: Final = 400
_REASONS_SHOWN: Final = 2
# Where new clients are refused by default.
_NEARLY_FULL: Final = 0.85
_FILTERS: Final = {"address": "address", "user": "subject", "channel": "channel"}
_EXAMPLES: Final = {"address": "10.0.0.0/8", "user": "ann", "channel": "BTC.*"}
_LAGGING: Final = frozenset({"true", "false"})


class Rates(NamedTuple):
    """Per second, between two readings."""

    events: float = 0.0
    deliveries: float = 0.0
    bytes: float = 0.0
    accepted: float = 0.0
    rejected: float = 0.0
    closed: float = 0.0
    dropped: float = 0.0
    conflated: float = 0.0
    skipped: float = 0.0
    shed: float = 0.0


def rates_between(before: Reading | None, now: Reading) -> Rates:
    """The rates; 0 if there is no earlier reading, or the server has started anew since."""
    if before is None or now.at <= before.at:
        return Rates()
    older, newer = _counters(before.overview), _counters(now.overview)
    seconds = now.at - before.at
    if any(new < old for old, new in zip(older, newer, strict=True)):
        return Rates()
    return Rates(*((new - old) / seconds for old, new in zip(older, newer, strict=True)))


def _counters(overview: Mapping[str, Any]) -> Rates:
    events, deliveries, clients = overview["events"], overview["deliveries"], overview["clients"]
    return Rates(
        events=events["received"],
        deliveries=deliveries["written"],
        bytes=clients["bytes_sent"],
        accepted=clients["accepted"],
        rejected=sum(clients["rejected"].values()),
        closed=sum(clients["closed"].values()),
        dropped=sum(deliveries["dropped"].values()),
        conflated=deliveries["conflated"],
        skipped=deliveries["skipped"],
        shed=sum(events["shed"].values()),
    )


def grown_reasons(before: Reading | None, now: Reading, kind: str) -> list[str]:
    """The reasons that were counted between two readings, the most frequent first.

    Args:
        before: the earlier reading; without one there are no reasons.
        now: the later one.
        kind: "rejected" or "closed".
    """
    if before is None:
        return []
    old, new = before.overview["clients"][kind], now.overview["clients"][kind]
    if any(new.get(reason, 0) < count for reason, count in old.items()):  # it has started anew
        return []
    grown = {reason: count - old.get(reason, 0) for reason, count in new.items()}
    found = [reason for reason, count in grown.items() if count > 0]
    return sorted(found, key=lambda reason: -grown[reason])


def message_rates(before: Reading | None, now: Reading) -> dict[str, float]:
    """Messages a second of each connection that is in both readings, by its id."""
    if before is None or now.at <= before.at:
        return {}
    older = {one["id"]: one for one in before.connections["connections"]}
    rates = {}
    for one in now.connections["connections"]:
        old = older.get(one["id"])
        if (
            old is not None
            and old["seq"] <= one["seq"]
            and old["age_seconds"] <= one["age_seconds"]
        ):
            rates[one["id"]] = (one["seq"] - old["seq"]) / (now.at - before.at)
    return rates


def number(value: float | None) -> str:
    """A number in at most six characters: 0.4, 999, 12.3k, 4.56M."""
    if value is None:
        return "–"
    if 0 < value < 10 and value != int(value):
        return f"{value:.1f}"
    for limit, divisor, sign in ((1e3, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if value < limit * 0.9995:
            return f"{value / divisor:.{0 if divisor == 1 else 1}f}{sign}"
    return f"{value / 1e9:.1f}G"


def size(value: float | None) -> str:
    """Bytes in at most eight characters: 0 B, 12.3 KiB."""
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def duration(seconds: float | None) -> str:
    """A time in at most five characters: 0.4s, 12s, 3m, 5h, 12d."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def printable(text: object, most: int = 2000) -> str:
    """Foreign text, without what steers a terminal."""
    shown = str(text)[:most]
    return "".join(one if one.isprintable() else "�" for one in shown)


class Fact(NamedTuple):
    """A part of the head; `is_bad` if a person should look at it."""

    text: str
    is_bad: bool = False


def head_of(
    name: str, now: Reading, rates: Rates, before: Reading | None = None
) -> list[list[Fact]]:
    """The lines of the head, the most important facts of each first.

    `before` is the earlier reading, for the reasons of what happened since.
    """
    o = now.overview
    nats, load, workers, waiting = o["nats"], o["load"], o["workers"], o["waiting"]
    state = "connected" if nats["is_connected"] else "AWAY"
    last = f", last {duration(nats['age_seconds'])} ago" if nats["age_seconds"] is not None else ""
    lost = rates.dropped + rates.conflated
    limit = o["max_connections"]
    # Reasons that close admission are known also while nobody comes.
    refused = dict.fromkeys(
        [*load.get("refusing_for", ()), *grown_reasons(before, now, "rejected")]
    )
    closed = grown_reasons(before, now, "closed")
    lines_lost = _lines_lost(now)
    loses_lines = lines_lost > (lines_lost if before is None else _lines_lost(before))
    memory_limit, restarts = load["memory_limit_bytes"], workers["restarts"]
    return [
        [
            Fact(f"trio-odin {o['version']} {name}"),
            Fact(f"NATS {state} {nats['mode']}{last}", not nats["is_connected"]),
            *([Fact(printable(nats["trouble"], 60), is_bad=True)] if nats["trouble"] else []),
            *([Fact("DRAINING", is_bad=True)] if o["is_draining"] else []),
            Fact(f"up {duration(o['uptime_seconds'])}"),
        ],
        [
            Fact(
                f"clients {o['connections']:,}" + (f" of {limit:,}" if limit else ""),
                bool(limit) and o["connections"] >= 0.95 * limit,
            ),
            Fact(f"+{number(rates.accepted)}/s -{number(rates.closed)}/s{_listed(closed)}"),
            Fact(
                f"refused {number(rates.rejected)}/s{_listed(refused)}",
                rates.rejected > 0 or load["is_refusing"],
            ),
            Fact(
                f"workers {workers['alive']} of {workers['configured']}"
                + (f", {restarts:,} restart{'s' * (restarts > 1)}" if restarts else ""),
                workers["alive"] < workers["configured"],
            ),
        ],
        [
            Fact(f"in {number(rates.events)}/s"),
            Fact(f"out {number(rates.deliveries)}/s {size(rates.bytes)}/s"),
            Fact(f"dropped {number(rates.dropped)}/s", rates.dropped > 0),
            Fact(f"conflated {number(rates.conflated)}/s", lost > 0 and rates.conflated > 0),
            Fact(f"shed {load['shed_percent']:g} %", load["shed_percent"] > 0 or rates.shed > 0),
        ],
        [
            Fact(f"cpu {load['cpu_percent']:.0f} %"),
            Fact(f"loop {load['loop_busy_percent']:.0f} %", load["loop_busy_percent"] >= 90),
            Fact(f"lag {load['lag_ms']:.0f} ms", load["lag_ms"] >= 500),
            Fact(
                f"mem {size(load['memory_bytes'])}"
                + (f" of {size(memory_limit)}" if memory_limit else ""),
                0 < _NEARLY_FULL * memory_limit <= load["memory_bytes"],
            ),
            Fact(f"waiting {size(waiting['outbox_bytes'])}"),
            Fact(f"inbound {number(waiting['inbound'])}"),
            *([Fact(f"log lines lost {lines_lost:,}", loses_lines)] if lines_lost else []),
        ],
    ]


def _lines_lost(reading: Reading) -> int:
    # The server may be older than this command.
    count: int = reading.overview.get("log", {}).get("lines_dropped", 0)
    return count


def _listed(reasons: Iterable[str]) -> str:
    """Reasons as a head line has room for them: the first two."""
    shown = list(reasons)
    more = ["…"] if len(shown) > _REASONS_SHOWN else []
    return f" ({', '.join(shown[:_REASONS_SHOWN] + more)})" if shown else ""


class Column(NamedTuple):
    """A column of a table: its title, its least width of the terminal, and its cells."""

    title: str
    from_width: int
    cell: Callable[[Mapping[str, Any], float | None], str]


# In the order in which they stand; a narrow terminal has those for less.
CONNECTIONS: Final = (
    Column("ID", 0, lambda one, _: one["id"]),
    Column("ADDRESS", 0, lambda one, _: printable(one["address"] or "?", 39)),
    Column("USER", 96, lambda one, _: printable(one["subject"] or "", 16)),
    Column("MSG/S", 0, lambda _, rate: number(rate)),
    Column("WAIT", 0, lambda one, _: number(one["queued"])),
    Column("BYTES", 0, lambda one, _: size(one["queued_bytes"])),
    Column("SKIP", 0, lambda one, _: number(one["skipped"])),
    Column("DROP", 0, lambda one, _: number(one["dropped"])),
    Column("SILENT", 0, lambda one, _: duration(one["silent_seconds"])),
    Column("AGE", 88, lambda one, _: duration(one["age_seconds"])),
    Column("CH", 104, lambda one, _: number(one["channels"])),
    Column("SENT", 116, lambda one, _: size(one["bytes"])),
    Column("AS", 124, lambda one, _: one["encoding"]),
    Column("AGENT", 140, lambda one, _: printable(one["user_agent"], 30)),
)
CHANNELS: Final = (
    Column("CHANNEL", 0, lambda one, _: printable(one["name"], 30)),
    Column("CLIENTS", 0, lambda one, _: number(one["subscribers"])),
    Column("AT A RATE", 100, lambda one, _: number(one["at_a_rate"])),
    Column("EVENTS/S", 0, lambda one, _: number(one["events_per_second"])),
    Column("BYTES/S", 0, lambda one, _: size(one["bytes_per_second"])),
    Column("OUT/S", 0, lambda one, _: number(one["deliveries_per_second"])),
    Column(
        "OFFSET", 100, lambda one, _: "–" if one["last_offset"] is None else f"{one['last_offset']}"
    ),
    Column("LAST", 0, lambda one, _: duration(one["last_age_seconds"])),
)


def columns_for(columns: Iterable[Column], width: int) -> list[Column]:
    """Those for which a terminal of this width has room."""
    return [column for column in columns if width >= column.from_width]


def filters_of(text: str) -> dict[str, str]:
    """Read a filter as a person types it: `address=10.0.0.0/8 user=ann channel=BTC.* lagging`.

    Without a name it is a channel if it looks like one, and an address otherwise.

    Raises:
        ValueError: a name is unknown, or a value is missing; the message says what is allowed.
    """
    query: dict[str, str] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        shown = printable(word, 60)
        if not _is_utf8(word):
            raise ValueError(f"{shown!r}: allowed is a text in UTF-8")
        if name == "lagging":
            if value not in _LAGGING and equals:
                raise ValueError(f"{shown!r}: allowed are lagging, lagging=true and lagging=false")
            query["lagging"] = value or "true"
        elif equals and name not in _FILTERS:
            raise ValueError(
                f"{printable(name, 20)!r}: allowed are address=, user=, channel=, lagging"
            )
        # The API would leave out a filter without a value, and list every connection.
        elif equals and not value:
            raise ValueError(
                f"{shown!r}: allowed is a value after it, such as {name}={_EXAMPLES[name]}"
            )
        elif equals:
            query[_FILTERS[name]] = value
        else:
            is_address = ":" in word or word.replace(".", "").replace("/", "").isdigit()
            query["address" if is_address else "channel"] = word
    return query


def _is_utf8(text: str) -> bool:
    """Whether it can be sent: an argument of a command may have bytes of another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_of_filters(query: Mapping[str, str]) -> str:
    """The same the other way round."""
    names = {query_name: name for name, query_name in _FILTERS.items()}
    return " ".join(
        "lagging" if (name, value) == ("lagging", "true") else f"{names.get(name, name)}={value}"
        for name, value in query.items()
    )


def detail_of(shown: Mapping[str, Any]) -> list[str]:
    """One connection, line by line."""
    outbox, transport = shown["outbox"], shown["transport"]
    lines = [
        f"Connection {shown['id']} from {printable(shown['address'] or '?')}",
        f"user        {printable(shown['subject'] or 'no token')}",
        f"user agent  {printable(shown['user_agent'] or '?', 120)}",
        (
            f"state       {shown['state']}, open for {duration(shown['age_seconds'])}, silent for "
            f"{duration(shown['silent_seconds'])}, encoding {shown['encoding']}"
        ),
        (
            f"messages    seq {shown['seq']:,}, skipped {shown['skipped']:,}, "
            f"dropped {shown['dropped']:,}"
        ),
        (
            f"outbox      {outbox['messages']:,} of {outbox['messages_limit']:,} messages, "
            f"{size(outbox['bytes'])} of {size(outbox['bytes_limit'])}, policy {outbox['policy']}"
        ),
    ]
    if transport is not None:
        lines.append(
            f"network     {size(transport['bytes_acknowledged'])} acknowledged, "
            f"{size(transport['unsent_bytes'])} unsent, "
            f"{transport['round_trip_ms']:.1f} ms there and back, "
            f"{transport['retransmitted_segments']:,} repeated"
        )
    lines += ["", f"Channels ({len(shown['subscriptions'])})"]
    for one in shown["subscriptions"]:
        every = one["every_ms"]
        rate = "paused" if every is None else f"every {every} ms" if every else "every event"
        events = one["events_per_second"]
        coming = "" if events is None else f", {number(events)} events/s"
        lines.append(f"  {printable(one['name'], 40):<30} {rate}{coming}")
    lines += ["", "Last events"]
    lines += [f"  {printable(line, 200)}" for line in shown["last_events"]] or ["  none"]
    return lines


def line_of_trace(line: Mapping[str, Any]) -> str:
    """A line of a trace, as text."""
    match line.get("type"):
        case "frame":
            seconds, ms = divmod(int(line["unix_ms"]), 1000)
            time = f"{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ms:03}"
            content = line["content"][:_CONTENT_SHOWN]
            more = "…" if line["is_cut"] or len(line["content"]) > len(content) else ""
            return (
                f"{time} {line['connection']} {line['opcode']} {line['bytes']} B "
                f"{printable(content)}{more}"
            )
        case "started":
            return f"Following {line['connections']:,} connections; times are UTC"
        case "dropped":
            return f"… {line['frames']:,} frames were not shown, as they came too fast"
        case "ended":
            return f"Ended ({line['reason']}) after {line['frames']:,} frames"
        case _:
            return printable(line)


def as_json(name: str, now: Reading, rates: Rates) -> dict[str, Any]:
    """One reading for scripts."""
    return {
        "server": name,
        "rates": {field: round(value, 3) for field, value in rates._asdict().items()},
        "overview": now.overview,
        "connections": now.connections,
        "channels": now.channels,
    }


def as_text(name: str, now: Reading, before: Reading | None, width: int) -> list[str]:
    """One reading as plain lines."""
    lines = [
        "  ".join(fact.text for fact in line)
        for line in head_of(name, now, rates_between(before, now), before)
    ]
    speeds = message_rates(before, now)
    for title, columns, rows in (
        ("connections", CONNECTIONS, now.connections["connections"]),
        ("channels", CHANNELS, now.channels["channels"]),
    ):
        shown = columns_for(columns, width)
        cells = [
            [column.cell(one, speeds.get(one.get("id", ""))) for column in shown] for one in rows
        ]
        lines += ["", f"{title}:"] if cells else ["", f"{title}: none"]
        lines += _aligned([[column.title for column in shown], *cells]) if cells else []
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
