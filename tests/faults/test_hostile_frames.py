"""Frames that break RFC 6455 end only their own connection, with the proper code."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.faults.attacker import (
    CLOSE,
    CONTINUATION,
    FIN,
    PING,
    PONG,
    TEXT,
    raw_frame,
)
from tests.faults.conftest import Record
from tests.faults.rig import rig

_CLIENTS = 60
_START = TEXT & ~FIN  # of a message in several frames


def _endless(length: bytes) -> bytes:
    """A frame of enormous length, and its first 20 KB."""
    return raw_frame(TEXT, b"x" * 20_000, length=b"\x7f" + length)


# Violations of the rules, and their codes in RFC 6455, 7.4.1.
_MALFORMED: dict[str, tuple[bytes, set[int]]] = {
    "2^63-1 bytes": (_endless(b"\x7f" + b"\xff" * 7), {1009}),
    "more than 2^63 bytes": (_endless(b"\xff" * 8), {1002, 1009}),
    "16 bits for 5": (raw_frame(TEXT, b"hello", length=b"\x7e\0\5"), {1002}),
    "64 bits for 5": (raw_frame(TEXT, b"hello", length=b"\x7f" + b"\0" * 7 + b"\5"), {1002}),
    "RSV1": (raw_frame(0xC1, b"{}"), {1002}),
    "RSV2": (raw_frame(0xA1, b"{}"), {1002}),
    "RSV3": (raw_frame(0x91, b"{}"), {1002}),
    "opcode 3": (raw_frame(0x83), {1002}),
    "opcode 7": (raw_frame(0x87), {1002}),
    "opcode 11": (raw_frame(0x8B), {1002}),
    "opcode 15": (raw_frame(0x8F), {1002}),
    "unmasked": (bytes((TEXT, 2)) + b"{}", {1002}),
    "a ping of 126 bytes": (raw_frame(PING, b"x" * 126), {1002}),
    "a ping in parts": (raw_frame(PING & ~FIN, b"x"), {1002}),
    "a close of one byte": (raw_frame(CLOSE, b"\3"), {1002}),
    "close 999": (raw_frame(CLOSE, (999).to_bytes(2, "big")), {1002}),
    "close 1005": (raw_frame(CLOSE, (1005).to_bytes(2, "big")), {1002}),
    "close 1006": (raw_frame(CLOSE, (1006).to_bytes(2, "big")), {1002}),
    "close 1015": (raw_frame(CLOSE, (1015).to_bytes(2, "big")), {1002}),
    "close 5000": (raw_frame(CLOSE, (5000).to_bytes(2, "big")), {1002}),
    "close with no UTF-8": (raw_frame(CLOSE, b"\x03\xe8\xff"), {1002, 1007}),
    "no UTF-8": (raw_frame(TEXT, b'"\xff"'), {1007}),
    "half a surrogate in UTF-8": (raw_frame(TEXT, b'"\xed\xa0\x80"'), {1007}),
    "a continuation of nothing": (raw_frame(CONTINUATION | FIN, b"x"), {1002}),
    "a message inside a message": (raw_frame(_START, b"{") + raw_frame(TEXT, b"}"), {1002}),
    "a message of 17 KiB": (raw_frame(TEXT, b"x" * 17_408), {1009}),
}


async def test_a_malformed_frame_ends_its_connection_with_an_allowed_code(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "attack",
        "Malformed frames",
        f"{len(_MALFORMED)} kinds: lengths, RSV bits, opcodes, masks, control frames, close codes, "
        "UTF-8, order",
        "1002, 1007 or 1009 as RFC 6455 says, never 1011",
    )
    wrong = {}
    async with rig(tmp_path, clients=_CLIENTS) as it, it.watch(row):
        for name, (frames, allowed) in _MALFORMED.items():
            one = await it.attackers.websocket()
            await one.send(frames)
            code = await one.close_code()
            if code not in allowed:
                wrong[name] = code
        assert not wrong


async def test_endless_fragments_are_limited_in_number_and_size(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "attack",
        "Fragments without end",
        "continuation frames of no bytes, of one byte, of 1 KiB, with pings in between",
        "capped in size and in number: 1009 or 1002",
    )
    async with rig(tmp_path, clients=_CLIENTS) as it, it.watch(row):
        for size in (0, 1, 1024):
            one = await it.attackers.websocket()
            part = raw_frame(CONTINUATION, b"x" * size)
            await one.send(raw_frame(_START, b"x"))
            for _ in range(40):
                if not await one.send(raw_frame(PING, b"?") + part * 50):
                    break
            assert await one.close_code() in {1002, 1009}, f"{size} bytes"


@pytest.mark.faults
async def test_a_flood_of_pings_counts_in_the_rate_limit(tmp_path: Path, record: Record) -> None:
    row = record(
        "attack",
        "Ping flood",
        "20,000 pings and 20,000 pongs as fast as they go, from each of 5 connections",
        "counted in the rate limit: at most a burst of answers",
    )
    async with rig(tmp_path) as it, it.watch(row):
        many = await it.attackers.many(5, is_upgraded=True)
        async with trio.open_nursery() as nursery:
            for one in many:
                nursery.start_soon(one.send, (raw_frame(PING, b"?") + raw_frame(PONG)) * 20_000)
                nursery.start_soon(one.end_of_stream, 5)
        answers = [sum(head == PONG for head, _ in one.frames()) for one in many]
        row.notes.append(f"at most {max(answers)} answers to a connection")
        assert max(answers) < 500
