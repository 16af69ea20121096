"""The server's own figures, from its metrics page, and our own."""

from __future__ import annotations

import asyncio
import re
import resource
import ssl
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

import attrs

_SCRAPE_SECONDS = 5.0
_SCRAPE_MAX_BYTES = 4 * 1024 * 1024

CPU_SECONDS = "process_cpu_seconds_total"
RSS_BYTES = "process_resident_memory_bytes"
CONNECTIONS = "ws_connections_current"
SENT = "ws_messages_sent_total"
_SAMPLE_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{.*\})?[ \t]+(\S+)")


def parse_metrics(text: str) -> dict[str, float]:
    """Read Prometheus' text format: the sum of each metric over its labels."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE_LINE.match(line)
        if match is not None:
            with suppress(ValueError):
                sums[match[1]] = sums.get(match[1], 0.0) + float(match[2])
    return sums


@attrs.frozen
class Sample:
    """The server's and our own counters at one moment. Seconds, bytes."""

    at: float
    metrics: Mapping[str, float]
    client_cpu: float
    received: int

    def since(self, earlier: Sample, name: str) -> float | None:
        """How much the metric has grown, None if one of the two pages did not have it."""
        if name in self.metrics and name in earlier.metrics:
            return self.metrics[name] - earlier.metrics[name]
        return None


def own_cpu_seconds() -> float:
    """CPU that this process has used, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def scrape(url: str | None) -> dict[str, float]:
    """The metrics page, empty if it cannot be had within the deadline."""
    if url is None:
        return {}
    try:
        async with asyncio.timeout(_SCRAPE_SECONDS):
            page = await _get(urlsplit(url))
    except (OSError, EOFError, ValueError):
        return {}
    head, _, body = page.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    return parse_metrics(body.decode(errors="replace")) if status == [b"200"] else {}


async def _get(url: SplitResult) -> bytes:
    """The whole answer to a GET. Cancellation closes the connection."""
    is_secure = url.scheme == "https"
    reader, writer = await asyncio.open_connection(
        url.hostname,
        url.port or (443 if is_secure else 80),
        ssl=ssl.create_default_context() if is_secure else None,
    )
    # HTTP/1.0 spares us chunks: the answer ends where the connection does.
    target = url.path or "/"
    request = f"GET {target} HTTP/1.0\r\nHost: {url.netloc}\r\nAccept: text/plain\r\n\r\n"
    page = bytearray()
    try:
        writer.write(request.encode())
        while len(page) < _SCRAPE_MAX_BYTES and (chunk := await reader.read(64 * 1024)):
            page += chunk
    finally:
        writer.transport.abort()  # unlike close(), it needs no waiting, which nothing would bound
    return bytes(page)
