"""A real Prometheus: how one is started and asked."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import attrs
import trio

from tests.waiting import until_answer
from trio_odin.lab.load.pages import get

RUNBOOKS_URL = "https://runbooks.example/alerts.md"
_SECONDS = 20.0
_END_SECONDS = 10.0


@contextmanager
def running(
    command: Sequence[str | Path],
    folder: Path,
    name: str = "",
    variables: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """A program in `folder`, with a log in it named like the program; ended after the block."""
    with (folder / f"{name or command[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(variables or {})},
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def wait_ready(base: str) -> None:
    """Wait until a Prometheus, or an Alertmanager, says so."""
    await until_answer(partial(_is_ready, base), what=f"{base} is ready")


async def _is_ready(base: str) -> bool:
    page = await get(f"{base}/-/ready")
    return page is not None and page.status == 200


@attrs.frozen
class Prometheus:
    """A running Prometheus, asked as Grafana asks it."""

    url: str

    async def ask(self, path: str, **parameters: str) -> Any:
        """The data of a page of its API."""
        url = f"{self.url}/api/v1/{path}?{urlencode(parameters)}"
        # A machine with more to do than that may keep it from answering in time.
        with trio.fail_after(_SECONDS):
            while (page := await get(url)) is None:
                await trio.sleep(0.1)
        answer = json.loads(page.body)
        assert answer["status"] == "success", answer
        return answer["data"]

    async def now(self, query: str) -> list[dict[str, Any]]:
        """The series that a query gives, at this moment."""
        result: list[dict[str, Any]] = (await self.ask("query", query=query))["result"]
        return result

    async def values(self, query: str) -> list[float]:
        """Their values; NaN, for which there is no answer, is left out."""
        values = [float(sample["value"][1]) for sample in await self.now(query)]
        return [value for value in values if not math.isnan(value)]

    async def wait_ready(self) -> None:
        await wait_ready(self.url)

    async def wait_until(self, query: str) -> None:
        """Wait until a query gives anything."""
        await until_answer(partial(self.now, query), what=query, seconds=3 * _SECONDS)


@contextmanager
def running_prometheus(folder: Path, port: int) -> Iterator[Prometheus]:
    """One with the prometheus.yml that is in `folder`, which answers at `port`."""
    address = f"127.0.0.1:{port}"
    command = [
        "prometheus",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=prometheus-data",
        f"--web.listen-address={address}",
        "--log.level=warn",
        # Alertmanager may not have been there yet; a minute, if nothing is said.
        "--rules.alert.resend-delay=1s",
        # Of itself from 3.0 on, where it is no feature any more.
        "--enable-feature=expand-external-labels",
    ]
    with running(command, folder, variables={"RUNBOOKS_URL": RUNBOOKS_URL}):
        yield Prometheus(f"http://{address}")
