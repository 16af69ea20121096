from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.upstream.metadata import MessageMetadata, metadata_of, unix_ns_of

SHORT = "$JS.ACK.ODIN_TOKENS.cons.1.27.13.1759027038365000001.4"
LONG = "$JS.ACK.hub.ACCOUNT.ODIN_TOKENS.cons.1.27.13.1759027038365000001.4.x7Yz"


@pytest.mark.parametrize("reply", [SHORT, LONG, LONG.rpartition(".")[0], f"{LONG}.more"])
def test_both_forms_of_a_reply_subject_have_the_position(reply: str) -> None:
    assert metadata_of(reply) == MessageMetadata(27, 13, unix_ns=1759027038365000001, pending=4)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "_INBOX.x",
        SHORT.replace("27", "x"),
        SHORT.replace("27", "²"),
        SHORT + ".1",
        SHORT.replace("27", "1" * 5000),
    ],
)
def test_any_other_subject_has_no_position(reply: str) -> None:
    assert metadata_of(reply) is None


@given(st.text())
def test_no_text_raises(text: str) -> None:
    metadata_of(text)
    metadata_of(f"$JS.ACK.{text}.a.b.c.d.e")


def test_a_time_is_read_to_the_nanosecond() -> None:
    assert unix_ns_of("2026-01-31T12:00:00.123456789Z") == 1769860800_123456789
    assert unix_ns_of("2026-01-31T12:00:00.12Z") == 1769860800_120000000
    assert unix_ns_of("1970-01-01T00:00:01Z") == 10**9
    with pytest.raises(ValueError, match="not a time"):
        unix_ns_of("2026-01-31 12:00:00")
