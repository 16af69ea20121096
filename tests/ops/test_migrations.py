"""What docs/runbooks/migration.md and rollback.md describe, done with real processes."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import trio

from tests.ops.conftest import ROOT
from tests.ops.nodes import Site, site
from tests.ops.rehearsing import Rehearse
from tests.ops.users import User, check_books, verdict
from trio_odin.lab.load.pages import get

pytestmark = pytest.mark.ops

_EACH = 250  # that resume, and that do not
_TAIL_SECONDS = 1.0
_SLOWSTART_SECONDS = 12.0


async def _finish(it: Site) -> None:
    await it.crowd.wait_all()
    await trio.sleep(_TAIL_SECONDS)
    await it.come_to_rest()


async def _unfiltered(users: list[User]) -> None:
    """Wait until everybody gets everything."""
    with trio.fail_after(20):
        while not all(user.foreign for user in users):
            await trio.sleep(0.05)


def _previous(folder: Path) -> Path:
    """The program as it was a commit ago: what stands for the image before this one."""
    folder.mkdir()
    try:
        archive = subprocess.run(
            ["git", "archive", "HEAD~1", "trio_odin"], cwd=ROOT, check=True, capture_output=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git history here")
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    with (folder / "trio_odin" / "__init__.py").open("a") as file:
        file.write('\n__version__ = "previous"\n')  # so that it can be told from this one
    return folder


async def test_in_place(tmp_path: Path, rehearse: Rehearse) -> None:
    row = rehearse("migration", "In place", "one node without a proxy, stopped and started anew")
    async with site(tmp_path, has_proxy=False) as it:
        node = it.node("ws-1")
        resuming, others = await it.join(_EACH, _EACH)
        begun = trio.current_time()
        await node.stop()
        stopped = trio.current_time()
        node.start()
        await node.wait_ready()
        row.notes.append(f"no answer for {trio.current_time() - stopped:.1f} s of it")
        await it.crowd.wait_all()
        row.seconds = trio.current_time() - begun
        await _finish(it)
        # Who comes in before the new process has NATS cannot resume, and is told.
        check_books(row, it.publisher, resuming, others, may_declare=True)
        await it.check_balance()


async def test_blue_green_and_back(tmp_path: Path, rehearse: Rehearse) -> None:
    row = rehearse(
        "migration",
        "Blue-green",
        "green takes a tenth, then all; blue is stopped; then all the way back",
    )
    async with site(tmp_path) as it:
        blue, green = it.nodes
        await it.proxy.set_state("ws-2", "drain")
        resuming, others = await it.join(_EACH, _EACH)
        assert await it.proxy.connections() == [2 * _EACH, 0]

        # A tenth, by weight.
        await it.proxy.ask("set server ws/ws-2 weight 10%")
        await it.proxy.set_state("ws-2", "ready")
        await trio.sleep(_SLOWSTART_SECONDS)
        await it.crowd.join(200, resumes=False)
        on_blue, on_green = await it.proxy.connections()
        row.notes.append(f"at weight 10 %: {on_green} of {on_blue + on_green} on green")
        assert 0.05 < on_green / (on_blue + on_green) < 0.15

        begun = trio.current_time()
        await it.proxy.ask("set server ws/ws-2 weight 100%")
        await it.proxy.set_state("ws-1", "drain")
        await blue.stop()
        await it.crowd.wait_all()
        row.seconds = trio.current_time() - begun
        assert await it.proxy.connections() == [0, 2 * _EACH + 200]

        begun = trio.current_time()
        blue.start()
        await blue.wait_ready()
        await it.proxy.set_state("ws-1", "ready")
        await it.proxy.wait_up("ws-1")
        await it.proxy.set_state("ws-2", "drain")
        await green.stop()
        await it.crowd.wait_all()
        row.notes.append(f"back, with a start of blue: {trio.current_time() - begun:.1f} s")
        assert await it.proxy.connections() == [2 * _EACH + 200, 0]
        await _finish(it)
        check_books(row, it.publisher, resuming, others)
        assert row.refused == 0
        await it.check_balance()


async def test_the_filter_off_by_a_restart(tmp_path: Path, rehearse: Rehearse) -> None:
    row = rehearse(
        "rollback",
        "Filter off, restart",
        "ENABLE_SUBSCRIPTION_FILTERING=false, one node without a proxy stopped and started anew",
    )
    async with site(tmp_path, has_proxy=False) as it:
        node = it.node("ws-1")
        _, users = await it.join(0, 2 * _EACH)
        begun = trio.current_time()
        node.settings["ENABLE_SUBSCRIPTION_FILTERING"] = "false"
        await node.restart()
        await _unfiltered(users)
        row.seconds = trio.current_time() - begun
        await _finish(it)
        check_books(row, it.publisher, [], users)


async def test_the_filter_off_by_a_rolling_restart(tmp_path: Path, rehearse: Rehearse) -> None:
    row = rehearse(
        "rollback",
        "Filter off, rolling",
        "ENABLE_SUBSCRIPTION_FILTERING=false, rolling.py over two nodes",
    )
    async with site(tmp_path) as it:
        _, users = await it.join(0, 2 * _EACH)
        for node in it.nodes:
            node.settings["ENABLE_SUBSCRIPTION_FILTERING"] = "false"
        begun = trio.current_time()
        code, said = await it.roll("--pause=1")
        assert code == 0, said
        await _unfiltered(users)
        row.seconds = trio.current_time() - begun
        await _finish(it)
        check_books(row, it.publisher, [], users)
        assert row.refused == 0


async def test_the_filter_off_without_a_restart(tmp_path: Path, rehearse: Rehearse) -> None:
    row = rehearse(
        "rollback",
        "Filter off, worker by worker",
        "ENABLE_SUBSCRIPTION_FILTERING=false in WS_RELOAD_FILE; SIGHUP, SIGUSR2; one node, "
        "WS_WORKERS=2",
    )
    reload_file = tmp_path / "reload.env"
    reload_file.write_text("")
    async with site(
        tmp_path, has_proxy=False, WS_WORKERS="2", WS_RELOAD_FILE=str(reload_file)
    ) as it:
        node = it.node("ws-1")
        _, users = await it.join(0, 2 * _EACH)
        reload_file.write_text("ENABLE_SUBSCRIPTION_FILTERING=false\n")
        begun = trio.current_time()
        node.process.signal(signal.SIGHUP)
        with trio.fail_after(10):
            while not any("reload" in line for line in node.process.log_lines()):
                await trio.sleep(0.05)
        node.process.signal(signal.SIGUSR2)
        await _unfiltered(users)
        row.seconds = trio.current_time() - begun
        await _finish(it)
        check_books(row, it.publisher, [], users)
        assert row.refused == 0


async def test_the_previous_image(tmp_path: Path, rehearse: Rehearse) -> None:
    row = rehearse(
        "rollback",
        "Previous image",
        "one node without a proxy stopped; started with the program of a commit before",
    )
    previous = _previous(tmp_path / "previous")
    async with site(tmp_path, has_proxy=False) as it:
        node = it.node("ws-1")
        resuming, others = await it.join(_EACH, _EACH)
        begun = trio.current_time()
        node.settings["PYTHONPATH"] = str(previous)
        await node.restart()
        await node.wait_ready()
        await it.crowd.wait_all()
        row.seconds = trio.current_time() - begun
        page = await get(f"http://127.0.0.1:{node.port}/")
        assert page is not None
        assert page.body.startswith(b"trio-odin previous:"), page
        await _finish(it)
        check_books(row, it.publisher, resuming, others, may_declare=True)


async def test_a_node_more(tmp_path: Path, rehearse: Rehearse) -> None:
    row = rehearse(
        "rollback",
        "A node more",
        "started beside one with 500 users, then taken into rotation; then 500 users more",
    )
    async with site(tmp_path) as it:
        await it.proxy.set_state("ws-2", "maint")
        await it.node("ws-2").stop()
        resuming, others = await it.join(_EACH, _EACH)
        begun = trio.current_time()
        it.node("ws-2").start()
        await it.node("ws-2").wait_ready()
        await it.proxy.set_state("ws-2", "ready")
        await it.proxy.wait_up("ws-2")
        row.seconds = trio.current_time() - begun
        await trio.sleep(_SLOWSTART_SECONDS)
        await it.crowd.join(2 * _EACH, resumes=False)
        on_nodes = await it.proxy.connections()
        row.notes.append(f"then {on_nodes[0]} and {on_nodes[1]} users on them")
        assert abs(on_nodes[0] - on_nodes[1]) <= 20
        await _finish(it)
        check_books(row, it.publisher, resuming, others)
        assert row.sent_away == row.refused == 0


async def test_a_full_node_is_evened_out_worker_by_worker(tmp_path: Path) -> None:
    """After a rolling restart one node has everybody, and the last one nobody."""
    async with site(tmp_path, WS_WORKERS="2") as it:
        await it.proxy.set_state("ws-2", "drain")
        resuming, others = await it.join(_EACH, _EACH)
        assert await it.proxy.connections() == [2 * _EACH, 0]
        await it.proxy.set_state("ws-2", "ready")
        await trio.sleep(_SLOWSTART_SECONDS)
        node = it.node("ws-1")
        node.process.signal(signal.SIGUSR2)
        with trio.fail_after(30):
            while not any("rolling.finished" in line for line in node.process.log_lines()):
                await trio.sleep(0.05)
        await _finish(it)
        first, second = await it.proxy.connections()
        assert abs(first - second) < 0.2 * 2 * _EACH, (first, second)
        resumed = verdict(resuming, it.publisher.taken.values())
        missing = verdict(others, it.publisher.taken.values())
        assert not resumed.rejected
        assert not missing.rejected
        assert (resumed.missed, resumed.lost, missing.lost) == (0, 0, 0)
