from __future__ import annotations

import io
import json
from typing import Any

import attrs
import msgspec
import pytest
from rich.console import Console

from tests.lab.bench.made_up import COMPRESSION, RATES, STORM, W, report_of
from tests.lab.load.made_up import WORKLOAD, load_result
from trio_odin.lab.bench.record import BenchReport, Stage, TargetReport, as_json
from trio_odin.lab.bench.report import (
    COMPRESSION_HEAD,
    RATES_HEAD,
    amiss,
    beside,
    compression_rows,
    latencies_by_rate,
    rates_rows,
    render,
    rows,
    summary,
)
from trio_odin.lab.fleet.latency import durations
from trio_odin.lab.load.result import ServerFigures

DASH = "\N{EN DASH}"

# --- the table

RAMP = attrs.evolve(W, name="ramp", received=3_000_000, p99_ms=250.0, frames_per_read=7.25)
OURS = TargetReport(
    name="odin",
    title="trio-odin",
    is_ours=True,
    storm=STORM,
    rss_base_bytes=50_000_000,
    kib_connected=19.04,
    kib_loaded=22.0,
    idle_percent=1.26,
    connections_by_worker=[10_000],
    stages=[W, RAMP],
)
FLOOR = TargetReport(
    name="floor", title="floor", stages=[attrs.evolve(W, user_us=1.0, system_us=3.0, lost=1234)]
)
NATS = TargetReport(name="nats", title="nats", stages=[attrs.evolve(W, user_us=3.0, system_us=9.0)])
ELSEWHERE = TargetReport(
    name="far",
    title="far",
    storm=attrs.evolve(STORM, cpu_us_each=None),
    stages=[attrs.evolve(W, user_us=None, system_us=None, cores=None)],
)
FAILED = TargetReport(name="broken", title="broken", failure="broken did not start: no such file")


def section(report: BenchReport, start: str) -> dict[str, list[str]]:
    """The rows from `start` to the next one that is not indented."""
    found: dict[str, list[str]] = {}
    for label, cells in rows(report):
        if label == start or (found and label.startswith(" ")):
            found[label.strip()] = cells
        elif found:
            break
    return found


def test_every_row_has_a_cell_for_each_target() -> None:
    for targets, least in (([], 5), ([OURS], 15), ([OURS, FLOOR, NATS, ELSEWHERE, FAILED], 20)):
        table = list(rows(report_of(*targets)))
        assert len(table) > least
        assert {len(cells) for _, cells in table} == {len(targets)}


def test_the_figures_of_the_storm_and_of_the_memory_are_shown() -> None:
    table = dict(rows(report_of(OURS)))
    assert table["connected and subscribed"] == ["10,000"]
    assert table["  in"] == ["4.32 s"]
    assert table["  p99 of one"] == ["88 ms"]
    assert table["  CPU each"] == ["310.0 µs"]
    assert table["memory per connection, connected"] == ["19.0 KiB"]
    assert table["  after W"] == ["22.0 KiB"]
    assert table["idle, with keepalive"] == ["1.3 %"]


def test_the_figures_of_a_stage_and_its_ratios_are_shown() -> None:
    assert section(report_of(OURS, NATS, FLOOR), "W: CPU per delivery") == {
        "W: CPU per delivery": ["6.0 µs", "12.0 µs", "4.0 µs"],
        "user + system": ["2.0 + 4.0", "3.0 + 9.0", "1.0 + 3.0"],
        "CPU against nats-server": ["0.50", "1.00", "0.33"],
        "CPU against the floor": ["1.50", "3.00", "1.00"],
        "cores": ["0.46"] * 3,
        "p50 / p99 / p99.9 ms": ["3 / 25 / 31"] * 3,
        "p99 of the median connection / worst 100": ["24 / 29"] * 3,
        "lost / repeated": ["0 / 0", "0 / 0", "1,234 / 0"],
        "of the clients, cores": [f"{W.client_cores:.2f}"] * 3,
        "of others beside, cores": ["–"] * 3,
    }


def test_the_peak_of_a_target_is_that_of_its_best_stage() -> None:
    assert section(report_of(OURS), "most deliveries a second") == {
        "most deliveries a second": ["150,000"],
        "of a full core": ["166,667"],
        "p99": ["250 ms"],
        "frames a read": ["7.2"],
    }


