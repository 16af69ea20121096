"""A rolling restart by ops/haproxy/rolling.py, and what becomes of it when something is wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.ops.nodes import ROLLING, site
from tests.ops.rehearsing import Rehearse
from tests.ops.users import check_books

_EACH = 1000
# A drain sends so many away in a second, and a node takes so many in. Fewer than by default: all
# users are one process of Python here, and are not to be what is measured.
_PER_SECOND = "400"


def test_it_says_what_it_needs() -> None:
    said = subprocess.run(
        [sys.executable, str(ROLLING), "--help"], check=True, capture_output=True, text=True
    ).stdout
    assert "--restart" in said
    assert "Exit code" in said


def test_without_haproxy_it_does_not_begin(tmp_path: Path) -> None:
    command = [sys.executable, str(ROLLING), "--restart=false", f"--socket={tmp_path}/none"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no answer at HAProxy's socket" in done.stderr


@pytest.mark.ops
async def test_a_rolling_restart_under_2000_connections_refuses_nobody(
    tmp_path: Path, rehearse: Rehearse
) -> None:
    row = rehearse(
        "migration",
        "Rolling restart",
        "rolling.py over two nodes, 2,000 users at 10 events a second; "
        f"WS_ACCEPT_RATE={_PER_SECOND}",
    )
    async with site(tmp_path, WS_ACCEPT_RATE=_PER_SECOND) as it:
        resuming, others = await it.join(_EACH, _EACH)
        begun = trio.current_time()
        code, said = await it.roll("--pause=2")
        row.seconds = trio.current_time() - begun
        assert code == 0, said
        assert "all 2 restarted" in said
        await trio.sleep(1)
        await it.come_to_rest()
        on_nodes = await it.proxy.connections()
        row.notes.append(f"afterwards {on_nodes[0]:,} and {on_nodes[1]:,} on them")
        resumed, missing = check_books(row, it.publisher, resuming, others)
        assert resumed.told + missing.told == row.sent_away >= 2 * _EACH
        assert set(resumed.closed) == set(missing.closed) == {1001}
        assert row.refused == 0
        await it.check_balance()


@pytest.mark.ops
async def test_a_node_that_does_not_come_back_stops_it(tmp_path: Path) -> None:
    async with site(tmp_path) as it:
        it.node("ws-1").settings["NATS_URL"] = "nats://127.0.0.1:1"  # nobody is there
        it.node("ws-1").nats_url = "nats://127.0.0.1:1"
        await it.crowd.join(20, resumes=True)
        code, said = await it.roll("--timeout=4", "--settle=0")
        assert code == 1
        assert "stopped at ws-1: not ready 4 s after its restart" in said
        assert "ws-2: out of rotation" not in said
        # It waits for its health alone: nobody has to remember to take it in again.
        assert (await it.proxy.stat("ws-1"))["status"].startswith("DOWN")
        await it.crowd.wait_all()
        code, said = await it.roll("--dry-run")
        assert (code, "ws-1 is not ready" in said) == (2, True)


@pytest.mark.ops
async def test_a_restart_command_that_fails_stops_it(tmp_path: Path) -> None:
    async with site(tmp_path) as it:
        it.restart_command = "false {node}"
        code, said = await it.roll("--settle=0")
        assert code == 1
        assert "stopped at ws-1: the restart command ended with code 1: false ws-1" in said
        await it.proxy.wait_up()


@pytest.mark.ops
async def test_a_dry_run_touches_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as it:
        pids = [node.process.process.pid for node in it.nodes]
        code, said = await it.roll("--dry-run")
        assert code == 0
        assert [line.split(":")[0] for line in said.splitlines()] == ["ws-1", "ws-2"]
        assert [node.process.process.pid for node in it.nodes] == pids
        await it.proxy.wait_up()


@pytest.mark.ops
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_interrupted_one_leaves_every_node_in_rotation(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with site(tmp_path) as it:
        command = [
            sys.executable,
            str(ROLLING),
            "--restart=sleep 60",
            f"--socket={it.proxy.socket}",
        ]
        rolling = await trio.lowlevel.open_process(command)
        await it.proxy.wait_status("DRAIN", "ws-1")
        rolling.send_signal(number)
        with trio.fail_after(30):
            assert await rolling.wait() == 130
        await it.proxy.wait_up()
