from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_odin.client import z1
from trio_odin.client.z1 import Download, Reader, Unreadable, offers

DICTIONARY = b'{"type":"price:update","priority":1,"data":{"price":'
ID = hashlib.sha256(DICTIONARY).hexdigest()[:16]
ANNOUNCED = json.dumps({"type": "dictionary", "id": ID, "bytes": 1, "url": f"/dictionary/{ID}"})


@pytest.fixture(autouse=True)
def _without_dictionaries() -> Iterator[None]:
    z1._dictionaries.clear()
    yield
    z1._dictionaries.clear()


def ready() -> Reader:
    z1._dictionaries.clear()
    reader = Reader("trio-odin.z1")
    assert not reader.is_ready
    reader.prepare(ANNOUNCED)
    assert reader.wanted == f"/dictionary/{ID}"
    reader.take_dictionary(DICTIONARY)
    assert reader.is_ready
    return reader


def packed(seq: int, content: Any) -> bytes:
    number = b""
    while seq > 0x7F:
        number += bytes([seq & 0x7F | 0x80])
        seq >>= 7
    deflate = zlib.compressobj(wbits=-15, zdict=DICTIONARY)
    body = deflate.compress(json.dumps(content).encode()) + deflate.flush()
    return number + bytes([seq]) + body


@given(st.integers(0, 2**40), st.dictionaries(st.text(), st.integers()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_binary_messages_are_read(seq: int, content: dict[str, int]) -> None:
    content.pop("seq", None)
    assert ready().read(packed(seq, content)) == {"seq": seq, **content}


@given(st.one_of(st.binary(), st.text()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_else_is_unreadable_or_an_object(data: bytes | str) -> None:
    with suppress(Unreadable):
        assert isinstance(ready().read(data), dict)


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(z1, "_MESSAGE_MAX_BYTES", 1000)
    with pytest.raises(Unreadable, match="more than 1000 bytes"):
        ready().read(packed(1, {"a": "x" * 10_000}))


def test_a_dictionary_is_loaded_once_and_offered_from_then_on() -> None:
    assert offers(is_compressed=False) == ["trio-odin"]
    assert offers(is_compressed=True) == ["trio-odin.z1", "trio-odin"]
    ready()
    assert offers(is_compressed=True) == [f"trio-odin.z1.{ID}", "trio-odin.z1", "trio-odin"]
    again = Reader(f"trio-odin.z1.{ID}")
    assert again.is_ready
    assert again.read(packed(3, {"a": 1})) == {"seq": 3, "a": 1}
    known = Reader("trio-odin.z1")
    known.prepare(ANNOUNCED)
    assert (known.is_ready, known.wanted) == (True, None)
    assert Reader(None).is_ready
    assert Reader("trio-odin").is_ready


@pytest.mark.parametrize(
    "first",
    [
        "{}",
        "nonsense",
        b"\xff",
        '{"type":"dictionary","id":"","url":"/x"}',
        '{"type":"dictionary","id":"0123456789abcdef","url":"http://elsewhere/"}',
    ],
)
def test_a_first_message_without_a_dictionary_is_an_error(first: str | bytes) -> None:
    with pytest.raises(Unreadable):
        Reader("trio-odin.z1").prepare(first)


def test_another_dictionary_is_not_taken() -> None:
    reader = Reader("trio-odin.z1")
    reader.prepare(ANNOUNCED)
    with pytest.raises(Unreadable, match="not the announced one"):
        reader.take_dictionary(b"other")
    assert not reader.is_ready


def answer(status: str = "200 OK", body: bytes = DICTIONARY) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_download_takes_the_answer_in_any_pieces() -> None:
    download = Download("a:1", "/dictionary/x")
    assert download.request.startswith(b"GET /dictionary/x HTTP/1.1\r\nHost: a:1\r\n")
    data = answer()
    pieces = [download.take(data[at : at + 1]) for at in range(len(data))]
    assert pieces[-1] == DICTIONARY
    assert not any(pieces[:-1])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (answer("404 Not Found"), "answers 404"),
        (b"", "no answer|no dictionary"),
        (b"nonsense\r\n\r\n", "no dictionary"),
        (answer(body=bytes(1024 * 1024 + 1)), "over 1048576 bytes"),
    ],
)
def test_a_download_that_fails_says_why(data: bytes, sentence: str) -> None:
    with pytest.raises(Unreadable, match=sentence):
        Download("a:1", "/dictionary/x").take(data)


def test_a_path_that_is_none_is_not_asked_for() -> None:
    with pytest.raises(Unreadable):
        Download("a:1", "/x\r\nHost: b")


def test_a_number_that_is_too_large_is_read_all_the_same() -> None:
    reader = Reader("trio-odin")
    text = '{"type":"price:update","data":{"price":1e400,"n":%s}}'
    assert reader.read(text % 5)["data"] == {"price": float("inf"), "n": 5}
    assert reader.read(text % ("9" * 5000))["data"]["n"] == float("inf")
