from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_odin.wire.trace_context import TraceContext, parse_traceparent, traceparent_in

# The examples of the specification.
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def digits(count: int) -> st.SearchStrategy[str]:
    texts = st.text("0123456789abcdef", min_size=count, max_size=count)
    return texts.filter(lambda text: text.strip("0"))


CONTEXTS = st.builds(TraceContext, digits(32), digits(16), st.booleans())


@given(CONTEXTS)
def test_what_is_written_is_read_again(context: TraceContext) -> None:
    assert len(context.traceparent) == 55
    assert parse_traceparent(context.traceparent) == context


def test_the_example_of_the_specification_is_read() -> None:
    assert parse_traceparent(GOOD) == TraceContext(TRACE, SPAN, is_sampled=True)
    assert parse_traceparent(GOOD[:-1] + "0") == TraceContext(TRACE, SPAN, is_sampled=False)


@given(st.integers(0, 255))
def test_only_the_last_flag_says_sampled(flags: int) -> None:
    context = parse_traceparent(f"00-{TRACE}-{SPAN}-{flags:02x}")
    assert context is not None
    assert context.is_sampled == bool(flags & 1)


@pytest.mark.parametrize("end", ["", "-", "-what the future brings", "-01-02"])
def test_a_later_version_may_have_more_and_is_read_as_the_first(end: str) -> None:
    context = parse_traceparent(f"cc-{TRACE}-{SPAN}-01{end}")
    assert context is not None
    assert context.traceparent == GOOD


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"0X-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE}-{SPAN}-0A",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN[1:]}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"cc-{TRACE}-{SPAN}-012",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{'g' * 32}-{SPAN}-01",
        f"00-{chr(0x661) * 32}-{SPAN}-01",  # a digit to Python
        f"{GOOD},{GOOD}",
    ],
)
def test_what_breaks_a_rule_counts_as_absent(text: str) -> None:
    assert parse_traceparent(text) is None


@given(
    st.text()
    | st.text("0f-", min_size=50, max_size=60)
    | st.from_regex(r"\A[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
)
@example(f"fe-{TRACE}-{SPAN}-01-\r\n")
def test_any_text_is_either_refused_or_read_to_a_valid_context(text: str) -> None:
    context = parse_traceparent(text)
    if context is not None:
        assert text[3:52] == context.traceparent[3:52]
        assert parse_traceparent(context.traceparent) == context


@given(CONTEXTS, digits(16))
def test_below_a_span_the_trace_and_its_flag_stay(context: TraceContext, span: str) -> None:
    below = context.under(span)
    assert (below.trace_id, below.span_id) == (context.trace_id, span)
    assert below.is_sampled == context.is_sampled


NAMES = st.text(string.ascii_letters + "-", min_size=1, max_size=12).filter(
    lambda name: name.lower() != "traceparent"
)
VALUES = st.text("abcXYZ0: \t-", max_size=20)
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=3)


def block(*lines: tuple[str, str]) -> bytes:
    return b"NATS/1.0\r\n" + b"".join(f"{n}: {v}\r\n".encode() for n, v in lines) + b"\r\n"


@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT", "traceParent"])
@given(before=LINES, after=LINES)
def test_it_is_found_among_other_headers(
    name: str, before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> None:
    assert traceparent_in(block(*before, (name, GOOD), *after)) == GOOD
    assert traceparent_in(block(*before, *after)) is None


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (b"NATS/1.0\r\ntraceparent:" + GOOD.encode() + b"\r\n\r\n", GOOD),
        (b"NATS/1.0\r\ntraceparent: \t" + GOOD.encode() + b"\t \r\n\r\n", GOOD),
        (block(("traceparent", "")), ""),
        (block(("traceparent", GOOD), ("Traceparent", GOOD)), None),
        (block(("X-traceparent", GOOD)), None),
        (block(("X", f"traceparent: {GOOD}")), None),
        (b"", None),
        (b"traceparent: " + GOOD.encode(), None),
        (b"NATS/1.0\r\ntraceparent: \xff\r\n\r\n", "\xff"),
        (b"NATS/1.0 503\r\n\r\n", None),
    ],
)
def test_one_header_of_that_name_is_found_and_two_are_none(
    headers: bytes, found: str | None
) -> None:
    assert traceparent_in(headers) == found


@given(st.binary())
def test_any_bytes_are_searched_without_a_fault(headers: bytes) -> None:
    traceparent_in(headers)
    traceparent_in(b"\r\ntraceparent:" + headers)
