"""The HTTP pages of the server and of the publisher, fetched from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener
from urllib.response import addinfourl

import attrs
import trio

_PAGE_SECONDS = 5.0
_PAGE_MAX_BYTES = 4 * 1024 * 1024
# Without the proxies of the environment, as the clients.
_open = build_opener(ProxyHandler({})).open
_SAMPLE_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(\{.*\})?[ \t]+(\S+)")


@attrs.frozen
class Page:
    """An HTTP answer of any status."""

    status: int
    body: bytes


async def get(url: str) -> Page | None:
    """Fetch a page; None if there is no complete answer within 5 s.

    Cancellation: returns at once; a thread that still waits ends at its own deadline.
    """
    return await _answer(Request(url))  # noqa: S310 - checked by LoadPlan


async def post(url: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Send a JSON object; returns the JSON object of the answer, None without one within 5 s."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    return _object(await _answer(request))


async def get_object(url: str) -> dict[str, Any] | None:
    """Fetch a page that is a JSON object."""
    return _object(await get(url))


def _object(page: Page | None) -> dict[str, Any] | None:
    with suppress(ValueError):
        found = json.loads(page.body) if page is not None else None
        return found if isinstance(found, dict) else None
    return None


async def _answer(request: Request) -> Page | None:
    # The thread's deadline is for each read; this one also covers a server that trickles.
    with trio.move_on_after(_PAGE_SECONDS):
        return await trio.to_thread.run_sync(partial(_ask, request), abandon_on_cancel=True)
    return None


def _ask(request: Request) -> Page | None:
    with suppress(OSError, HTTPException, ValueError):
        try:
            answer: addinfourl = _open(request, timeout=_PAGE_SECONDS)
        except HTTPError as error:  # also an answer, for instance a 503 of /health
            answer = error
        with answer:
            body = answer.read(_PAGE_MAX_BYTES)
            if len(body) == int(answer.headers.get("Content-Length", len(body))):
                return Page(answer.status or 0, body)
    return None


def parse_metrics(text: str) -> dict[str, float]:
    """Read Prometheus' text format: the sum of each metric over its labels."""
    sums: dict[str, float] = {}
    for name, _, value in _samples(text):
        sums[name] = sums.get(name, 0.0) + value
    return sums


def labelled(text: str, name: str) -> dict[str, float]:
    """The values of one metric of Prometheus' text format, by their labels as written."""
    return {labels: value for of, labels, value in _samples(text) if of == name and labels}


def _samples(text: str) -> Iterator[tuple[str, str, float]]:
    """Name, labels and value of each line that is a sample."""
    for line in text.splitlines():
        match = _SAMPLE_LINE.match(line)
        if match is not None:
            with suppress(ValueError):
                yield match[1], match[2] or "", float(match[3])
