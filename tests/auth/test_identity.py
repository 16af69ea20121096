from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.auth.identity import user_agent


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        (b"", ""),
        (b"Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 (X11; Linux x86_64)"),
        (b"a\tb", r"a\tb"),
        (b"\x9b31m", r"\x9b31m"),  # a terminal may take it for ESC [
        (b"x" * 500, "x" * 120),
    ],
)
def test_a_user_agent_is_short_and_harmless(header: bytes, shown: str) -> None:
    assert user_agent(header) == shown


@given(st.binary(max_size=300))
def test_any_user_agent_becomes_printable(header: bytes) -> None:
    assert user_agent(header).isprintable()
    assert len(user_agent(header)) <= 4 * 120
