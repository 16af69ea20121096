from __future__ import annotations

import random
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.model.stages import (
    EVENT_SHAPES,
    SHAPES,
    TRUTH,
    Distortion,
    lab_of,
    some_costs,
    stage_of,
    stages_of,
)
from trio_odin.lab.load.result import Reconnects
from trio_odin.lab.model.fit import BadFigure, TooLittle, fit, predictions, reconnect_us
from trio_odin.lab.model.model import Costs, doublings
from trio_odin.lab.verdict import Prediction, StageResult


def assert_alike(found: Costs, truth: Costs) -> None:
    for name in ("base_mib", "connection_kib", "delivery_us", "connect_us"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-4), name
    assert found.doubling_us == pytest.approx(truth.doubling_us, abs=1e-3)
    assert found.publication_us == pytest.approx(truth.publication_us, abs=0.1)
    assert found.connection_us_per_second == pytest.approx(truth.connection_us_per_second, abs=1e-3)
    assert found.base_cores == pytest.approx(truth.base_cores, abs=1e-5)


@given(some_costs)
def test_a_fit_recovers_the_costs_behind_the_stages(truth: Costs) -> None:
    assert_alike(fit(stages_of(truth)), truth)


@given(some_costs, st.sampled_from([100.0, 200.0, 300.0, 900.0]), st.just(0.0) | st.floats(20, 200))
def test_stages_of_events_alone_give_the_cost_of_an_event_by_rate(
    truth: Costs, joined_rate: float, joined_us: float
) -> None:
    truth = attrs.evolve(truth, joined_rate=joined_rate, joined_us=joined_us)
    found = fit(stages_of(truth, SHAPES + EVENT_SHAPES))
    for rate in (12, 30, 300, 1000, 3000):
        assert found.event_us(rate) == pytest.approx(truth.event_us(rate), rel=0.02, abs=0.5)
    assert (found.max_rate, found.max_connections) == (3000, 18_000)


@pytest.mark.parametrize("each_us", [(630, 290, 113), (267, 137, 93)])
def test_the_measured_costs_of_an_event_are_recovered(
    each_us: tuple[float, float, float],
) -> None:
    """At 300, 1,000 and 3,000 a second without a subscriber, on two days."""
    seen = {
        number: rate * us / 1e6 for (number, _, rate), us in zip(EVENT_SHAPES, each_us, strict=True)
    }

    def distort(number: int, name: str, value: float) -> float:
        return seen[number] if name == "cores" and number in seen else value

    truth = attrs.evolve(TRUTH, publication_us=each_us[0] * 2, joined_rate=300.0)
    found = fit(stages_of(truth, SHAPES + EVENT_SHAPES, distort))
    for number, _, rate in EVENT_SHAPES:
        assert found.cores(0, rate, 0) == pytest.approx(seen[number], rel=0.15)


def test_a_stage_of_one_connection_says_nothing_about_memory() -> None:
    """The last 30 s of the stream are kept, whoever is connected."""

    def distort(number: int, name: str, value: float) -> float:
        return value + 90.0 if name == "held" and number > 10 else value

    assert_alike(fit(stages_of(TRUTH, SHAPES + EVENT_SHAPES, distort)), TRUTH)


@given(some_costs)
def test_data_of_the_model_is_predicted_exactly(truth: Costs) -> None:
    found = predictions(lab_of(stages_of(truth)))
    assert set(found) == {4, 5, 6, 7}
    for number in found:
        assert [one.what for one in found[number]] == ["CPU", "memory"]
        assert memory(found[number]).error == pytest.approx(0, abs=1e-4)
    for number in (6, 7):
        assert cpu(found[number]).error == pytest.approx(0, abs=1e-4)


def cpu(found: list[Prediction]) -> Prediction:
    return next(one for one in found if one.what == "CPU")


def memory(found: list[Prediction]) -> Prediction:
    return next(one for one in found if one.what == "memory")


def noise(seed: int) -> Distortion:
    """The noise of a measurement: a few percent, CPU in ticks of 10 ms, and full caches."""
    chance = random.Random(seed)

    def distort(number: int, name: str, value: float) -> float:
        connections = {shape[0]: shape[1] for shape in SHAPES}[number]
        if name == "cores":
            # It saturates instead of growing forever, and at 30 events a second some join.
            rate = {shape[0]: shape[2] for shape in SHAPES}[number]
            each = 7.0 + 6.5 * connections / (connections + 2000) - 0.5 * (rate > 20)
            value = 0.004 + connections * 2e-6 + rate * (60e-6 + connections * 0.121 * each / 1e6)
        value *= chance.gauss(1, 0.01 if name == "held" else 0.02)
        return value if name == "held" else round(value * 10, 2) / 10

    return distort