def test_a_missing_figure_is_a_dash() -> None:
    assert {cell for _, cells in rows(report_of(FAILED)) for cell in cells} == {DASH}
    table = dict(rows(report_of(OURS, ELSEWHERE)))
    for label in ("  CPU each", "W: CPU per delivery", "  of a full core"):
        assert table[label][0] != DASH
        assert table[label][1] == DASH
    of_w = section(report_of(OURS, ELSEWHERE), "W: CPU per delivery")
    for label in ("user + system", "cores"):
        assert (of_w[label][0] != DASH, of_w[label][1]) == (True, DASH)
    assert section(report_of(NATS, ELSEWHERE), "W: CPU per delivery")[
        "CPU against nats-server"
    ] == ["1.00", DASH]


def test_what_was_not_run_has_no_row() -> None:
    labels = [label for label, _ in rows(report_of(OURS, ELSEWHERE))]
    assert "W: CPU per delivery" in labels
    assert not [
        label for label in labels if "against" in label or "plan" in label or "never" in label
    ]
    without_ramp = rows(report_of(attrs.evolve(OURS, stages=[W])))
    assert "most deliveries a second" not in [label for label, _ in without_ramp]


def test_the_table_is_printed_with_the_failures_below_it() -> None:
    output = io.StringIO()
    render(report_of(OURS, FAILED), Console(file=output, width=200))
    text = output.getvalue()
    assert "10,000 connections, 100 events a second; network: loopback" in text
    assert "trio-odin" in text
    assert text.rstrip().endswith("broken: broken did not start: no such file")


def test_a_bench_without_a_finished_target_says_on_what_it_was() -> None:
    output = io.StringIO()
    render(report_of(), Console(file=output, width=200))
    assert "network: loopback" in output.getvalue()


def test_a_bench_over_the_bridge_says_so() -> None:
    output = io.StringIO()
    report = attrs.evolve(report_of(OURS), network="bridge")
    render(report, Console(file=output, width=200))
    assert "events a second; network: bridge" in output.getvalue()
    assert json.loads(as_json([report]))[0]["network"] == "bridge"


def test_a_record_without_a_network_is_of_loopback() -> None:
    (old,) = json.loads(as_json([report_of(OURS)]))
    del old["network"]
    assert msgspec.convert(old, BenchReport).network == "loopback"


# --- rates and compression

ALONE = TargetReport(name="odin", title="trio-odin", is_ours=True, stages=[*RATES, *COMPRESSION])


def test_each_load_with_a_rate_has_a_row() -> None:
    found = [dict(zip(RATES_HEAD, row, strict=True)) for row in rates_rows(report_of(FLOOR, ALONE))]
    assert len(found) == len(RATES)
    assert found[2] == {
        "server": "trio-odin",
        "users": "80 % home page, 20 % one token",
        "an update": "every 1,000 ms",
        "events a second": "3,000",
        "CPU": "0.31 cores",
        "writes a second": "9,000",
        "deliveries a second": "50,000",
        "bytes a delivery": "330",
        "p50 / p99": "3 / 25 ms",
        "skipped": "5,000",
        "unexplained": "0",
    }
    assert found[0]["an update"] == "of every event"


def test_each_encoding_is_compared_with_plain_text_of_the_same_users() -> None:
    found = [
        dict(zip(COMPRESSION_HEAD, row, strict=True)) for row in compression_rows(report_of(ALONE))
    ]
    _, z1, plain_batches, z1_batches = found
    assert (z1["bytes a delivery"], z1["of a plain event"]) == ("140", "0.35 ×")
    assert (z1["CPU a delivery"], z1["CPU of plain"]) == ("6.0 µs", "1.00 ×")
    assert (z1["memory a connection"], z1["over plain"]) == ("10.2 KiB", "+0.25 KiB")
    assert plain_batches["over plain"] == "+0.00 KiB"
    assert z1_batches["of a plain event"] == "0.23 ×"
    assert plain_batches["of a plain event"] == "0.75 ×"
    assert (z1_batches["users"], z1_batches["over plain"]) == ("home page", DASH)


def test_the_stages_of_trio_odin_alone_are_printed_without_the_table_of_the_others() -> None:
    output = io.StringIO()
    render(report_of(ALONE), Console(file=output, width=200))
    text = output.getvalue()
    assert "Rates" in text
    assert "Compression" in text
    assert "connected and subscribed" not in text


def test_what_is_amiss_names_the_rate_or_the_encoding() -> None:
    stages = [attrs.evolve(RATES[2], unexplained=2), attrs.evolve(COMPRESSION[3], lost=1)]
    assert list(amiss(attrs.evolve(ALONE, stages=stages))) == [
        (
            "not complete in rates (mix, every 1,000 ms) at 3000 events a second: "
            "lost 0, repeated 0, foreign 0, gaps 0, unexplained 2"
        ),
        (
            "not complete in compression (home, every 1,000 ms, z1) at 100 events a second: "
            "lost 1, repeated 0, foreign 0, gaps 0, unexplained 0"
        ),
    ]


