from __future__ import annotations

import os
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from trio_odin.overload.byte_budget import ByteBudget
from trio_odin.wire.inflate import Inflate, InflateError

COMMAND = b'{"type":"subscribe","channels":["%d.trade"]}'


class Client:
    """Deflates messages as `websockets` does."""

    def __init__(self, *, takes_over: bool, bits: int = 15) -> None:
        self._extension = PerMessageDeflate(True, not takes_over, 15, bits)

    def message(self, text: bytes) -> bytes:
        return bytes(self._extension.encode(Frame(Opcode.TEXT, text)).data)


def an_inflate(
    *, bits: int = 15, max_bytes: int = 1000, budget: ByteBudget | None = None
) -> Inflate:
    return Inflate(window_bits=bits, max_bytes=max_bytes, budget=budget or ByteBudget())


def inflated(inflate: Inflate, pieces: Iterable[bytes]) -> bytes:
    for piece in pieces:
        inflate.feed(piece)
    return inflate.end()


def finished(text: bytes) -> bytes:
    """Deflated, with a block that is marked as the last."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(text) + compressor.flush()


@given(
    texts=st.lists(st.binary(max_size=300), max_size=12),
    takes_over=st.booleans(),
    bits=st.integers(9, 15),
    size=st.integers(1, 50),
)
def test_messages_in_pieces_come_out_as_they_were(
    texts: list[bytes], takes_over: bool, bits: int, size: int
) -> None:
    client, inflate = Client(takes_over=takes_over, bits=bits), an_inflate(bits=bits, max_bytes=300)
    for number, text in enumerate(texts):
        # All are as long as a command, so that the window may be forgotten.
        text = COMMAND % number + text[: 300 - 60]
        data = client.message(text)
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert inflated(inflate, pieces) == text


def test_a_client_that_refers_to_nothing_costs_nothing() -> None:
    budget = ByteBudget()
    client, inflate = Client(takes_over=False), an_inflate(bits=9, budget=budget)
    for number in range(5):
        assert inflate.keeps_window
        assert inflated(inflate, [client.message(COMMAND % number)]) == COMMAND % number
        assert (budget.used_bytes > 0) == inflate.keeps_window == (number < 4)
    assert inflated(inflate, [client.message(COMMAND % 9)]) == COMMAND % 9
    assert budget.used_bytes == 0


def test_a_client_that_refers_to_its_past_is_served_for_long() -> None:
    budget = ByteBudget()
    client, inflate = Client(takes_over=True, bits=9), an_inflate(bits=9, budget=budget)
    for number in range(200):
        text = COMMAND % number + os.urandom(number % 7 * 100)
        assert inflated(inflate, [client.message(text)]) == text
    assert inflate.keeps_window
    assert budget.used_bytes == 512
    inflate.let_go()
    assert budget.used_bytes == 0


def test_without_room_for_its_past_a_client_may_not_refer_to_it() -> None:
    text = COMMAND % 1
    budget = ByteBudget(limit_bytes=2 * len(text))
    clients = [(Client(takes_over=True), an_inflate(budget=budget)) for _ in range(2)]
    for client, inflate in clients:
        assert inflated(inflate, [client.message(text)]) == text
    client, inflate = clients[0]
    assert inflated(inflate, [client.message(text)]) == text, "this one refers to what is kept"
    assert budget.used_bytes == len(text), "now its window has no room"
    with pytest.raises(InflateError):
        inflated(inflate, [client.message(text)])
    client, inflate = clients[1]
    assert inflated(inflate, [client.message(text)]) == text
    alone = Client(takes_over=False)
    inflate = an_inflate(budget=ByteBudget(limit_bytes=1))
    assert [inflated(inflate, [alone.message(text)]) for _ in range(9)] == [text] * 9


def test_short_messages_prove_nothing() -> None:
    client, inflate = Client(takes_over=True), an_inflate()
    for number in range(20):
        text = b"%d" % number
        assert inflated(inflate, [client.message(text)]) == text
    assert inflated(inflate, [client.message(COMMAND % 1)]) == COMMAND % 1
    assert inflated(inflate, [client.message(COMMAND % 1)]) == COMMAND % 1


@pytest.mark.parametrize("size", [999, 1000])
def test_a_message_up_to_the_limit_is_whole(size: int) -> None:
    inflate = an_inflate()
    assert len(inflated(inflate, [Client(takes_over=False).message(b"x" * size)])) == size
    assert not inflate.is_excessive


@pytest.mark.parametrize("text", [bytes(1001), bytes(10_000_000), "€".encode() * 1000])
@pytest.mark.parametrize("pieces", [1, 1000])
def test_a_message_beyond_the_limit_is_not_inflated(text: bytes, pieces: int) -> None:
    data = Client(takes_over=False).message(text)
    size = -(-len(data) // pieces)
    budget = ByteBudget()
    inflate = an_inflate(budget=budget)
    assert inflated(inflate, (data[at : at + size] for at in range(0, len(data), size))) == b""
    assert inflate.is_excessive
    assert budget.used_bytes == 0


@pytest.mark.parametrize("piece", [b"\0\0\0\xff\xff", b"\2\0", finished(b"") + b"\0" * 99])
def test_a_message_of_empty_blocks_has_an_end(piece: bytes) -> None:
    """They inflate to nothing, so only what is received can be counted."""
    inflate = an_inflate()
    received = 0
    while not inflate.is_excessive:
        inflate.feed(piece)
        received += len(piece)
        assert received < 3000
    assert received > 2000
    assert inflate.end() == b""


def test_what_cannot_be_compressed_may_be_as_long_as_any_message() -> None:
    text = os.urandom(1000)
    compressor = zlib.compressobj(0, wbits=-15)
    # A client may flush what it has at any time.
    parts = [
        compressor.compress(text[at : at + 10]) + compressor.flush(zlib.Z_SYNC_FLUSH)
        for at in range(0, 1000, 10)
    ]
    assert inflated(an_inflate(), [b"".join(parts)[:-4]]) == text


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x06", b"\0\1\0\0\0x", b"\x03\x02\xff" * 3])
def test_what_is_not_deflated_is_an_error(data: bytes) -> None:
    inflate = an_inflate()
    with pytest.raises(InflateError):
        inflated(inflate, [data * 3])


def test_what_refers_to_what_was_never_sent_is_an_error() -> None:
    client, inflate = Client(takes_over=True), an_inflate()
    client.message(b"the first message did not arrive")
    with pytest.raises(InflateError):
        inflated(inflate, [client.message(b"the first message did not arrive")])


def test_a_message_may_end_with_a_last_block() -> None:
    """RFC 7692, 7.2.3.4."""
    data = finished(b"Hello") + b"\0"
    assert inflated(an_inflate(), [data]) == b"Hello"
    assert inflated(an_inflate(), [data[:3], data[3:]]) == b"Hello"


@given(st.lists(st.booleans(), min_size=1, max_size=64), st.integers(1, 40))
def test_blocks_may_follow_one_that_is_marked_as_the_last(lasts: list[bool], size: int) -> None:
    """RFC 7692, 7.2.1."""
    parts = [b"part %d " % number for number in range(len(lasts))]
    data = b"".join(
        finished(part) if is_last else Client(takes_over=False).message(part) + b"\0\0\xff\xff"
        for part, is_last in zip(parts, [*lasts[:-1], False], strict=True)
    )[:-4]
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    inflate = an_inflate()
    assert inflated(inflate, pieces) == b"".join(parts)
    assert inflated(inflate, pieces) == b"".join(parts)


@pytest.mark.parametrize("rest", [b"\xff", b"\x07", b"garbage"])
def test_garbage_after_a_last_block_is_an_error(rest: bytes) -> None:
    with pytest.raises(InflateError):
        inflated(an_inflate(), [finished(b"Hello") + rest])


def test_a_message_has_a_bounded_number_of_last_blocks() -> None:
    assert inflated(an_inflate(), [finished(b"") * 63 + b"\0"]) == b""
    with pytest.raises(InflateError, match="more than 64"):
        inflated(an_inflate(), [finished(b"") * 64 + b"\0"])


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
    inflate = an_inflate()
    assert inflated(inflate, [bytes.fromhex(data)]) == text.encode()
