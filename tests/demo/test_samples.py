from __future__ import annotations

import json
from collections import Counter

import pytest

from trio_odin.demo.samples import BadLine, Sample, of_lines, of_market
from trio_odin.demo.savings import bytes_an_event, dictionary_of, texts_of
from trio_odin.wire.compression import PLAIN, Z1, Deflate
from trio_odin.wire.dictionary import built_in

SIZE = 4096


def trades(count: int) -> list[Sample]:
    return [one for one in of_market(2 * count) if one.channel.endswith(".trade")][:count]


def test_the_market_is_the_same_each_time_and_has_all_event_types() -> None:
    samples = of_market(3000)
    assert samples == of_market(3000)
    assert len({one.channel.partition(".")[0] for one in samples}) == 30
    types = Counter(one.channel.partition(".")[2] for one in samples)
    assert len(types) == 8
    assert 0.6 < types["trade"] / 3000 < 0.8


def test_lines_are_channels_and_payloads() -> None:
    lines = [b'A.trade\t{"a":1}\n', b"\n", b"B.x\tnull\r\n", b'C.y\t"a\tb"']
    with pytest.raises(BadLine, match="line 4: "):  # a tab in a string is no JSON
        of_lines(lines)
    assert of_lines(lines[:3]) == [Sample("A.trade", b'{"a":1}'), Sample("B.x", b"null")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"A.trade {}", "there is no tab|no channel"),
        (b"A.trade\t", "truncated"),
        (b"A.trade\t{", "truncated"),
        (b"A\t{}", "'A' is no channel"),
        (b"\t{}", "'' is no channel"),
        (b"odin.token.A.trade\t{}", "no channel"),
        (b"\xff.trade\t{}", "no channel"),
        (b'A.b\t"\xff"', "utf-8"),
    ],
)
def test_a_bad_line_is_named(line: bytes, complaint: str) -> None:
    with pytest.raises(BadLine, match=f"line 2: allowed is .*({complaint})"):
        of_lines([b"A.b\t{}\n", line])


def test_messages_have_the_form_of_the_protocol() -> None:
    samples = of_market(11)
    single = [json.loads(text) for text in texts_of(samples)]
    assert all(
        {"ts", "type", "priority", "data", "channel", "offset"} <= one.keys() for one in single
    )
    batches = [json.loads(text) for text in texts_of(samples, 5)]
    assert batches
    assert {one["type"] for one in batches} == {"price:batch"}
    assert {len(one["events"]) for one in batches[:-1]} <= {5}
    events = [event for one in batches for event in one["events"]]
    assert sum(1 + event.get("skipped", 0) for event in events) == len(single)
    by_offset = {one["offset"]: one for one in single}
    for event in events:
        for key in ("channel", "data", "ts"):
            assert event[key] == by_offset[event["offset"]][key]


def test_the_dictionary_of_the_package_is_that_of_the_market() -> None:
    made_of = of_market(3000)[:1500]
    assert dictionary_of(made_of, SIZE) == built_in().content, (
        "run: trio-odin dictionary --market --out trio_odin/wire/dictionary.bin"
    )


def test_the_bytes_of_an_event_are_what_they_were() -> None:
    """Of 3,000 trades of the market, with all headers."""
    samples, z1, deflate = trades(3000), Z1(built_in().content), Deflate(12)
    batches = (1, 5, 15, 30)
    table = [
        [round(bytes_an_event(samples, encoding, batch)) for batch in batches]
        for encoding in (PLAIN, deflate, z1)
    ]
    plain, deflated, with_dictionary = table
    assert plain[0] == pytest.approx(387, abs=4)
    assert deflated == [pytest.approx(figure, abs=4) for figure in (285, 113, 76, 66)]
    assert with_dictionary == [pytest.approx(figure, abs=4) for figure in (153, 77, 62, 58)]
    assert with_dictionary[0] <= 0.45 * plain[0]
    assert deflated[0] <= 0.80 * plain[0]
    assert with_dictionary[3] <= 0.30 * plain[0]
    assert deflated[3] <= 0.35 * plain[0]
