from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.hosts.rig import PREFIX, leftovers, needs_ip_if_root
from trio_odin.lab.hosts import lock
from trio_odin.lab.hosts.hosts import Host, HostsUnavailable
from trio_odin.lab.hosts.lock import check_prefix, lab_lock, lock_path
from trio_odin.lab.hosts.loopback import loopback_hosts
from trio_odin.lab.hosts.namespaces import down
from trio_odin.lab.hosts.run import run


def test_a_host_in_a_namespace_runs_programs_through_nsenter() -> None:
    host = Host("ws", "10.77.0.11", Path("/run/netns/odin-ws"))

    command = host.command(["cat", "a file"])

    enter = ["nsenter", "--net=/run/netns/odin-ws"]
    assert command == ["env", "TRIO_ODIN_LAB=odin", *enter, "cat", "a file"]


async def test_on_loopback_all_hosts_are_this_machine_and_it_is_reported() -> None:
    async with loopback_hosts(PREFIX) as hosts:
        for host in (hosts.ws, hosts.backend, hosts.runner):
            assert host.address == "127.0.0.1"
            assert host.command(["true"]) == ["env", f"TRIO_ODIN_LAB={PREFIX}", "true"]
        assert hosts.isolation[0].startswith("not isolated: ")
    assert leftovers() == []


async def test_without_write_permission_the_lock_is_a_temporary_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lock, "_LOCK_FOLDER", Path("/nowhere"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with loopback_hosts(PREFIX):
        assert lock_path(PREFIX).parent == tmp_path
        with pytest.raises(HostsUnavailable, match="another lab with the prefix"):
            await loopback_hosts(PREFIX).__aenter__()


async def test_processes_of_a_loopback_lab_end_with_it() -> None:
    async with loopback_hosts(PREFIX) as hosts:
        sleeper = await trio.lowlevel.open_process(hosts.backend.command(["sleep", "60"]))
        while not _is_sleeping(sleeper.pid):  # until then it has no mark
            await trio.sleep(0.01)
    assert await sleeper.wait() == -signal.SIGTERM


def _is_sleeping(pid: int) -> bool:
    """Whether it is already `sleep`, and no longer its launcher."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep")


@needs_ip_if_root
async def test_down_ends_only_processes_of_the_killed_loopback_lab() -> None:
    host, other = Host("ws", "127.0.0.1", prefix=PREFIX), Host("ws", "127.0.0.1", prefix="odinx")
    ours = await trio.lowlevel.open_process(host.command(["sleep", "60"]))
    theirs = await trio.lowlevel.open_process(other.command(["sleep", "60"]))
    try:
        while not _is_sleeping(ours.pid):
            await trio.sleep(0.01)
        removed = await down(PREFIX)
        assert removed[0] == "ended 1 process of the lab"
        assert await ours.wait() == -signal.SIGTERM
        assert theirs.returncode is None
    finally:
        theirs.kill()
        await theirs.wait()


async def test_a_lab_reports_that_another_one_is_running() -> None:
    async with loopback_hosts(PREFIX), loopback_hosts(f"{PREFIX}x") as second:
        sentence, _, others = second.isolation[-1].partition(": ")
        assert sentence == "other labs are running on this machine"
        assert PREFIX in others.split(", ")
        assert f"{PREFIX}x" not in others.split(", ")


@pytest.fixture
def lock_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "_LOCK_FOLDER", tmp_path)
    return tmp_path


def test_one_lab_of_a_prefix_at_a_time(lock_folder: Path) -> None:
    with lab_lock("odin"):
        with pytest.raises(HostsUnavailable, match="another lab with the prefix odin is running"):
            lab_lock("odin").__enter__()
        with lab_lock("other"):
            pass
    with lab_lock("odin"):
        pass
    assert list(lock_folder.iterdir()) == []


def test_a_lock_whose_holder_was_killed_is_free(lock_folder: Path) -> None:
    holder = (
        "import fcntl, os, signal, sys; descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT);"
        "fcntl.flock(descriptor, fcntl.LOCK_EX); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", holder, str(lock_path("odin"))], check=False)
    assert lock_path("odin").exists()

    with lab_lock("odin"):
        pass


def test_a_lock_that_cannot_be_written_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_LOCK_FOLDER", Path("/nowhere"))
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(HostsUnavailable, match=r"the lab's lock cannot be written: .*No such file"):
        lab_lock("odin").__enter__()


@given(st.from_regex(r"[a-z][a-z0-9]{0,15}", fullmatch=True))
def test_a_prefix_has_only_letters_and_digits(text: str) -> None:
    check_prefix(text)


@pytest.mark.parametrize("text", ["", "odin-ws", "1odin", "Odin", "../odin", "o" * 17, "odin\n"])
def test_no_prefix_can_be_a_part_of_another_prefixs_names(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be a prefix: allowed are up to 16 small letters"):
        check_prefix(text)


async def test_the_outcome_of_a_program_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    said = await run(["sh", "-c", "echo words; echo why >&2; exit 3"])
    assert (said.code, said.output, said.complaint) == (3, "words\n", "why")
    assert not said.is_fine

    assert (await run(["false"])).complaint == "exit code 1"
    missing = await run(["/nowhere/program"])
    assert missing.complaint == "/nowhere/program: No such file or directory"

    monkeypatch.setattr("trio_odin.lab.hosts.run._DEADLINE_SECONDS", 0.1)
    slow = await run(["sleep", "5"])
    assert not slow.is_fine
    assert slow.complaint.startswith("sleep took longer than")
