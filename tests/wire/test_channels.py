from __future__ import annotations

import itertools
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.wire.channels import (
    CHANNEL_MAX_CHARS,
    CHANNEL_RULE,
    channel_of_subject,
    covers,
    is_channel,
)

ALLOWED = frozenset(string.ascii_letters + string.digits + "_-")
PARTS = st.text(st.sampled_from(sorted(ALLOWED)), min_size=1, max_size=31)
NEARLY_CHANNELS = st.text(st.sampled_from("Ab9_-.. \r\n\0*>/é１"), max_size=12)


def keeps_the_rule(name: str) -> bool:
    """The rule, put in other words than in the source."""
    parts = name.split(".")
    is_well_formed = len(parts) == 2 and all(part and ALLOWED.issuperset(part) for part in parts)
    return is_well_formed and len(name) <= 64


@given(st.builds("{}.{}".format, PARTS, PARTS))
def test_two_parts_of_letters_digits_underscore_minus_are_a_channel(name: str) -> None:
    assert is_channel(name)


@given(NEARLY_CHANNELS | st.text())
def test_a_channel_is_exactly_a_name_that_keeps_the_rule(name: str) -> None:
    assert is_channel(name) == keeps_the_rule(name)


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "BTC", "BTC.", ".trade", "BTC.trade.x", "BTC..trade", "*.trade", "BTC.*", "BTC.>",
        ">", "BTC trade", "BTC. trade", " BTC.trade", "BTC.trade ", "BTC.trade\n", "BTC.trade\r\n",
        "BTC\r\nPUB x 1.trade", "BTC\0.trade", "BTC\N{FULLWIDTH FULL STOP}trade", "ÄBC.trade",
        "BTC.tr\N{ARABIC-INDIC DIGIT THREE}", "BTC.\ud800",
    ],
)  # fmt: skip
def test_a_name_that_breaks_the_rule_is_not_a_channel(name: str) -> None:
    assert not is_channel(name)


def test_a_channel_has_at_most_64_characters() -> None:
    assert CHANNEL_MAX_CHARS == 64
    assert is_channel("A" * 32 + "." + "b" * 31)
    assert not is_channel("A" * 32 + "." + "b" * 32)


def test_the_rule_in_words_has_the_limit_and_the_characters() -> None:
    assert "SYMBOL.event_type" in CHANNEL_RULE
    assert "64" in CHANNEL_RULE
    assert "letters, digits, _ and -" in CHANNEL_RULE


@given(st.lists(st.text(st.sampled_from("AB*> -"), max_size=3), max_size=7))
def test_the_channel_is_the_third_and_fourth_part_of_the_subject(parts: list[str]) -> None:
    expected = ".".join(parts[2:4])
    expected_channel = expected if len(parts) >= 4 and keeps_the_rule(expected) else None
    assert channel_of_subject(".".join(parts)) == expected_channel


@pytest.mark.parametrize(
    ("subject", "channel"),
    [
        ("odin.token.BTC.trade", "BTC.trade"),
        ("odin.token.BTC.trade.and.more", "BTC.trade"),
        ("odin.token.BTC", None),
        ("odin.token.BTC.", None),
        ("odin.token..trade", None),
        ("odin.token.BTC.$x", None),
        ("", None),
        ("odin.token." + "A" * 60 + ".trade", None),
    ],
)
def test_the_subjects_of_the_wire_document_are_parsed(subject: str, channel: str | None) -> None:
    assert channel_of_subject(subject) == channel


# A small world in which covering can be decided by enumeration. No pattern names the part `z` or a
# length of four parts, so results here hold for longer subjects as well.
def _patterns() -> list[str]:
    middles = [
        middle
        for length in range(3)
        for middle in itertools.product(["a", "b", "*"], repeat=length)
    ]
    return [".".join([*middle, last]) for middle in middles for last in ("a", "b", "*", ">")]


SUBJECTS = [
    ".".join(parts) for length in range(1, 5) for parts in itertools.product("abz", repeat=length)
]


def _matches(pattern: str) -> frozenset[str]:
    """The subjects that match, by NATS' rules as a regular expression."""
    expression = (
        re.escape(pattern).replace(r"\*", r"[^.]+").replace(re.escape(">"), r"[^.]+(\.[^.]+)*")
    )
    return frozenset(subject for subject in SUBJECTS if re.fullmatch(expression, subject))


def test_a_pattern_covers_another_exactly_if_it_matches_all_of_it() -> None:
    matches = {pattern: _matches(pattern) for pattern in _patterns()}
    assert len(matches[">"]) == len(SUBJECTS)
    for wide, narrow in itertools.product(matches, matches):
        assert covers(wide, narrow) == (matches[narrow] <= matches[wide]), (wide, narrow)


def test_a_pattern_covers_a_plain_subject_exactly_if_it_matches_it() -> None:
    for pattern in _patterns():
        matching = _matches(pattern)
        for subject in SUBJECTS:
            assert covers(pattern, subject) == (subject in matching), (pattern, subject)


@pytest.mark.parametrize(
    ("pattern", "subject", "answer"),
    [
        ("odin.>", "odin.token.>", True),
        ("odin.token.>", "odin.token.>", True),
        ("odin.token.>", "odin.token", False),
        ("odin.*.trade", "odin.token.>", False),
        ("odin.token.*", "odin.token.>", False),
        (">", "odin.token.>", True),
        ("odin.token.BTC", "odin.token.*", False),
        ("Odin.>", "odin.token.>", False),
    ],
)
def test_the_examples_of_covering_hold(pattern: str, subject: str, *, answer: bool) -> None:
    assert covers(pattern, subject) is answer
