from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.wire.compression import Z1
from trio_odin.wire.shapes import _tokens, make_dictionary, public_strings

SIZE = 4096


def texts(count: int, **fields: Any) -> list[bytes]:
    """Objects with these fields; one that is callable is called with the number."""
    return [
        json.dumps({k: v(n) if callable(v) else v for k, v in fields.items()}).encode()
        for n in range(count)
    ]


def made_of(**fields: Any) -> str:
    return make_dictionary(texts(100, **fields), SIZE).decode()


def test_keys_and_punctuation_are_in_it_and_what_varies_is_not() -> None:
    made = made_of(
        price=lambda n: 1000.5 + n, text=lambda n: f"unique {n}", size=lambda n: -n * 999
    )
    assert '{"price": ' in made
    assert ', "text": "' in made
    assert '", "size": ' in made
    assert "unique" not in made
    assert "1000" not in made
    assert "999" not in made


def test_what_is_enumerated_is_in_it() -> None:
    made = made_of(side=lambda n: ["buy", "sell"][n % 2], flag=True, none=None, decimals=6)
    assert '"buy", "flag": true, "none": null, "decimals": 6}' in made
    assert '"sell"' in made


@pytest.mark.parametrize(
    "value",
    [
        lambda n: f"often{n % 2}" if n < 60 else f"rare{n}",  # not nearly all
        lambda n: f"trader {n // 3}",  # each of them three times
        lambda n: "0x" + f"{n % 2}" * 40,  # few, and like the number of an account
        lambda n: f"account {10_000 + n % 2}",
        lambda n: "5f2a9c01-8b7d",
        lambda n: f"{'long ' * 20}{n % 2}",
        lambda n: 12_345,
        lambda n: [12_345, 67_890][n % 2],
        lambda n: f"{'ab'[n % 2]}@example.com",
        lambda n: "4111 1111 1111 1111",
        lambda n: "+44 20 79 46 09",
        lambda n: "555-01-23",
        lambda n: "10.0.0.1",
        lambda n: "::1",
        lambda n: "GB29 NWBK 6016 1331 9268 19",
        lambda n: "AB 12 3 4.5",
        lambda n: "eyJhbGciOiJub25lIn0.e30.",
        lambda n: "k3J9xQ2m",
        lambda n: "sessiona1b23",
        lambda n: "\uff14\uff11\uff11\uff11\uff11",
        lambda n: "\u0664\u0661\u0661\u0661\u0661",
    ],
)
def test_what_may_be_private_is_not(value: Any) -> None:
    for made in (made_of(who=value, x=lambda n: n), made_of(more={"list": 1}, who=value)):
        assert '"who": ' in made
        assert not any(json.dumps(value(n)).strip('"') in made for n in range(100))


def test_the_keys_of_a_table_are_values() -> None:
    objects = [
        json.dumps({"balances": {f"account{n}": n, f"account{n + 1}": 5}}).encode()
        for n in range(100)
    ]
    made = make_dictionary(objects, SIZE).decode()
    assert "balances" in made
    assert "account" not in made


def test_channels_of_many_symbols_have_few_event_types() -> None:
    objects = texts(1000, channel=lambda n: f"TKN{n}.{['trade', 'social'][n % 2]}", x=1)
    made = make_dictionary(objects, SIZE).decode()
    assert '.trade", "x": 1}' in made
    assert '.social"' in made
    assert "TKN" not in made
    assert public_strings(made.encode(), objects)["channel.event type"] == [".social", ".trade"]


@pytest.mark.parametrize(("count", "is_in"), [(16, True), (18, False)])
def test_few_values_of_a_payload_are_enumerated(count: int, is_in: bool) -> None:
    made = make_dictionary(texts(2000, data=lambda n: {"who": f"name {n % count:x}."}), SIZE)
    assert (b"name" in made) == is_in
    assert b'"who": ' in made


def test_symbols_of_channels_are_public_wherever_they_are() -> None:
    objects = texts(
        2000, data=lambda n: {"id": f"TKN{n % 90}"}, channel=lambda n: f"TKN{n % 90}.trade"
    )
    made = make_dictionary(objects, SIZE)
    found = public_strings(made, objects)
    assert len(found["data.id"]) == len(found["channel.symbol"]) == 90