def test_without_w_only_the_stages_of_trio_odin_alone_can_be_perfect() -> None:
    assert report_of(ALONE).is_perfect
    assert not report_of(attrs.evolve(ALONE, stages=[])).is_perfect
    broken = [*RATES, attrs.evolve(RATES[0], unexplained=1)]
    assert not report_of(attrs.evolve(ALONE, stages=broken)).is_perfect


# --- results of a load


def test_a_stage_has_the_figures_of_its_load() -> None:
    load = load_result(
        rate=30.0,
        arrival_seconds=4.0,
        lost=2,
        repeated=3,
        disconnects={"1006": 1, "4008 slow consumer": 2},
        received_per_second=5_000.0,
        client_cores=0.1,
        frames_per_read=1.5,
        latency=durations({10: 98, 400: 2}),
        server=ServerFigures(
            delivery_us=12.5, delivery_user_us=5.0, cores=0.4, others_cores=-0.001
        ),
    )
    stage = Stage.of("ramp", load, 7.0)
    assert (stage.name, stage.rate, stage.seconds, stage.per_second) == ("ramp", 30, 4, 5_000)
    assert (stage.expected, stage.received, stage.lost, stage.repeated) == (20_000, 20_000, 2, 3)
    assert (stage.user_us, stage.system_us, stage.cpu_us, stage.cores) == (5, 7.5, 12.5, 0.4)
    assert stage.p50_ms == pytest.approx(1, rel=0.01)
    assert stage.p99_ms == pytest.approx(40, rel=0.01)
    assert (stage.disconnects, stage.client_us, stage.frames_per_read) == (3, 20, 1.5)
    assert (stage.others_cores, stage.published_late_ms) == (0, 7)


def test_a_stage_has_the_rate_and_the_bytes_of_its_load() -> None:
    load = load_result(
        workload=attrs.evolve(WORKLOAD, every_ms=250),
        encoding="z1",
        skipped=70,
        unexplained=1,
        received_per_second=5_000.0,
        frames_per_second=1_250.0,
        delivery_bytes=80.5,
        delivery_wire_bytes=93.5,
        server=ServerFigures(connection_kib=10.5),
    )
    stage = Stage.of("rates", load, 0.0, "mix")
    assert (stage.users, stage.every_ms, stage.encoding) == ("mix", 250, "z1")
    assert (stage.skipped, stage.unexplained, stage.is_complete) == (70, 1, False)
    assert (stage.frames_per_second, stage.frames_events) == (1_250, 4)
    assert (stage.delivery_bytes, stage.delivery_wire_bytes) == (80.5, 93.5)
    assert stage.connection_kib == 10.5


def test_the_model_gets_the_bytes_of_complete_loads_with_compression() -> None:
    broken = attrs.evolve(COMPRESSION[0], lost=1)
    samples = list(attrs.evolve(ALONE, stages=[*RATES, *COMPRESSION, broken]).wire_samples())
    assert not samples  # without frames there is nothing to divide
    stages = [
        attrs.evolve(stage, frames_per_second=100.0, frames_events=4.5)
        for stage in (*RATES, *COMPRESSION, broken)
    ]
    samples = list(attrs.evolve(ALONE, stages=stages).wire_samples())
    assert [(s.encoding, s.is_batched, s.bytes_of_event) for s in samples] == [
        ("plain", False, 400.0), ("z1", False, 140.0), ("plain", True, 300.0), ("z1", True, 90.0),
    ]  # fmt: skip
    assert {(s.events_of_write, s.us_of_event) for s in samples} == {(4.5, 6.0)}


def test_a_load_on_a_remote_server_leaves_its_cost_unknown() -> None:
    load = load_result(server=ServerFigures(), latency=None, received_per_second=0.0)
    stage = Stage.of("W", load, 0.0)
    assert (stage.cpu_us, stage.cores, stage.others_cores) == (None, None, None)
    assert (stage.p99_ms, stage.client_us) == (0, 0)


