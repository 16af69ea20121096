"""Logs: what the servers say, by the four labels that Loki has, and by fields of the lines."""

from __future__ import annotations

from collections.abc import Iterator

from panels import (
    GREEN,
    YELLOW,
    Line,
    PanelBuilder,
    Section,
    count_of_lines,
    graph,
    lines_panel,
    runbook,
    stat_panel,
)

# Lines of nats-server are no JSON, and have no fields.
_FIELDS = '| json | __error__=""'
_SERVER = '{job="odin", instance=~"$machine", service="ws"}'
_CHOSEN = "In the time range, of the chosen machines and services."


def loglines() -> Iterator[Section]:
    """How much is said, about what, and the lines themselves."""
    yield Section("How much", [*_numbers(), *_courses()])
    yield Section(
        "Warnings and errors",
        [
            lines_panel(
                "Warnings and errors",
                runbook("Whatever level is chosen. Open a line for its fields.", "ErrorsLogged"),
                '{job="odin", instance=~"$machine", service=~"$service",'
                ' level=~"warning|error"} |~ "(?i)$search"',
                height=9,
            )
        ],
    )
    yield Section(
        "All lines",
        [
            lines_panel(
                "All lines",
                "Of the chosen machines, services and levels, with the text searched for above. New"
                " ones come as the page is refreshed; for each at once: Explore, then Live.",
                '@ |~ "(?i)$search"',
                height=14,
            )
        ],
    )


_OF_SERVICES = '{job="odin", instance=~"$machine", service=~"$service", level=~"LEVELS"}'


def _numbers() -> Iterator[PanelBuilder]:
    for title, about, alert, lines in (
        (
            "Errors",
            "Faults of the server, or what it cannot mend.",
            "ErrorsLogged",
            _OF_SERVICES.replace("LEVELS", "error"),
        ),
        (
            "Warnings",
            "What it mends by itself, but somebody should know.",
            "ErrorsLogged",
            _OF_SERVICES.replace("LEVELS", "warning"),
        ),
        (
            "NATS lost",
            "Times that a server lost NATS or could not reach it (`nats.lost`, `nats.failed`).",
            "NatsDisconnected",
            _of_events("nats.lost", "nats.failed"),
        ),
        (
            "Admission closed",
            "Times a server closed admission or shed events: `admission.closed`, `shedding.began`.",
            "ConnectionRejections",
            _of_events("admission.closed", "shedding.began"),
        ),
    ):
        yield stat_panel(
            title,
            runbook(f"{about} {_CHOSEN}", alert),
            count_of_lines(lines),
            steps=[(GREEN, 0), (YELLOW, 1)],
            texts={"0": ("none", GREEN)},
            of_logs=True,
            width=6,
        )


def _of_events(*events: str) -> str:
    """Lines of the servers about these; the text is looked for first, as that is quick."""
    names = "|".join(events)
    return f'{_SERVER} |~ "{names}" {_FIELDS} | event=~"{names}" '


def _courses() -> Iterator[PanelBuilder]:
    yield _bars(
        "Lines by level",
        "A server says one line an event, never one a message: many lines are many events.",
        Line("sum by (level) (count_over_time(@ [$__auto]))", "{{level}}"),
    )
    yield _bars(
        "Lines by service",
        "Of which one falls silent, look whether it runs, or whether its lines are shipped.",
        Line(
            "sum by (instance, service) (count_over_time(@ [$__auto]))",
            "{{service}}, {{instance}}",
        ),
    )
    yield _bars(
        "Lines by event",
        "The 15 most frequent events of the servers and publishers.",
        Line(
            f'topk(15, sum by (event) (count_over_time(@ {_FIELDS} | event!="" [$__auto])))',
            "{{event}}",
        ),
    )
    yield _bars(
        "Evictions by reason",
        runbook(
            "Connections closed for cause, one line each, 20 a second at most; the metrics on the"
            " page Fan-out count all.",
            "SlowConsumers",
        ),
        Line(
            f'sum by (reason) (count_over_time({_SERVER} |= "connection.evicted" {_FIELDS}'
            ' | event="connection.evicted" | reason!="" [$__auto]))',
            "{{reason}}",
        ),
        empty="none",
    )


def _bars(title: str, about: str, lines: Line, *, empty: str = "no lines") -> PanelBuilder:
    """How many lines there were over time, of each kind on top of the others."""
    return graph(
        title, about, [lines], stacked=True, bars=True, width=12, empty=empty, of_logs=True
    )
