"""The server as a process whose log goes into a pipe without a reader."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from websockets.trio.client import connect

from tests.e2e.conftest import receive
from tests.e2e.nats import free_port, nats_client, running_nats
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


@contextmanager
def serving(log_to: int, **variables: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server with a chatty log, and its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "trio_odin", "serve", "--addr", f"127.0.0.1:{port}"],
        env={**os.environ, "METRICS_INTERVAL": "1ms", **variables},
        stderr=log_to,
    )
    try:
        yield process, port
    finally:
        process.kill()
        process.wait(10)


def get(port: int, page: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", page)
    with connection.getresponse() as answer:
        return answer.status, answer.read().decode()


async def figure(port: int, name: str) -> float:
    _, text = await trio.to_thread.run_sync(get, port, "/metrics")
    return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


async def wait_for(port: int, name: str, least: float) -> None:
    with trio.fail_after(20):
        while True:
            try:
                if await figure(port, name) >= least:
                    return
            except OSError:
                pass  # it does not listen yet
            await trio.sleep(0.02)


async def check_that_it_serves_and_leaves(
    process: subprocess.Popen[bytes], port: int, nats_url: str
) -> None:
    status, text = await trio.to_thread.run_sync(get, port, "/health")
    assert (status, json.loads(text)["status"]) == (200, "healthy")
    async with connect(f"ws://127.0.0.1:{port}/ws") as client, nats_client(nats_url) as nats:
        await client.send('{"type":"subscribe","channels":["BTC.trade"]}')
        assert (await receive(client))["type"] == "subscription_ack"
        await nats.publish("odin.token.BTC.trade", b"1")
        assert (await receive(client))["data"] == 1
    process.send_signal(signal.SIGTERM)
    with trio.fail_after(10):
        assert await trio.to_thread.run_sync(process.wait) == 0


def waiting_in(pipe: int) -> int:
    """The number of unread bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


async def test_a_server_whose_log_is_not_read_serves_and_leaves_in_order(
    tmp_path: Path,
) -> None:
    read_end, write_end = os.pipe()
    with running_nats(tmp_path) as nats, serving(write_end, NATS_URL=nats.url) as (process, port):
        os.close(write_end)
        await wait_for(port, "ws_nats_connected", 1)
        await wait_until(lambda: waiting_in(read_end) > 60_000)
        await trio.sleep(0.1)  # the rest of the pipe
        await check_that_it_serves_and_leaves(process, port, nats.url)
    held = os.read(read_end, 1_000_000)
    os.close(read_end)
    assert len(held) > 60_000, "it was not full"


async def test_a_server_whose_log_reader_is_gone_counts_lines_and_serves(
    tmp_path: Path,
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with running_nats(tmp_path) as nats, serving(write_end, NATS_URL=nats.url) as (process, port):
        os.close(write_end)
        await wait_for(port, "ws_nats_connected", 1)
        await wait_for(port, "ws_log_lines_dropped_total", 10)
        await check_that_it_serves_and_leaves(process, port, nats.url)
