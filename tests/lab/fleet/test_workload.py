from __future__ import annotations

from fractions import Fraction

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.lab.fleet.workload import Workload

TOKENS = [f"T{number:03d}.trade" for number in range(200)]
SAMPLING = Workload(channels=TOKENS, channels_per_connection=3)
PEOPLE = Workload(channels=TOKENS, home_share=0.3, home_tokens=30)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    channels = TOKENS[: draw(st.integers(1, 40))]
    return Workload(
        channels=channels,
        channels_per_connection=draw(st.integers(1, len(channels))),
        home_share=draw(st.none() | st.integers(0, 100).map(lambda percent: percent / 100)),
        home_tokens=draw(st.integers(1, 60)),
        seed=draw(st.integers(0, 1000)),
        is_filtered=draw(st.sampled_from([True, True, True, False])),
    )


@given(st.integers(0, 1000), st.integers(0, 300))
def test_any_first_users_have_the_exact_share_of_home_pages(thousandths: int, count: int) -> None:
    workload = attrs.evolve(PEOPLE, home_share=thousandths / 1000)
    home = workload.home_channels
    found = sum(channels == home for channels in workload.of(0, count))
    assert found == int(Fraction(thousandths, 1000) * count)


def test_the_share_of_a_million_users_is_exact() -> None:
    million = 1_000_000
    for share in (Fraction(29, 100), Fraction(1, 3), Fraction(9, 10)):
        workload = attrs.evolve(PEOPLE, home_share=float(share))
        at_home = [workload._is_home(number) for number in range(million - 1000, million)]
        assert sum(at_home) == int(share * million) - int(share * (million - 1000))


def test_users_without_the_home_page_watch_a_single_token() -> None:
    others = [channels for channels in PEOPLE.of(0, 500) if channels != PEOPLE.home_channels]
    assert {len(channels) for channels in others} == {1}
    assert len({channels[0] for channels in others}) > 100


@given(st.integers(1, 200), st.integers(1, 300))
def test_the_channels_of_the_home_page_are_spread_over_all(tokens: int, wanted: int) -> None:
    workload = Workload(channels=TOKENS[:tokens], home_share=0.5, home_tokens=wanted)
    home = workload.home_channels
    places = [TOKENS.index(channel) for channel in home]
    assert len(home) == len(set(home)) == min(wanted, tokens)
    steps = {b - a for a, b in zip(places, [*places[1:], tokens + places[0]], strict=True)}
    assert max(steps) - min(steps) <= 1


@given(workloads(), st.integers(0, 50), st.integers(0, 50))
def test_the_same_seed_gives_the_same_channels(workload: Workload, first: int, count: int) -> None:
    sample = list(workload.of(first, count))
    assert sample == list(workload.of(first, count))
    assert len(sample) == count
    for channels in sample:
        assert len(set(channels)) == len(channels)
        assert set(channels) <= set(workload.channels)


@pytest.mark.parametrize("workload", [SAMPLING, PEOPLE])
def test_another_seed_gives_other_channels(workload: Workload) -> None:
    other = attrs.evolve(workload, seed=1)
    assert list(workload.of(0, 50)) != list(other.of(0, 50))


@given(workloads(), st.lists(st.integers(0, 20), max_size=5))
def test_the_slices_of_several_fleets_make_the_whole(workload: Workload, shares: list[int]) -> None:
    slices: list[list[str]] = []
    for number, share in enumerate(shares):
        slices += workload.of(sum(shares[:number]), share)
    assert slices == list(workload.of(0, sum(shares)))


@given(workloads())
def test_the_mean_is_the_average(workload: Workload) -> None:
    # A hundred users have any share of whole percents exactly.
    subscriptions = [len(channels) for channels in workload.of(0, 100)]
    assert workload.mean_subscriptions == pytest.approx(sum(subscriptions) / 100)


def test_without_a_filter_everybody_gets_everything() -> None:
    workload = attrs.evolve(PEOPLE, is_filtered=False)
    assert list(workload.of(5, 2)) == [TOKENS, TOKENS]
    assert workload.mean_subscriptions == 200


def test_all_channels_are_sampled_about_as_often() -> None:
    times = dict.fromkeys(TOKENS, 0)
    for channels in SAMPLING.of(0, 4000):
        for channel in channels:
            times[channel] += 1
    assert 30 < min(times.values()) < max(times.values()) < 95  # 60 on average
