from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from trio_odin.wire.inflate import Inflate, InflateError

COMMAND = b'{"type":"subscribe","channels":["%d.trade"]}'


class Client:
    """Deflates messages as `websockets` does."""

    def __init__(self, *, takes_over: bool, bits: int = 15) -> None:
        self._extension = PerMessageDeflate(True, not takes_over, 15, bits)

    def message(self, text: bytes) -> bytes:
        return bytes(self._extension.encode(Frame(Opcode.TEXT, text)).data)


def inflated(inflate: Inflate, pieces: Iterable[bytes]) -> bytes:
    return b"".join([*map(inflate.feed, pieces), inflate.end()])


@given(
    texts=st.lists(st.binary(max_size=300), max_size=12),
    takes_over=st.booleans(),
    bits=st.integers(9, 15),
    size=st.integers(1, 50),
)
def test_messages_in_pieces_come_out_as_they_were(
    texts: list[bytes], takes_over: bool, bits: int, size: int
) -> None:
    client, inflate = (
        Client(takes_over=takes_over, bits=bits),
        Inflate(window_bits=bits, max_bytes=300),
    )
    for number, text in enumerate(texts):
        # All are as long as a command, so that the window may be forgotten.
        text = COMMAND % number + text[: 300 - 60]
        data = client.message(text)
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert inflated(inflate, pieces) == text


def test_a_client_that_refers_to_nothing_costs_nothing() -> None:
    client, inflate = Client(takes_over=False), Inflate(window_bits=9, max_bytes=16_384)
    fresh = sum(map(sys.getsizeof, (inflate, inflate._window)))
    for number in range(5):
        assert inflate.keeps_window
        assert inflated(inflate, [client.message(COMMAND % number)]) == COMMAND % number
    assert not inflate.keeps_window
    assert sum(map(sys.getsizeof, (inflate, inflate._window))) <= fresh < 300
    assert inflated(inflate, [client.message(COMMAND % 9)]) == COMMAND % 9


def test_a_client_that_refers_to_its_past_is_served_for_long() -> None:
    client, inflate = Client(takes_over=True, bits=9), Inflate(window_bits=9, max_bytes=16_384)
    for number in range(200):
        text = COMMAND % number + os.urandom(number % 7 * 100)
        assert inflated(inflate, [client.message(text)]) == text
    assert inflate.keeps_window
    assert inflate._window is not None
    assert len(inflate._window) == 512


def test_short_messages_prove_nothing() -> None:
    client, inflate = Client(takes_over=True), Inflate(window_bits=15, max_bytes=16_384)
    for number in range(20):
        text = b"%d" % number
        assert inflated(inflate, [client.message(text)]) == text
    assert inflated(inflate, [client.message(COMMAND % 1)]) == COMMAND % 1
    assert inflated(inflate, [client.message(COMMAND % 1)]) == COMMAND % 1


@pytest.mark.parametrize("size", [999, 1000])
def test_a_message_up_to_the_limit_is_whole(size: int) -> None:
    inflate = Inflate(window_bits=15, max_bytes=1000)
    assert len(inflated(inflate, [Client(takes_over=False).message(b"x" * size)])) == size


@pytest.mark.parametrize("pieces", [1, 1000])
def test_a_bomb_comes_out_as_little_more_than_the_limit(pieces: int) -> None:
    bomb = Client(takes_over=False).message(bytes(10_000_000))
    assert len(bomb) < 11_000
    size = -(-len(bomb) // pieces)
    inflate = Inflate(window_bits=15, max_bytes=1000)
    out = b"".join(inflate.feed(bomb[at : at + size]) for at in range(0, len(bomb), size))
    assert len(out) == 1004
    assert inflate.end() == b""
    text = COMMAND % 1
    assert inflated(inflate, [Client(takes_over=False).message(text)]) == text


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x06", b"\0\1\0\0\0x", b"\x03\x02\xff" * 3])
def test_what_is_not_deflated_is_an_error(data: bytes) -> None:
    inflate = Inflate(window_bits=15, max_bytes=1000)
    with pytest.raises(InflateError):
        inflated(inflate, [data * 3])


def test_what_refers_to_what_was_never_sent_is_an_error() -> None:
    client, inflate = Client(takes_over=True), Inflate(window_bits=15, max_bytes=1000)
    client.message(b"the first message did not arrive")
    with pytest.raises(InflateError):
        inflated(inflate, [client.message(b"the first message did not arrive")])


def test_a_message_may_end_with_a_last_block() -> None:
    """RFC 7692, 7.2.3.4."""
    compressor = zlib.compressobj(wbits=-15)
    data = compressor.compress(b"Hello") + compressor.flush() + b"\0"
    inflate = Inflate(window_bits=15, max_bytes=1000)
    assert inflated(inflate, [data]) == b"Hello"
    assert inflated(inflate, [data[:3], data[3:]]) == b"Hello"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        # RFC 7692, 7.2.3.1 to 7.2.3.5.
        ("f248cdc9c90700", "Hello"),
        ("000500faff48656c6c6f00", "Hello"),
        ("f348cdc9c9070000", "Hello"),
        ("f248050000 00ffff cac9c90700", "Hello"),
        ("00", ""),
    ],
)
def test_the_examples_of_the_rfc_are_read(data: str, text: str) -> None:
    inflate = Inflate(window_bits=15, max_bytes=1000)
    assert inflated(inflate, [bytes.fromhex(data)]) == text.encode()
