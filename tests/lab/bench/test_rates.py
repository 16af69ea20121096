"""The stages of rates and compression, with a server of other libraries."""

from __future__ import annotations

import sys

import attrs
import pytest
import trio

from trio_odin.lab.bench.plan import BenchPlan
from trio_odin.lab.bench.record import BenchReport, TargetReport
from trio_odin.lab.bench.report import compression_rows, rates_rows
from trio_odin.lab.bench.runner import run_benches
from trio_odin.lab.bench.targets import Target
from trio_odin.lab.fleet.encodings import ENCODINGS

RATED = Target(
    name="rated",
    title="a server with rates",
    command=[sys.executable, "-m", "tests.lab.bench.rated_server"],
    is_ours=True,
)
PLAN = BenchPlan(
    targets=[RATED],
    connections=8,
    tokens=10,
    channels_per_connection=6,
    hold_seconds=0.5,
    rate=20.0,
)


async def measured(plan: BenchPlan) -> tuple[BenchReport, TargetReport]:
    runs: list[BenchReport] = []
    with trio.fail_after(120):
        await run_benches(plan, 1, lambda *_: None, runs)
    (report,) = runs
    (target,) = report.targets
    assert target.failure is None
    return report, target


@pytest.mark.e2e
async def test_with_rates_every_delivery_is_made_or_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = [case for case in PLAN.rate_cases() if case.users == "mix"]
    few = [case for case in cases if case.workload.every_ms in {0, 250}]
    monkeypatch.setattr(BenchPlan, "rate_cases", lambda _: [few[0], *few[-2:]])
    plan = attrs.evolve(PLAN.only(["rates"]), rates_seconds=0.5)
    report, target = await measured(plan)
    assert report.is_perfect
    raw, slow, fast = target.named("rates")
    assert (raw.every_ms, slow.every_ms, fast.every_ms) == (0, 250, 250)
    assert (slow.rate, fast.rate) == (200.0, 2000.0)
    assert fast.skipped > slow.skipped > raw.skipped == 0
    assert fast.expected == fast.received + fast.skipped
    assert raw.frames_per_second > 0 < fast.delivery_bytes < fast.delivery_wire_bytes
    assert [row[2] for row in rates_rows(report)] == [
        "of every event", "every 250 ms", "every 250 ms",
    ]  # fmt: skip
    assert {row[-1] for row in rates_rows(report)} == {"0"}


def test_compression_is_measured_in_every_encoding_at_w_and_with_batches() -> None:
    cases = list(PLAN.compression_cases())
    assert [(case.users, case.encoding, case.workload.every_ms, case.rate) for case in cases] == [
        *(("W", encoding, 0, 20.0) for encoding in ENCODINGS),
        *(("home", encoding, 1000, 20.0) for encoding in ENCODINGS),
        *(("home", encoding, 1000, 200.0) for encoding in ENCODINGS),
    ]
    assert {case.workload.home_share for case in cases[3:]} == {1.0}


def test_rates_are_measured_against_the_market_of_the_plans_users_and_of_w() -> None:
    cases = [
        (case.users, case.workload.every_ms, case.rate)
        for case in BenchPlan(targets=[]).rate_cases()
    ]
    assert cases[:4] == [("mix", 0, 30), ("mix", 0, 60), ("mix", 0, 120), ("W", 0, 30)]
    for every_ms in (1000, 250):
        assert {rate for users, ms, rate in cases if (users, ms) == ("mix", every_ms)} == {
            30, 300, 3000,
        }  # fmt: skip
    assert ("W", 1000, 3000) in cases


@pytest.mark.e2e
@pytest.mark.slow
async def test_each_encoding_is_measured_with_a_server_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = list(PLAN.compression_cases())
    monkeypatch.setattr(BenchPlan, "compression_cases", lambda _: [*cases[:3], cases[4]])
    plan = attrs.evolve(PLAN.only(["compression"]), compression_seconds=1.3)
    report, target = await measured(plan)
    assert report.is_perfect
    found = target.named("compression")
    assert [(stage.users, stage.encoding) for stage in found] == [
        *(("W", encoding) for encoding in ENCODINGS), ("home", "z1"),
    ]  # fmt: skip
    for stage in found:
        assert stage.received > 0 < stage.delivery_bytes
        assert stage.connection_kib is not None
    plain, z1, deflate = (stage.delivery_bytes for stage in found[:3])
    assert z1 < deflate < plain
    assert [row[4] for row in compression_rows(report)] == [*ENCODINGS, "z1"]
