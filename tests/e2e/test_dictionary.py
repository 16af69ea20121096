"""`trio-odin dictionary` with a real NATS server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.e2e.nats import free_port, nats_client
from trio_odin.demo.samples import of_market
from trio_odin.demo.sampling import SamplingError, sample

pytestmark = pytest.mark.e2e

COMMAND = [sys.executable, "-m", "trio_odin", "dictionary"]


async def test_events_are_taken_from_nats(nats_url: str, tmp_path: Path) -> None:
    out = tmp_path / "odin.dict"
    options = ["--nats", nats_url, "--events", "100", "--seconds", "30", "--out", str(out)]
    async with trio.open_nursery() as nursery, nats_client(nats_url) as nats:
        await nursery.start(publish_forever, nats)
        with trio.fail_after(40):
            ended = await trio.run_process(
                [*COMMAND, *options], capture_stdout=True, capture_stderr=True
            )
        nursery.cancel_scope.cancel()
    assert b"Bytes an event, measured with 50 events:" in ended.stdout
    assert b"of 100 events" in ended.stderr
    assert b'"priceChange24h":' in out.read_bytes()


async def test_ctrl_c_makes_a_dictionary_of_the_events_so_far(
    nats_url: str, tmp_path: Path
) -> None:
    out = tmp_path / "odin.dict"
    async with trio.open_nursery() as nursery, nats_client(nats_url) as nats:
        await nursery.start(publish_forever, nats)
        code, shown = await interrupted(["--nats", nats_url, "--out", str(out)], events=60)
        nursery.cancel_scope.cancel()
    assert code == 130
    assert re.match(rb"interrupted: [\d,]+ events taken\n", shown), shown
    assert b"Bytes an event, measured with " in shown
    assert b'"priceChange24h":' in out.read_bytes()


async def test_ctrl_c_with_too_few_events_writes_nothing(nats_url: str, tmp_path: Path) -> None:
    out = tmp_path / "odin.dict"
    code, shown = await interrupted(["--nats", nats_url, "--out", str(out)], events=0)
    assert code == 130
    assert b"interrupted after 0 events; nothing was written" in shown
    assert not out.exists()


async def interrupted(options: list[str], *, events: int) -> tuple[int, bytes]:
    """Interrupt the command when it has taken `events`; its exit code, and what it showed last."""
    async with trio.open_nursery() as nursery:
        start = partial(
            trio.run_process,
            [*COMMAND, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        process: trio.Process = await nursery.start(start)
        shown, is_sent = b"", False
        with trio.fail_after(60):
            assert process.stdout is not None
            async for part in process.stdout:
                shown += part
                taken = re.findall(rb"(\d+) of 3,000 events\n", shown)
                if taken and int(taken[-1]) >= events and not is_sent:
                    is_sent, shown = True, b""
                    process.send_signal(signal.SIGINT)
            return await process.wait(), shown


async def test_without_an_event_the_subject_is_named(nats_url: str) -> None:
    ended = await trio.run_process(
        [*COMMAND, "--nats", nats_url, "--subject", "foo.>", "--seconds", "0.5"],
        capture_stderr=True,
        check=False,
    )
    assert ended.returncode == 2
    assert b"no event came on 'foo.>' within 0.5 s; see --subject and --seconds" in ended.stderr


async def publish_forever(nats: object, *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    for channel, payload in of_market(100_000):
        await nats.publish(f"odin.token.{channel}", payload)  # type: ignore[attr-defined]
        await trio.sleep(0.002)


async def test_a_sample_has_what_a_server_would_send(nats_url: str) -> None:
    progress: list[str] = []
    async with trio.open_nursery() as nursery, nats_client(nats_url) as nats:

        async def publish() -> None:
            while True:
                await nats.publish("odin.token.A.trade", b'{"a":1}')
                await nats.publish("odin.token.A.trade", b"no json")
                await nats.publish("odin.token.A", b"1")
                await nats.publish("odin.other.B.x.more", b"2")
                await nats.flush()
                await trio.sleep(0.01)

        nursery.start_soon(publish)
        found = await sample([nats_url], "odin.>", most=10, seconds=20, tell=progress.append)
        nursery.cancel_scope.cancel()
    assert len(found) == 10
    assert {(one.channel, json.dumps(json.loads(one.payload))) for one in found} == {
        ("A.trade", '{"a": 1}'),
        ("B.x", "2"),
    }
    assert re.fullmatch(r"\d of 10 events", progress[0]), "it begins to say so at once"


async def test_the_time_ends_a_sample(nats_url: str) -> None:
    assert await sample([nats_url], "odin.>", most=10, seconds=0.3, tell=lambda _: None) == []


async def test_a_nats_that_is_not_there_is_named() -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    with pytest.raises(SamplingError, match=r"NATS: .*refused"):
        await sample([url], "odin.>", most=10, seconds=5, tell=lambda _: None)
    ended = await trio.run_process(
        [*COMMAND, "--nats", url], capture_stderr=True, capture_stdout=True, check=False
    )
    assert ended.returncode == 2
    assert b"refused" in ended.stderr
    assert b"Traceback" not in ended.stderr
