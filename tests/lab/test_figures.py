from __future__ import annotations

import math

import pytest

from trio_odin.lab.figures import count, deviation, duration, figure, share


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.35214, "cores", "0.352 cores"),
        (12.345, "ms", "12.3 ms"),
        (1234.5, "MiB", "1,234 MiB"),
        (0.0, "", "0"),
        (0.0004, "", "0.000"),
        (-12.34, "", "-12.3"),
        (None, "ms", "–"),
        (math.nan, "ms", "–"),
        (math.inf, "", "–"),
    ],
)
def test_a_figure_has_three_significant_digits(value: float | None, unit: str, text: str) -> None:
    assert figure(value, unit) == text


def test_a_count_has_grouped_thousands() -> None:
    assert (count(18000), count(0), count(None)) == ("18,000", "0", "–")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "100 %"),
        (0.99999, "99.99 %"),
        (0.525, "52.50 %"),
        (0.29, "29 %"),
        (0.0, "0 %"),
        (None, "–"),
    ],
)
def test_only_a_complete_share_is_a_hundred_percent(value: float | None, text: str) -> None:
    assert share(value) == text


def test_a_deviation_has_a_sign() -> None:
    assert deviation(0.0412) == "+4.1 %"
    assert deviation(-0.5) == "\N{MINUS SIGN}50.0 %"
    assert deviation(None) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (5.25, "5.2 s"),
        (59.99, "1 min"),
        (120, "2 min"),
        (125.4, "2 min 5 s"),
        (3599.9, "1 h"),
        (3840, "1 h 4 min"),
    ],
)
def test_a_duration_is_shown_in_familiar_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
