"""Numbers for people: three significant digits, grouped thousands, then the unit."""

from __future__ import annotations

import math

# The cell of a table without a figure.
NOTHING = "–"
_DIGITS = 3
_MINUTE = 60
_HOUR = 3600


def count(value: float | None) -> str:
    """A whole number: "18,000"."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def figure(value: float | None, unit: str = "") -> str:
    """A measured figure: "0.352 cores", "12.3 ms", "1,234 MiB"."""
    if value is None or not math.isfinite(value):
        return NOTHING
    before_the_point = math.floor(math.log10(abs(value))) + 1 if value else _DIGITS
    decimals = min(_DIGITS, max(0, _DIGITS - before_the_point))
    return f"{value:,.{decimals}f} {unit}".rstrip()


def share(value: float | None) -> str:
    """A share, rounded down: "100 %" means all; with one of 10,000 missing it is "99.99 %"."""
    if value is None or not math.isfinite(value):
        return NOTHING
    hundredths = math.floor(round(value * 10_000, 6))
    return f"{hundredths / 100:.{0 if hundredths % 100 == 0 else 2}f} %"


def deviation(value: float | None) -> str:
    """A relative error with its sign: "+4.1 %"."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value * 100:+.1f} %".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """A length of time: "5.3 s", "2 min 5 s", "1 h 4 min"."""
    if round(seconds, 1) < _MINUTE:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < _HOUR:
        minutes, rest = divmod(whole, _MINUTE)
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, rest = divmod(whole // _MINUTE, _MINUTE)
    return f"{hours} h" + (f" {rest} min" if rest else "")
