from __future__ import annotations

import resource
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from trio_odin.lab.fleet import limits
from trio_odin.lab.fleet.limits import (
    LoadImpossible,
    require_files,
    require_ports,
    sources_towards,
)

RAISE_IT = "raise the hard limit (ulimit -Hn 401) or ask for at most 336 connections"


def outcome_with_files(soft: int, hard: int, connections: int) -> str:
    """The outcome of `require_files` with these limits: the new soft limit, or a sentence."""
    code = f"""
import resource
from trio_odin.lab.fleet.limits import LoadImpossible, require_files
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
try:
    require_files({connections})
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
except LoadImpossible as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("connections", "outcome"),
    [
        (100, "200"),  # unchanged
        (136, "200"),
        (137, "400"),
        (336, "400"),
        (337, f"337 connections need 401 open files and this process may have 400: {RAISE_IT}"),
    ],
)
def test_the_soft_limit_on_files_is_raised_up_to_the_hard_one(
    connections: int, outcome: str
) -> None:
    assert outcome_with_files(200, 400, connections) == outcome


def test_no_limit_on_files_is_enough_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    require_files(10**9)


def test_each_connection_to_an_address_needs_a_source_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text("32768\t60999\n")
    monkeypatch.setattr(limits, "_PORT_RANGE", tmp_path / "range")
    require_ports(28_232)
    with pytest.raises(LoadImpossible, match=r"^28,233 connections .* ask for at most 28,232, or"):
        require_ports(28_233)


@pytest.mark.parametrize("content", [None, "", "some words"])
def test_an_unknown_range_of_ports_is_not_checked(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "range").write_text(content)
    monkeypatch.setattr(limits, "_PORT_RANGE", tmp_path / "range")
    require_ports(10**9)


def test_on_loopback_there_are_as_many_addresses_as_wanted() -> None:
    sources = sources_towards("127.0.0.1", socket.AF_INET, 3)
    assert sources == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    many = sources_towards("127.0.0.9", socket.AF_INET, 1000)
    assert len(many) == len(set(many)) == 250
    with socket.socket() as one:
        one.bind((many[-1], 0))


def test_towards_ipv6_the_kernel_chooses() -> None:
    assert sources_towards("::1", socket.AF_INET6, 3) == [""]


class Probe(socket.socket):
    """A socket that has asked for a route, which a test without a network cannot."""

    def connect(self, address: object) -> None:
        pass

    def getsockname(self) -> tuple[str, int]:
        return "10.0.0.2", 4711


def addresses(*texts: str, family: int = socket.AF_INET) -> list[SimpleNamespace]:
    return [SimpleNamespace(family=family, address=text) for text in texts]


@pytest.mark.parametrize(
    ("interface", "sources"),
    [
        (addresses("10.0.0.2", "10.0.0.3"), ["10.0.0.2", "10.0.0.3"]),
        (addresses("10.0.0.2"), [""]),
        (addresses("10.0.0.2") + addresses("fe80::1", family=socket.AF_INET6), [""]),
        (addresses("10.9.0.2", "10.9.0.3"), [""]),
    ],
)
def test_elsewhere_the_addresses_of_the_outgoing_interface_are_used(
    interface: list[SimpleNamespace], sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", Probe)
    interfaces = {"lo": addresses("127.0.0.1", "127.0.0.2"), "eth0": interface}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    assert sources_towards("192.0.2.1", socket.AF_INET, 3) == sources


def test_without_a_route_the_kernel_reports_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(Probe):
        def connect(self, address: object) -> None:
            raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "socket", Unreachable)
    assert sources_towards("192.0.2.1", socket.AF_INET, 3) == [""]
