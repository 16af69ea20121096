"""Publications on connections of every encoding, against the plain bytes."""

from __future__ import annotations

import gc
import json
import os
from contextlib import AsyncExitStack, suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.fanout.test_outbound import OwnerOfOne
from tests.wire.test_compression import DICTIONARY, ENCODINGS, SEQS, frame_end, text_in
from trio_odin.fanout.outbound import Outbound, defer, fan_out
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.replay_buffer import ReplayBudget, ReplayBuffer
from trio_odin.fanout.slow_consumers import OutboxRules, SlowPolicy
from trio_odin.ledger.counters import Ledger
from trio_odin.wire.compression import PLAIN, Z1, Deflate, Encoding
from trio_odin.wire.frames import text_frame

COMPRESSED = [encoding for encoding in ENCODINGS if encoding is not PLAIN]


def event(number: int = 1, *, size: int = 40, channel: str = "BTC.trade") -> Publication:
    payload = json.dumps({"price": number, "text": "x" * size}).encode()
    return Publication(channel, payload, offset=number, unix_ms=1759027038365, prev=number - 1)


def counted(encoding: Encoding, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The tails that are compressed from now on."""
    tails: list[bytes] = []
    original = encoding.body

    def body(tail: bytes) -> bytes:
        tails.append(tail)
        return original(tail)

    monkeypatch.setattr(encoding, "body", body)
    return tails


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(seq=SEQS, size=st.integers(0, 500), skipped=st.integers(0, 3), total=st.integers(0, 3))
def test_a_frame_in_pieces_is_the_plain_one_in_another_form(
    encoding: Encoding, seq: int, size: int, skipped: int, total: int
) -> None:
    publication = event(size=size)
    pieces = publication.pieces(seq, skipped, total, encoding)
    plain = b"".join(publication.pieces(seq, skipped, total))
    assert text_in(encoding, b"".join(pieces)) == text_in(PLAIN, plain)
    assert publication.frame_bytes(seq, skipped, total, encoding) == sum(map(len, pieces))
    if not skipped and not total:
        assert publication.frame(seq, encoding) == b"".join(pieces)


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_body_is_compressed_once_for_all(
    encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    tails = counted(encoding, monkeypatch)
    publication = event()
    for seq in range(5):
        publication.frame(seq)
    assert tails == []  # nobody has asked for it
    for seq in range(5):
        publication.frame(seq, encoding)
        publication.pieces(seq, encoding=encoding)
    kept = publication.kept.publication()
    assert kept is not None
    kept.frame(7, encoding)
    publication.kept.let_go()
    publication.again().frame(8, encoding)
    assert len(tails) == 1


def test_what_is_compressed_counts_as_kept_and_is_released() -> None:
    budget = ReplayBudget(100_000)
    publication = event(size=1000)
    budget.add(publication.kept)
    before = budget.used_bytes
    body = len(publication.pieces(1, encoding=COMPRESSED[0])[1])
    assert budget.used_bytes == before + body
    opened = len(publication.pieces(1, 3, encoding=COMPRESSED[0])[1])
    assert budget.used_bytes == before + body + opened == publication.kept.size + 512
    publication.kept.let_go()
    assert publication.kept.size == 0
    publication.frame(1, COMPRESSED[1])  # it is in an outbox only
    assert publication.kept.size == 0
    assert budget.used_bytes == before + body + opened  # as the budget itself has not released it
    del publication
    gc.collect()
    assert budget.used_bytes == 0


def test_growth_releases_the_oldest() -> None:
    publications = [event(number, size=900) for number in range(6)]
    size = publications[0].kept.size + 512
    budget = ReplayBudget(6 * size)
    for one in publications:
        budget.add(one.kept)
    assert budget.used_bytes <= budget.limit_bytes
    for one in publications[1:]:
        one.frame(1, COMPRESSED[0])
    assert budget.used_bytes <= budget.limit_bytes
    assert publications[0].kept.publication() is None
    assert publications[-1].kept.publication() is not None
    assert text_in(PLAIN, publications[0].frame(1))[0] == 1  # outboxes keep it


class Reader:
    """An outbound side of an encoding over a pair of sockets, and what arrives at its other end."""

    def __init__(self, encoding: Encoding, rules: OutboxRules, ledger: Ledger) -> None:
        near, self.far = trio.socket.socketpair()
        self.encoding = encoding
        self.rest = b""  # the part of a frame
        self.owner = OwnerOfOne()
        self.outbound = Outbound(
            trio.SocketStream(near),
            replay_buffer=ReplayBuffer(100),
            rules=rules,
            ledger=ledger,
            owner=self.owner,
            encoding=encoding,
        )
        self.owner.outbound = self.outbound

    async def __aenter__(self) -> Reader:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.outbound.aclose()
        self.far.close()

    def texts(self) -> list[tuple[int, str]]:
        """The messages that have arrived: `seq`, and the rest."""
        with suppress(BlockingIOError):
            while chunk := os.read(self.far.fileno(), 1 << 20):
                self.rest += chunk
        messages = []
        while (end := frame_end(self.rest)) <= len(self.rest):
            messages.append(text_in(self.encoding, self.rest[:end]))
            self.rest = self.rest[end:]
        return messages


async def test_connections_of_all_encodings_get_the_same_events() -> None:
    ledger, rules = Ledger(), OutboxRules()
    async with AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(Reader(encoding, rules, ledger))
            for encoding in ENCODINGS
            for _ in range(2)
        ]
        outbounds = [reader.outbound for reader in readers]
        for number in range(5):
            fan_out(event(number), outbounds, ledger)
        for number in range(5, 9):
            defer(event(number), outbounds, ledger, lambda _: None)
        for outbound in outbounds:
            outbound.take_turn()
        found = [reader.texts() for reader in readers]
    assert [seq for seq, _ in found[0]] == list(range(1, 10))
    assert all(texts == found[0] for texts in found)
    assert ledger.deliveries.imbalance() == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_slow_client_gets_conflated_events_in_its_encoding(
    encoding: Encoding, nursery: trio.Nursery
) -> None:
    """Those that waited report what was skipped, and what was half written goes on."""
    ledger = Ledger()
    rules = OutboxRules(SlowPolicy.CONFLATE, 512, 10**9)
    published: dict[int, bytes] = {}
    texts: list[tuple[int, str]] = []
    number = 0
    async with Reader(encoding, rules, ledger) as reader:
        while reader.outbound.counts()["conflated"] < 20:
            number += 1
            payload = json.dumps([number, os.urandom(3000).hex()]).encode()
            published[number] = payload
            one = Publication(f"T{number % 3}.trade", payload, offset=number, unix_ms=1)
            fan_out(one, [reader.outbound], ledger)
        nursery.start_soon(reader.outbound.run_writer)
        with trio.fail_after(10):
            while not texts or texts[-1][0] < number:
                await trio.lowlevel.wait_readable(reader.far)
                texts += reader.texts()
        assert not reader.rest
    contents = [json.loads(text) for _, text in texts]
    skipped = sum(content.get("skipped", 0) for content in contents)
    assert skipped >= 20
    assert len(texts) + skipped == number
    assert max(content.get("skipped_total", 0) for content in contents) == skipped
    for (seq, _), content in zip(texts, contents, strict=True):
        assert json.dumps(content["data"]).encode() == published[seq]
    assert ledger.deliveries.imbalance() == 0
    assert rules.budget.used_bytes == 0


async def test_large_events_wait_without_a_copy() -> None:
    encoding = Z1(DICTIONARY)
    one = Publication("A.b", json.dumps(os.urandom(40_000).hex()).encode(), offset=1, unix_ms=1)
    shared = one.pieces(1, encoding=encoding)[1]
    assert one.pieces(2, encoding=encoding)[1] is shared
    assert len(shared) > 16 * 1024


async def test_ready_text_is_never_plain_among_deflated_events() -> None:
    ledger = Ledger()
    async with Reader(Deflate(12), OutboxRules(), ledger) as reader:
        fan_out(event(), [reader.outbound], ledger)
        assert reader.outbound.send_soon(text_frame(b'{"seq":7,"type":"gap"}'))
        await reader.outbound.answer([text_frame(b'{"seq":8,"type":"pong"}')])
        assert [seq for seq, _ in reader.texts()] == [1, 7, 8]
