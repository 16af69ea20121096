"""What a load found, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import msgspec
from rich.table import Table

from trio_odin.lab.load.books import Latency
from trio_odin.lab.load.plan import LoadPlan
from trio_odin.lab.machine import this_machine

KIB = 1024


@attrs.frozen(kw_only=True)
class ServerFigures:
    """What the server's metrics page said over the load; None where it said nothing.

    RSS is the resident memory of the process that answered the page: before the connects, after the
    subscriptions (`kib_per_connection` is the difference), and at the end of the hold.
    """

    cpu_us_per_connect: float | None = None
    cpu_cores: float | None = None
    cpu_us_per_delivery: float | None = None
    rss_before_bytes: float | None = None
    rss_after_bytes: float | None = None
    rss_held_bytes: float | None = None
    kib_per_connection: float | None = None
    connections: float | None = None


@attrs.frozen(kw_only=True)
class LoadReport:
    """What a load found.

    Args:
        connected: connections that were opened.
        subscribed: connections whose subscription to all of their channels was acknowledged.
        failures: why connections were not opened or not subscribed, and how often.
        disconnects: connections that ended before the load closed them.
        close_codes: the codes of these, and how often; 1006 is an end without a close frame.
        closed_cleanly: connections that answered our close (1000) in time.
        error_replies: errors that the server sent, `subscribed` or not.
        received: envelopes, in all.
        silent: connections that subscribed and received no envelope.
        gaps: numbers that are missing from the connections' `seq`.
        duplicates: envelopes whose `seq` did not rise.
        foreign: envelopes of a channel that the connection had not subscribed to.
        offsets_backwards: envelopes whose `offset` did not rise on their connection.
        unreadable: frames that were no JSON of a known form.
        publications, expected, received_in_window, lost, duplicated: completeness, see
            `Books.completeness`. The window ends 1 s before the hold does, at either end.
        latency_published: from the payload's `timestamp` to the receipt, during the hold.
        latency_stamped: from the server's `ts` to the receipt, during the hold.
        connect_seconds: for all connects and subscriptions together.
    """

    plan: LoadPlan
    interrupted: bool
    connected: int
    subscribed: int
    failures: dict[str, int]
    disconnects: int
    close_codes: dict[int, int]
    closed_cleanly: int
    error_replies: int
    received: int
    silent: int
    gaps: int
    duplicates: int
    foreign: int
    offsets_backwards: int
    unreadable: int
    publications: int
    expected: int
    received_in_window: int
    lost: int
    duplicated: int
    latency_published: Latency | None
    latency_stamped: Latency | None
    connect_seconds: float
    connects_per_second: float
    hold_seconds: float
    received_per_second: float
    server: ServerFigures
    client_cpu_cores: float
    client_cpu_us_per_delivery: float | None

    @property
    def is_perfect(self) -> bool:
        """Whether everything that was asked for came about, and nothing else.

        Not if nothing was published in the window: then nothing was tested.
        """
        wanted = self.plan.connections
        faults = (
            *(self.gaps, self.duplicates, self.foreign, self.offsets_backwards),
            *(self.lost, self.duplicated, self.unreadable),
            *(self.disconnects, self.error_replies, self.interrupted),
        )
        return (
            self.connected == wanted
            and self.subscribed == wanted
            and self.publications > 0
            and not any(faults)
        )

    def as_json(self) -> bytes:
        """All of it as one JSON object, with the machine and the lines that a person reads."""
        content = {name: getattr(self, name) for name in attrs.fields_dict(type(self))}
        more = {
            "is_perfect": self.is_perfect,
            "machine": this_machine(),
            "summary": dict(self._rows()),
        }
        return msgspec.json.encode(content | more)

    def lines(self) -> list[str]:
        """The report as plain text, one figure a line."""
        return [f"{name}: {value}" for name, value in self._rows()]

    def render(self) -> Table:
        """The report as a table for the terminal."""
        table = Table(title=f"load on {self.plan.url}", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "verdict", _verdict(self)
        yield from self._connection_rows()
        yield from self._delivery_rows()
        yield from self._cost_rows()

    def _connection_rows(self) -> Iterator[tuple[str, str]]:
        yield (
            "connections",
            (
                f"{self.connected:,} of {self.plan.connections:,} connected, "
                f"{self.subscribed:,} subscribed "
                f"to {self.plan.channels_per_connection} channels each"
            ),
        )
        yield (
            "connect + subscribe",
            (f"{self.connect_seconds:.2f} s, {self.connects_per_second:,.0f} a second"),
        )
        for reason, count in self.failures.items():
            yield "failed", f"{count:,} times {reason}"
        codes = ", ".join(f"{count:,} times {code}" for code, count in self.close_codes.items())
        yield "disconnected early", f"{self.disconnects:,}{f' ({codes})' if codes else ''}"
        yield "closed cleanly", f"{self.closed_cleanly:,}"

    def _delivery_rows(self) -> Iterator[tuple[str, str]]:
        yield (
            "received",
            (
                f"{self.received:,} envelopes; {self.received_per_second:,.0f} a second "
                f"over {self.hold_seconds:.1f} s"
            ),
        )
        if self.silent:
            yield "silent", f"{self.silent:,} connections received nothing"
        yield (
            "breaches",
            (
                f"{self.gaps:,} missing numbers, {self.duplicates:,} repeated, "
                f"{self.foreign:,} foreign, {self.offsets_backwards:,} offsets backwards, "
                f"{self.unreadable:,} unreadable, {self.error_replies:,} error replies"
            ),
        )
        yield (
            "completeness",
            (
                f"{self.received_in_window:,} of {self.expected:,} deliveries of "
                f"{self.publications:,} publications; {self.lost:,} lost, {self.duplicated:,} twice"
                if self.publications
                else "not tested: nothing was published within the window"
            ),
        )
        for name, latency in (
            ("published → received", self.latency_published),
            ("stamped → received", self.latency_stamped),
        ):
            if latency is not None:
                yield (
                    name,
                    (f"p50 {latency.p50_ms} ms, p99 {latency.p99_ms} ms, max {latency.max_ms} ms"),
                )

    def _cost_rows(self) -> Iterator[tuple[str, str]]:
        server = self.server
        yield (
            "server CPU",
            (
                f"{_figure(server.cpu_us_per_connect, 'µs per connect + subscribe')}; "
                f"{_figure(server.cpu_cores, 'cores', digits=2)} in the hold, "
                f"{_figure(server.cpu_us_per_delivery, 'µs per delivery', digits=1)}"
            ),
        )
        yield (
            "server memory",
            (
                f"{_mebibytes(server.rss_before_bytes)} before, "
                f"{_mebibytes(server.rss_after_bytes)} after, "
                f"{_mebibytes(server.rss_held_bytes)} at the end, "
                f"{_figure(server.kib_per_connection, 'KiB per connection', digits=1)}"
            ),
        )
        yield (
            "client CPU",
            (
                f"{self.client_cpu_cores:.2f} cores in the hold, "
                f"{_figure(self.client_cpu_us_per_delivery, 'µs per delivery', digits=1)}"
            ),
        )


def _verdict(report: LoadReport) -> str:
    if report.interrupted:
        return "interrupted: these are the figures so far"
    if not report.publications:
        return "nothing was tested: no event was published to these channels"
    return "perfect" if report.is_perfect else "NOT perfect"


def _figure(value: float | None, unit: str, *, digits: int = 0) -> str:
    return f"unknown {unit}" if value is None else f"{value:,.{digits}f} {unit}"


def _mebibytes(value: float | None) -> str:
    return _figure(None if value is None else value / KIB**2, "MiB", digits=1)
