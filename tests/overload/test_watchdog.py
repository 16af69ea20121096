from __future__ import annotations

import resource
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_odin.overload.watchdog import prove_life, systemd_notify


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_notified_by_a_datagram(tmp_path: Path, is_abstract: bool) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{path}" if is_abstract else path)
        systemd.settimeout(5)
        notify = systemd_notify({"NOTIFY_SOCKET": f"@{path}" if is_abstract else path})
        notify("READY=1")
        notify("WATCHDOG=1")
        assert [systemd.recv(100) for _ in range(2)] == [b"READY=1", b"WATCHDOG=1"]


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "vsock:2:3", "@gone"])
def test_without_systemd_nothing_happens(address: str) -> None:
    systemd_notify({"NOTIFY_SOCKET": address})("READY=1")
    systemd_notify({})("READY=1")


def test_a_systemd_that_does_not_read_blocks_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        notify = systemd_notify({"NOTIFY_SOCKET": path})
        for _ in range(10_000):
            notify("WATCHDOG=1")


def test_systemd_is_notified_even_if_files_have_run_out(tmp_path: Path) -> None:
    """Otherwise it would end a server that has more clients than files."""
    path = str(tmp_path / "notify")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(5)
        notify = systemd_notify({"NOTIFY_SOCKET": path})
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            notify("WATCHDOG=1")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert systemd.recv(100) == b"WATCHDOG=1"


async def test_a_running_loop_reports_it_each_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    said: list[str] = []
    with trio.move_on_after(9.5):
        await prove_life(0, said.append)
    assert said == ["WATCHDOG=1"] * 10


def run(body: str) -> subprocess.CompletedProcess[str]:
    """Run another loop with a watchdog of 3 s."""
    program = f"""
    import ctypes, time, trio
    from trio_odin.overload.watchdog import prove_life

    def hang_here():
        {body}

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prove_life, 3.0, lambda _: None)
            await trio.sleep(0.1)
            hang_here()
            await trio.sleep(4)
            nursery.cancel_scope.cancel()

    trio.run(main)
    time.sleep(4)
    print("lived")
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "hang",
    ["time.sleep(60)", "ctypes.PyDLL(None).sleep(60)"],
    ids=["in Python", "with the interpreter's lock held"],
)
def test_a_hung_loop_ends_its_process_and_shows_the_place(hang: str) -> None:
    ended = run(hang)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "in hang_here" in ended.stderr


def test_a_running_loop_survives_and_so_does_a_stopped_watchdog() -> None:
    ended = run("pass")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "lived\n", "")
