"""Admission by origin and by address."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Record
from tests.faults.rig import Rig, rig

pytestmark = pytest.mark.faults

_FOREIGN = [
    "https://evil-example.com",
    "https://example.com.evil.org",
    "https://evil.example.com",
    "http://example.com",
    "https://example.com:8443",
    "https://example.com@evil.org",
    "https://example.com/",
    "null",
    "file://",
    "",
]


async def test_foreign_origins_are_refused(tmp_path: Path, record: Record) -> None:
    row = record(
        "attack",
        "Foreign Origin",
        f"{len(_FOREIGN)} origins, null and evil-example.com among them, at "
        "WS_ALLOWED_ORIGINS=https://example.com",
        "403, unless scheme, host and port are exactly the allowed ones",
    )
    async with rig(tmp_path, WS_ALLOWED_ORIGINS="https://example.com") as it, it.watch(row):
        for origin in _FOREIGN:
            one = await it.attackers.tcp()
            assert await one.upgrade(f"Origin: {origin}") == 403, origin
        await it.attackers.websocket("Origin: https://example.com")
        twice = await it.attackers.tcp()
        both = ("Origin: https://example.com", "Origin: https://evil.org")
        assert await twice.upgrade(*both) in {400, 403}


async def _statuses(it: Rig, source: str, spoofed: str, count: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    for number in range(count):
        one = await it.attackers.tcp(source=source)
        header = spoofed.format(number=number)
        statuses[await one.upgrade(f"X-Forwarded-For: {header}")] += 1
    return statuses


async def test_a_spoofed_forwarded_address_counts_for_nothing(
    tmp_path: Path, record: Record
) -> None:
    row = record(
        "attack",
        "Spoofed X-Forwarded-For",
        "130 connections from one address, each with another X-Forwarded-For, at "
        "WS_MAX_CONNECTIONS_PER_IP=100; then through a trusted proxy with a spoofed first entry",
        "429 from the 101st on: only what a trusted proxy has added counts",
    )
    options: dict[str, Any] = {
        "WS_MAX_CONNECTIONS_PER_IP": "100",
        "WS_TRUSTED_PROXIES": "127.0.0.66/32",
    }
    async with rig(tmp_path, clients=90, **options) as it, it.watch(row):
        direct = await _statuses(it, "127.0.0.77", "10.0.0.{number}", 130)
        assert direct == {101: 100, 429: 30}
        proxied = await _statuses(it, "127.0.0.66", "10.0.0.{number}, 192.0.2.1", 130)
        assert proxied == {101: 100, 429: 30}
        others = await _statuses(it, "127.0.0.66", "192.0.2.2", 1)
        assert others == {101: 1}
