from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.auth.grants import LEEWAY_SECONDS, Grant, grant_of
from trio_odin.wire.channels import covers
from trio_odin.wire.handshake import Rejected

NOW = 1_759_027_038.0


def read(
    claims: bytes | dict[str, Any], *, issuer: str = "", audience: str = "", now: float = NOW
) -> Grant | Rejected:
    content = claims if isinstance(claims, bytes) else json.dumps({"exp": NOW + 60} | claims)
    return grant_of(
        content if isinstance(content, bytes) else content.encode(),
        key="k",
        issuer=issuer,
        audience=audience,
        unix_seconds=now,
    )


def granted(claims: dict[str, Any], **expected: str) -> Grant:
    grant = read(claims, **expected)  # type: ignore[arg-type]
    assert isinstance(grant, Grant), grant
    return grant


def why_refused(claims: bytes | dict[str, Any], **expected: Any) -> str:
    rejected = read(claims, **expected)
    assert isinstance(rejected, Rejected), rejected
    assert (rejected.status, rejected.reason.label) == (401, "unauthorized")
    assert rejected.headers == (("WWW-Authenticate", 'Bearer error="invalid_token"'),)
    return rejected.text


# --- the time of a token


def test_a_token_ends_a_little_after_exp() -> None:
    grant = granted({"exp": NOW + 10})
    assert grant == Grant(NOW + 10, "k", None)
    assert not grant.has_expired(NOW + 10 + LEEWAY_SECONDS - 0.1)
    assert grant.has_expired(NOW + 10 + LEEWAY_SECONDS)


@pytest.mark.parametrize("exp", [NOW - LEEWAY_SECONDS, 0, -1, -1e300])
def test_an_expired_token_is_refused(exp: float) -> None:
    assert why_refused({"exp": exp}) == "The token has expired"


def test_a_token_can_have_a_start_time() -> None:
    granted({"nbf": NOW + LEEWAY_SECONDS})
    assert why_refused({"nbf": NOW + LEEWAY_SECONDS + 1}) == "The token is not valid yet"


def test_a_token_without_an_end_is_refused() -> None:
    assert "required field `exp`" in why_refused(b"{}")


# --- issuer and audience


def test_the_issuer_must_be_the_expected_one() -> None:
    granted({"iss": "me"}, issuer="me")
    granted({"iss": "me"})
    others: list[dict[str, Any]] = [{"iss": "me2"}, {"iss": "Me"}, {"iss": ""}, {}]
    for claims in others:
        assert why_refused(claims, issuer="me") == "The token is of another issuer"


def test_the_audience_must_be_there_alone_or_among_others() -> None:
    granted({"aud": "odin"}, audience="odin")
    granted({"aud": ["a", "odin"]}, audience="odin")
    granted({"aud": "any"})
    others: list[dict[str, Any]] = [{"aud": "odin2"}, {"aud": ["od", "in"]}, {"aud": []}, {}]
    for claims in others:
        assert why_refused(claims, audience="odin") == "The token is for another audience"


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": "9999999999"},
        {"exp": None},
        {"exp": True},
        {"exp": [1]},
        {"nbf": "0"},
        {"nbf": None},
        {"iss": 5},
        {"iss": ["me"]},
        {"aud": 5},
        {"aud": [5]},
        {"aud": {"odin": 1}},
        {"channels": None},
        {"channels": "BTC.trade"},
        {"channels": {"BTC.trade": 1}},
        {"channels": [5]},
        {"channels": [["BTC.trade"]]},
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"exp":1e999}',
        b'{"exp":NaN}',
        b'{"exp":Infinity}',
        b'{"exp":1} {}',
        b'{"exp":9999999999,"x":' + b"[" * 10_000,
    ],
    ids=lambda claims: str(claims)[:40],
)
def test_claims_of_another_type_are_refused(claims: bytes | dict[str, Any]) -> None:
    assert why_refused(claims).startswith("The token's claims are malformed: ")


# --- channels

PARTS = st.sampled_from(["BTC", "ETH", "trade", "a-_9"])
CHANNELS = st.builds("{}.{}".format, PARTS, PARTS)
PATTERNS = st.just(">") | st.builds(
    "{}.{}".format, PARTS | st.just("*"), PARTS | st.sampled_from(["*", ">"])
)


@given(st.lists(PATTERNS, max_size=5), CHANNELS)
def test_a_channel_is_allowed_exactly_if_a_pattern_covers_it(
    patterns: list[str], channel: str
) -> None:
    expected = any(covers(pattern, channel) for pattern in patterns)
    assert granted({"channels": patterns}).allows(channel) is expected


def test_without_the_claim_every_channel_is_allowed() -> None:
    assert granted({}).allows("BTC.trade")


def test_an_empty_list_of_patterns_allows_no_channel() -> None:
    assert not granted({"channels": []}).allows("BTC.trade")


@pytest.mark.parametrize("patterns", [[">"], ["*.*"], ["*.>"], ["BTC.trade", ">"]])
def test_a_pattern_for_all_restricts_nothing(patterns: list[str]) -> None:
    assert granted({"channels": patterns}).patterns is None


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*",
        "BTC",
        ".",
        "BTC.",
        ".trade",
        "BTC.trade.x",
        "BTC.trade.>",
        ">.trade",
        "BT*.trade",
        "BTC.tr>",
        "**.trade",
        "BTC .trade",
        "BTC.trade\n",
        "BTC/trade",
        "odin.token.BTC.trade",
        "É.trade",
    ],
)
def test_a_malformed_pattern_refuses_the_token(pattern: str) -> None:
    assert "channels" in why_refused({"channels": ["BTC.trade", pattern]})


# --- the subject, for the log


@pytest.mark.parametrize(
    ("sub", "shown"),
    [
        ("u-4711", "u-4711"),
        ("józef", "józef"),
        ("a\n\x1b[31mb", r"a\n\x1b[31mb"),
        ("\u202ea", r"\u202ea"),
        ("x" * 500, "x" * 120),
        (4711, ""),
        (None, ""),
        ({"a": [1]}, ""),
    ],
)
def test_the_subject_is_for_the_log_and_refuses_nobody(sub: Any, shown: str) -> None:
    assert granted({"sub": sub}).subject == shown


def test_a_subject_beyond_any_number_refuses_nobody() -> None:
    assert granted({}).subject == ""
    grant = read(b'{"exp":%d,"sub":1e999}' % (NOW + 60))
    assert isinstance(grant, Grant)
    assert grant.subject == ""


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_subject_becomes_one_short_printable_line(sub: str) -> None:
    shown = granted({"sub": sub}).subject
    assert shown.isprintable()
    assert len(shown) <= 10 * 120
