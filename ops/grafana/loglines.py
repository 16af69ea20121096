"""Logs: the lines, by the four labels of Loki and by their fields."""

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

# Lines of nats-server are not JSON, and have no fields.
_FIELDS = '| json | __error__=""'
_SERVER = '{job="odin", instance=~"$machine", service="ws"}'
_CHOSEN = "In the time range, for the chosen machines and services."


def loglines() -> Iterator[Section]:
    """The number of lines, their events, and the lines themselves."""
    yield Section("Numbers", [*_numbers(), *_courses()])
    yield Section(
        "Warnings and errors",
        [
            lines_panel(
                "Warnings and errors",
                runbook(
                    "Regardless of the chosen level. Open a line for its fields.", "ErrorsLogged"
                ),
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
                "Of the chosen machines, services and levels, with the search text above. New lines"
                " appear at each refresh; to see each line immediately: Explore, then Live.",
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
            "Bugs of the server, and faults that it cannot recover from.",
            "ErrorsLogged",
            _OF_SERVICES.replace("LEVELS", "error"),
        ),
        (
            "Warnings",
            "Faults that the server recovers from, but somebody should know of.",
            "ErrorsLogged",
            _OF_SERVICES.replace("LEVELS", "warning"),
        ),
        (
            "NATS lost",
            "Times a server lost NATS or could not reach it (`nats.lost`, `nats.failed`).",
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
    """Lines of the servers about these events; the text filter comes first, as it is fast."""
    names = "|".join(events)
    return f'{_SERVER} |~ "{names}" {_FIELDS} | event=~"{names}" '


def _courses() -> Iterator[PanelBuilder]:
    yield _bars(
        "Lines by level",
        "A server logs single events, never each message: many lines mean many events.",
        Line("sum by (level) (count_over_time(@ [$__auto]))", "{{level}}"),
    )
    yield _bars(
        "Lines by service",
        "If a service falls silent, check that it runs, and that its lines are shipped.",
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
            "Connections closed by force, one line each, at most 20 a second; the metrics on the"
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
    """Lines over time, stacked by kind."""
    return graph(
        title, about, [lines], stacked=True, bars=True, width=12, empty=empty, of_logs=True
    )