@pytest.mark.parametrize("seed", range(20))
def test_real_stages_are_predicted_within_10_percent(seed: int) -> None:
    found = predictions(lab_of(stages_of(TRUTH, distort=noise(seed))))
    for number in (5, 6):
        assert abs(cpu(found[number]).error) < 0.1
    for number in (4, 7):
        assert abs(memory(found[number]).error) < 0.1


@pytest.mark.parametrize("seed", range(20))
def test_no_cost_is_below_0_and_a_delivery_always_costs(seed: int) -> None:
    found = fit(stages_of(TRUTH, distort=noise(seed)))
    figures = [value for value in attrs.asdict(found).values() if isinstance(value, float)]
    assert min(figures) >= 0
    assert found.delivery_us > 1


def tripled(number: int, names: set[str]) -> Distortion:
    def distort(stage: int, name: str, value: float) -> float:
        return value * 3 if stage == number and name in names else value

    return distort


def test_cpu_is_predicted_from_fewer_events_only() -> None:
    """Stage 6 has more work than 7, so its figures must influence neither 7 nor itself."""
    found = predictions(lab_of(stages_of(TRUTH, distort=tripled(6, {"idle", "cores"}))))
    assert cpu(found[6]).error == pytest.approx(-2 / 3, abs=1e-3)
    assert cpu(found[7]).error == pytest.approx(0, abs=1e-3)
    # Stage 4 is a shorter stage 5 with as much work, so it predicts nothing about it.
    as_it_is, odd = (
        predictions(lab_of(stages_of(TRUTH, distort=tripled(number, {"idle", "cores"}))))
        for number in (0, 4)
    )
    assert cpu(odd[5]) == cpu(as_it_is[5])
    assert cpu(odd[6]) != cpu(as_it_is[6])


def test_memory_is_predicted_from_fewer_connections_only() -> None:
    for number in (4, 5):
        found = predictions(lab_of(stages_of(TRUTH, distort=tripled(number, {"held"}))))
        assert memory(found[number]).error == pytest.approx(-2 / 3, abs=1e-3)
        assert memory(found[6]).error == pytest.approx(0, abs=1e-3)


def test_the_source_names_the_stages() -> None:
    found = fit(stages_of(TRUTH))
    assert (found.source, found.date) == ("lab, stages 2, 3, 4, 5, 6, 7", "2026-11-30")
    assert fit(stages_of(TRUTH), source="mine").source == "mine"


def with_load(stage: StageResult, **changes: Any) -> StageResult:
    assert stage.load is not None
    return attrs.evolve(stage, load=attrs.evolve(stage.load, **changes))


def test_stages_without_plain_figures_do_not_count() -> None:
    stages = stages_of(TRUTH, SHAPES[:3])
    server = stages[0].load.server if stages[0].load else None
    assert server is not None
    odd = stage_of(attrs.evolve(TRUTH, delivery_us=500), 8, 3000, 12.0)
    workload = odd.load.workload if odd.load else None
    assert workload is not None
    stages += [
        StageResult(number=1, title="no load"),
        with_load(odd, churned=10),
        with_load(odd, connected=2999),
        with_load(odd, disconnects={"1006": 1}),
        with_load(odd, lost=1),
        with_load(odd, workload=attrs.evolve(workload, channels=[])),
        with_load(odd, workload=attrs.evolve(workload, is_filtered=False)),
        with_load(odd, workload=attrs.evolve(workload, every_ms=1000)),
        with_load(odd, encoding="z1"),
        with_load(odd, interrupted=True),
        with_load(odd, received_per_second=0.0),
        with_load(odd, hold_seconds=0.0),
        with_load(odd, server=attrs.evolve(server, cores=None)),
        with_load(odd, server=attrs.evolve(server, held_mib=None)),
    ]
    assert fit(stages).source == "lab, stages 2, 3, 4"
    assert_alike(fit(stages), TRUTH)
    assert set(predictions(lab_of(stages))) == {4}


