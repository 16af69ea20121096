"""The result of a load, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from trio_odin.lab.fleet.latency import Durations
from trio_odin.lab.load.criteria import Check, tally
from trio_odin.lab.load.result import LoadResult, ServerFigures

_UNKNOWN = "unknown"
# CPU of an idle server, where it was not measured.
_IDLE_CORES = 0.02
# Below these nothing is known of a single delivery or connection.
_CLEARLY = 2
_GROWN_MIB = 0.5


def render(result: LoadResult, checks: Sequence[Check], console: Console) -> None:
    """Print the figures, then the criteria that were not met."""
    table = Table(title=f"load on {result.url}", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in rows(result):
        table.add_row(name, value)
    console.print(table)
    for check in checks:
        if not check.is_met:
            console.print(
                f"not met: {check.what}: {check.wanted}, measured {check.measured}", style="red"
            )
    for check in checks:
        if check.is_met and not check.is_known:
            why = f": {check.why_unknown}" if check.why_unknown else ""
            console.print(f"not known: {check.what}{why}", style="yellow")
    for sentence in advice(result):
        console.print(sentence, style="yellow")
    console.print(verdict(result, checks))


def advice(result: LoadResult) -> Iterator[str]:
    """Changes to the command that would give more figures next time."""
    if not result.received:
        yield (
            "no event came: somebody has to publish on these channels, such as `trio-odin publish` "
            "with the same --tokens, or --publisher has to name one"
        )
    elif result.quiet_channels:
        yield (
            f"no event came on {result.quiet_channels:,} of {result.channels:,} channels: has the "
            "publisher the same --tokens, and was the hold long enough for each to have its turn?"
        )


def verdict(result: LoadResult, checks: Sequence[Check]) -> str:
    """One line with the verdict."""
    if result.interrupted:
        return "interrupted: these are the figures so far"
    passed = all(check.is_met for check in checks)
    return f"{'passed' if passed else 'NOT passed'}: {tally(checks, 'criteria')}"


def rows(result: LoadResult) -> Iterator[tuple[str, str]]:
    """The figures, each a name and a value."""
    yield from _connection_rows(result)
    yield from _delivery_rows(result)
    yield from _server_rows(result)


def _connection_rows(result: LoadResult) -> Iterator[tuple[str, str]]:
    yield "connections", f"{result.connected:,} of {result.connections:,} connected and subscribed"
    yield "channels each", f"{result.workload.mean_subscriptions:g} on average"
    if result.workload.every_ms:
        granted = ", ".join(f"{ms:,} ms" for ms in sorted(result.granted_ms)) or _UNKNOWN
        yield "rate", f"an update every {result.workload.every_ms:,} ms; granted: {granted}"
    yield (
        "connect + subscribe",
        f"{result.connect_seconds:.2f} s; each {_durations(result.connect_ms)}",
    )
    if result.rejections:
        yield "rejected", _listed(result.rejections)
    if result.failures:
        yield "failed", _listed(result.failures)
    yield "disconnected early", _listed(result.disconnects) or "0"
    if result.churned:
        yield "replaced on purpose", f"{result.churned:,}"
    back = result.reconnects
    if back is not None:
        yield (
            "lost and came back",
            (
                f"{back.back:,} of {back.lost:,} within {back.seconds:.1f} s; "
                f"each {_durations(back.ms)}"
            ),
        )
    yield "closed cleanly", f"{result.closed_cleanly:,}"


def _delivery_rows(result: LoadResult) -> Iterator[tuple[str, str]]:
    yield (
        "received",
        (
            f"{result.received:,} events in all; {result.received_per_second:,.0f} a second "
            f"in the {result.hold_seconds:.0f} s of the hold"
        ),
    )
    yield (
        "on the wire",
        (
            f"{result.frames_per_second:,.0f} writes a second, {result.encoding}; "
            f"{result.delivery_bytes:,.0f} bytes a delivery, "
            f"{result.delivery_wire_bytes:,.0f} with TCP/IP headers"
        ),
    )
    if result.silent:
        yield "silent", f"{result.silent:,} connections received nothing"
    yield (
        "breaches",
        (
            f"{result.gaps:,} missing numbers, {result.unexplained:,} breaks of a chain, "
            f"{result.repeated:,} repeated, {result.foreign:,} "
            f"foreign, {result.unreadable:,} unreadable, {result.error_replies:,} error replies"
        ),
    )
    yield "completeness", _completeness(result)
    yield "latency", _durations(result.latency)


def _completeness(result: LoadResult) -> str:
    if result.workload.every_ms and not result.expected:
        return (
            f"not tested: with a rate it takes a --publisher; {result.delivered:,} events "
            f"received, {result.skipped:,} reported as skipped"
        )
    if not result.publications:
        return "not tested: no event came that was not too near an end of the hold"
    which = "" if result.workload.every_ms else " not too near an end of the hold"
    skipped = f"{result.skipped:,} reported as skipped, " if result.workload.every_ms else ""
    return (
        f"{result.delivered:,} of {result.expected:,} deliveries of the {result.publications:,} "
        f"events{which}; {skipped}{result.lost:,} lost"
    )


def _server_rows(result: LoadResult) -> Iterator[tuple[str, str]]:
    server = result.server
    yield "server's health", ", then ".join(result.health) or _UNKNOWN
    yield "server CPU", "; ".join(_server_cpu(server))
    yield "server memory", _server_memory(server)
    yield (
        "client CPU",
        (
            f"{result.client_cores:.2f} cores in the hold, the busiest process "
            f"{result.busiest_client_cores:.2f}"
        ),
    )


def _server_cpu(server: ServerFigures) -> Iterator[str]:
    if server.cores is None:
        yield _UNKNOWN
        return
    yield (f"{server.cores:.2f} cores in the hold, {_figure(server.percent, '%', 1)} of its limit")
    idle_cores = max(_IDLE_CORES, server.idle_cores or 0.0)
    if server.delivery_us is None or server.cores < _CLEARLY * idle_cores:
        yield "too few deliveries to say what one costs"
    else:
        yield f"{server.delivery_us:,.1f} µs a delivery"
    if server.connect_us is not None:
        yield f"{server.connect_us:,.0f} µs a connect"
    if server.idle_cores is not None:
        yield f"{server.idle_cores:.3f} cores idle"


def _server_memory(server: ServerFigures) -> str:
    base, held = server.base_mib, server.held_mib
    if base is None or held is None:
        return _UNKNOWN
    if server.connection_kib is None:
        each = "no connection"
    elif held - base < _GROWN_MIB:
        each = "that of a connection is not measurable: the server had memory from before"
    else:
        each = f"{server.connection_kib:,.1f} KiB a connection"
    connected = _figure(server.connected_mib, "MiB", 1)
    return f"{base:,.1f} MiB before, {connected} connected, {held:,.1f} MiB at the end; {each}"


def _durations(found: Durations | None) -> str:
    if found is None:
        return _UNKNOWN
    return (
        f"p50 {found.p50_ms:.1f} ms, p90 {found.p90_ms:.1f}, p99 {found.p99_ms:.1f}, "
        f"p99.9 {found.p999_ms:.1f}, max {found.max_ms:.1f}"
    )


def _figure(value: float | None, unit: str, digits: int) -> str:
    return f"{_UNKNOWN} {unit}" if value is None else f"{value:,.{digits}f} {unit}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} times {reason}" for reason, count in counts.items())