def test_batches_add_nothing_of_payloads() -> None:
    """Only the newest event of each channel is in a batch, so shares may be others there."""
    payloads = [{"who": f"name{n % 4}" if n < 100 else f"rare{n}"} for n in range(200)]
    singles = texts(200, data=payloads.__getitem__, channel="A.b")
    batches = texts(25, events=lambda n: [{"data": payloads[n * 4 + k]} for k in range(4)])
    assert b"name" in make_dictionary(batches, SIZE), "else the test means nothing"
    made = make_dictionary(singles, SIZE, batches)
    assert b"name" not in made
    assert b'"events": [{"data": {"who": "' in made


def test_every_string_that_is_in_it_is_listed() -> None:
    objects = texts(
        200,
        data=lambda n: {"side": ["buy", "sell"][n % 2], "k\u202ey": "\u009bx", "\x1b": 7},
        channel=lambda n: f"{'AB'[n % 2]}.trade",
        events=[{"x": "ours"}],
    )
    made = make_dictionary(objects, SIZE)
    raw = [text.decode("unicode_escape").encode() for text in objects]
    assert public_strings(made, objects) == {
        "channel.event type": [".trade"],
        "channel.symbol": ["A", "B"],
        "data.\\u001b": ["7"],
        "data.k\\u202ey": ["\\u009bx"],
        "data.side": ["buy", "sell"],
        "data.keys": ["\\u001b", "k\\u202ey", "side"],
    }
    found = public_strings(make_dictionary(raw, SIZE), raw)
    assert found["data.k\\u202ey"] == ["\\x9bx"]
    assert public_strings(b"nothing of them", objects) == {}


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=3), max_size=9))
def test_what_is_listed_can_be_shown(payloads: list[dict[str, str]]) -> None:
    objects = [
        json.dumps({"data": payload}, ensure_ascii=False).encode(errors="replace")
        for payload in payloads * 9
    ]
    found = public_strings(make_dictionary(objects, SIZE), objects)
    assert all(text.isprintable() for place in found for text in (place, *found[place]))


def test_the_most_useful_is_at_the_end_and_the_size_is_kept() -> None:
    objects = texts(100, **{f"key_number_{n:02}": float for n in range(60)})
    whole = make_dictionary(objects, SIZE)
    for size in (1, 10, 100, 1000, len(whole)):
        assert len(make_dictionary(objects, size)) <= size
    rare = texts(10, rarely_seen_key=lambda n: n * 1000)
    made = make_dictionary([*objects, *rare], SIZE)
    assert made.index(b"rarely_seen_key") < made.index(b"key_number_00")


def test_the_same_texts_make_the_same_dictionary() -> None:
    objects = texts(100, a=lambda n: n, b=lambda n: f"x{n % 3}", c={"d": [1, 2.5, "e"]})
    shuffled = random.Random(1).sample(objects, len(objects))
    assert make_dictionary(objects, SIZE) == make_dictionary(shuffled, SIZE) != b""
    assert make_dictionary([], SIZE) == b""


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.sampled_from([None, 1]), st.booleans())
def test_tokens_together_are_the_text(
    content: dict[str, Any], indent: int | None, is_ascii: bool
) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=is_ascii).encode()
    assert b"".join(token.text for token in _tokens(text)) == text


@given(st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=20))
def test_any_objects_make_a_dictionary(contents: list[dict[str, Any]]) -> None:
    objects = [json.dumps(content).encode() for content in contents]
    made = make_dictionary(objects, 500)
    assert len(made) <= 500
    # Whatever is in it was in some of the texts, four times at least.
    assert len(objects) >= 4 or not made or sum(map(len, objects)) > len(made)
    if made:
        assert len(Z1(made).body(b"," + objects[0][1:])) > 0


def test_a_dictionary_of_its_own_saves_more() -> None:
    objects = texts(
        200, price=lambda n: n * 1.37, side=lambda n: ["buy", "sell"][n % 2], venue="amm", fee=0.3
    )
    tail = b"," + objects[0][1:]
    ours = len(Z1(make_dictionary(objects[100:], SIZE)).body(tail))
    assert ours < 0.5 * len(Z1(b"nothing of the kind").body(tail))