def test_the_first_load_has_the_figures_of_connections_and_memory() -> None:
    load = load_result(
        connected=90,
        connect_seconds=1.5,
        connect_ms=durations({100: 98, 300: 2}),
        rejections={"503 x": 7},
        failures={"Connection refused": 3},
        server=ServerFigures(
            connect_us=250.0,
            idle_cores=0.02,
            base_mib=40.0,
            connected_mib=42.0,
            connection_kib=30.5,
        ),
    )
    found = TargetReport(name="odin", title="odin").with_connections(load, [50, 40])
    assert found.storm is not None
    assert (found.storm.connected, found.storm.seconds, found.storm.cpu_us_each) == (90, 1.5, 250)
    assert found.storm.failures == {"503 x": 7, "Connection refused": 3}
    assert found.storm.p99_ms == pytest.approx(30, rel=0.01)
    assert (found.rss_base_bytes, found.kib_loaded, found.idle_percent) == (40 * 2**20, 30.5, 2)
    assert found.kib_connected == pytest.approx(2 * 1024 / 90)
    assert found.connections_by_worker == [50, 40]


# --- verdicts


@pytest.mark.parametrize("amiss", ["lost", "repeated", "foreign", "gaps"])
def test_a_stage_with_a_problem_is_not_complete(amiss: str) -> None:
    assert W.is_complete
    changes: dict[str, Any] = {amiss: 1}
    assert not attrs.evolve(W, **changes).is_complete


@pytest.mark.parametrize(
    ("changes", "is_perfect"),
    [
        ({}, True),
        ({"failure": "it ended"}, False),
        ({"stages": [attrs.evolve(W, lost=1)]}, False),
        ({"stages": [W, attrs.evolve(RAMP, lost=1)]}, True),
        ({"stages": [attrs.evolve(W, disconnects=1)]}, False),
        ({"stages": [RAMP]}, False),
        ({"storm": None}, False),
        ({"storm": attrs.evolve(STORM, connected=9_999)}, False),
    ],
)
def test_a_bench_is_perfect_if_ours_lost_nothing_below_the_ramp(
    changes: dict[str, Any], is_perfect: bool
) -> None:
    assert report_of(attrs.evolve(OURS, **changes), FLOOR, FAILED).is_perfect is is_perfect
    assert report_of(attrs.evolve(FLOOR, **changes)).is_perfect


def test_the_last_stage_of_a_name_counts() -> None:
    again = attrs.evolve(W, received=1)
    assert attrs.evolve(OURS, stages=[W, RAMP, again]).stage("W") is again
    assert OURS.stage("plan") is None


def test_the_json_has_the_names_of_the_attributes() -> None:
    said = json.loads(as_json([report_of(OURS, FAILED)]))[0]
    assert said["provenance"]["machine"]["cores"] == 2
    assert said["targets"][0]["stages"][0]["p99_ms"] == 25.0
    assert said["targets"][1]["storm"] is None
    assert said["targets"][1]["failure"] == "broken did not start: no such file"


def test_several_runs_are_a_median_with_the_lowest_and_the_highest() -> None:
    slow = attrs.evolve(W, p99_ms=1234.0)
    middle = attrs.evolve(W, p99_ms=200.0)
    runs = [
        report_of(attrs.evolve(OURS, stages=[stage])) for stage in (slow, attrs.evolve(W), middle)
    ]
    cpu, _, p99, peak = summary(runs, OURS.name)
    assert p99 == f"200 ms ({W.p99_ms:.0f}–1,234)"
    assert cpu == summary(runs[:1], OURS.name)[0], "the same in all runs is shown without a spread"
    assert peak == "–", "no run has a ramp"
    assert summary([report_of(FAILED)], FAILED.name) == ("–", "–", "–", "–")


def test_latencies_are_listed_by_rate_run_by_run() -> None:
    step = attrs.evolve(RAMP, rate=200.0, p50_ms=90.0, p99_ms=1234.0)
    runs = [
        report_of(attrs.evolve(OURS, stages=[W, step]), NATS),
        report_of(attrs.evolve(OURS, stages=[W]), NATS),
    ]
    assert latencies_by_rate(runs) == [
        (100.0, ["3 / 25, 3 / 25", "3 / 25, 3 / 25"]),
        (200.0, ["90 / 1,234", DASH]),
    ]


def test_the_other_load_of_the_machine_is_shown_if_it_was_recorded() -> None:
    quiet, busy = (attrs.evolve(OURS, stages=[attrs.evolve(W, others_cores=n)]) for n in (0.1, 1.5))
    assert beside([report_of(quiet), report_of(busy)]) == (
        "The load average was 0.25 before the first run; other programs used 0.10 to 1.50 of the 2 "
        "cores meanwhile."
    )
    assert beside([report_of(OURS)]) == ""
