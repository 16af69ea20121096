"""ops/sysctl: keys that there are, values that are right for the server, a reason for each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.ops.conftest import OPS
from tests.ops.tools import run, tool
from trio_odin.net.listening import _BACKLOG
from trio_odin.settings.reading import read_settings

FILES = sorted((OPS / "sysctl").glob("*.conf"))
SERVER, CLIENTS = FILES
LINE = re.compile(r"(-?)([a-z0-9_.]+) = (\d+(?: \d+)?)")


def lines(file: Path) -> list[tuple[str, str, str]]:
    found = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    matches = [match for line in found if (match := LINE.fullmatch(line))]
    assert len(matches) == len(found), found
    return [(match[1], match[2], match[3]) for match in matches]


def values(file: Path) -> dict[str, str]:
    return {key: value for _, key, value in lines(file)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_key_is_known_to_this_kernel_or_may_be_absent(file: Path) -> None:
    for optional, key, _ in lines(file):
        is_known = Path("/proc/sys", *key.split(".")).exists()
        assert is_known or optional, key


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_line_has_its_reason_and_a_way_to_see_that_it_matters(file: Path) -> None:
    for block in file.read_text().split("\n\n"):
        settings = [line for line in block.splitlines() if line and not line.startswith("#")]
        assert len(settings) <= 1
        assert not settings or "# See: " in block, block


def test_the_kernel_takes_the_values(tmp_path: Path) -> None:
    """In a network namespace of its own, as nothing of the machine's may change."""
    unshare, sysctl = tool("unshare"), tool("sysctl")
    if run(unshare, "--net", "true").returncode:
        pytest.skip("needs root")
    for file in FILES:
        # Those of the namespace; the table of connections is the machine's, and read-only in it.
        own = tmp_path / file.name
        own.write_text("".join(f"{k} = {v}\n" for optional, k, v in lines(file) if not optional))
        taken = run(unshare, "--net", sysctl, "--load", own)
        assert taken.returncode == 0, taken.stderr
        assert taken.stdout == own.read_text()


def test_what_may_wait_to_be_accepted_is_what_the_server_asks_for() -> None:
    backlog = int(values(SERVER)["net.core.somaxconn"])
    assert backlog == _BACKLOG
    assert backlog > read_settings({}).max_connections


def test_a_proxy_has_source_ports_for_what_a_server_holds_and_none_of_ours() -> None:
    first, last = map(int, values(CLIENTS)["net.ipv4.ip_local_port_range"].split())
    assert last - first > 5 * read_settings({}).max_connections
    assert first > 9093