def test_a_used_server_does_not_hide_the_base() -> None:
    used = stages_of(TRUTH)
    load = used[-1].load
    assert load is not None
    used[-1] = with_load(used[-1], server=attrs.evolve(load.server, base_mib=300.0))
    assert fit(used).base_mib == pytest.approx(46)


def test_events_taken_from_nats_count_as_the_rate_if_it_is_unknown() -> None:
    truth = attrs.evolve(TRUTH, delivery_us=30.0, doubling_us=0.0)
    stages = [
        with_load(
            stage,
            rate=None,
            publications=int(60 * rate),
            server=attrs.evolve(stage.load.server, received_from_nats=60 * rate),
        )
        for stage, (_, _, rate) in zip(stages_of(truth), SHAPES, strict=True)
        if stage.load is not None
    ]
    assert_alike(fit(stages), truth)
    # The number of events was not known in advance.
    found = predictions(lab_of(stages))
    assert [[one.what for one in told] for told in found.values()] == [["memory"]] * 4


def test_without_idle_figures_the_hold_alone_is_fitted() -> None:
    stages = [
        with_load(stage, server=attrs.evolve(stage.load.server, idle_cores=None))
        for stage in stages_of(TRUTH)
        if stage.load is not None
    ]
    found = fit(stages)
    deliveries = 30 * 10_000 * 0.121
    assert found.cores(10_000, 30, deliveries) == pytest.approx(
        TRUTH.cores(10_000, 30, deliveries), rel=1e-4
    )


def test_the_costs_have_the_range_of_the_measurement() -> None:
    found = fit(stages_of(TRUTH))
    assert (found.max_rate, found.max_connections) == (30.0, 18_000)
    assert found.max_deliveries == pytest.approx(30 * 10_000 * 0.121, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("cores", -0.1), ("held_mib", -1.0), ("connect_us", 1e300)]
)
def test_an_impossible_figure_is_refused(name: str, value: float) -> None:
    stages = stages_of(TRUTH)
    server = stages[2].load.server if stages[2].load else None
    assert server is not None
    stages[2] = with_load(stages[2], server=attrs.evolve(server, **{name: value}))
    with pytest.raises(BadFigure, match=f"stage 4 has a {name} of {value:g}".replace("+", r"\+")):
        fit(stages)
    with pytest.raises(BadFigure, match="allowed is 0 to 10¹²"):
        predictions(lab_of(stages))


def test_connections_below_0_are_refused() -> None:
    stages = stages_of(TRUTH)
    with pytest.raises(BadFigure, match="stage 2 has a connections of -1"):
        fit([with_load(stages[0], connections=-1, connected=-1), *stages[1:]])


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_stages_are_refused_with_a_sentence(count: int) -> None:
    wanted = "of this run (none|only stage 2) will do"
    with pytest.raises(TooLittle, match=wanted):
        fit(stages_of(TRUTH, SHAPES[:count]))


def test_the_cost_of_a_delivery_grows_as_in_the_stages() -> None:
    """8 µs among 1,000 connections and 12 among 10,000, as measured, and nothing else."""
    truth = Costs(delivery_us=8.0, doubling_us=4 / doublings(10_000), connection_kib=20.0)
    found = fit(stages_of(truth))
    assert found.delivery_us_among(1000) == pytest.approx(8, rel=1e-4)
    assert found.delivery_us_among(10_000) == pytest.approx(12, rel=1e-4)
    assert 12 < found.delivery_us_among(18_000) < 13.1


def test_the_cost_of_a_reconnect_comes_from_the_storm() -> None:
    storm = stage_of(TRUTH, 9, 10_000, 12.0)
    assert storm.load is not None
    assert fit([*stages_of(TRUTH), storm]).reconnect_us is None
    back = Reconnects(lost=10_000, back=10_000, seconds=5.0, ms=None)
    load = attrs.evolve(storm.load, reconnects=back)
    cut = attrs.evolve(storm, load=load)
    cores = storm.load.server.cores
    assert cores is not None
    found = fit([*stages_of(TRUTH), cut])
    assert found.reconnect_us == pytest.approx((0.8 - cores) * 5.0 / 10_000 * 1e6)
    # Of those that are not back the time is not known.
    lost = attrs.evolve(load, reconnects=attrs.evolve(back, back=9_999))
    assert reconnect_us([attrs.evolve(cut, load=lost)]) is None
