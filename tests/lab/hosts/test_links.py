from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.hosts.rig import PREFIX, hear_hello, needs_namespaces, serve_hello
from trio_odin.lab.hosts import links
from trio_odin.lab.hosts.hosts import HOST_NAMES, Host, Hosts
from trio_odin.lab.hosts.links import (
    Partition,
    Shaped,
    heal,
    parse_partition,
    partition,
    partitioned,
    shape,
    unshape,
)
from trio_odin.lab.hosts.namespaces import isolated_hosts
from trio_odin.lab.hosts.run import Finished, run

WS = Host("ws", "10.77.0.11", Path("/run/netns/odin-ws"))
BACKEND = Host("backend", "10.77.0.12", Path("/run/netns/odin-backend"))
ON_LOOPBACK = Host("ws", "127.0.0.1")


class Kernel:
    """Answers instead of the system's programs, and keeps what they were told."""

    def __init__(self, refusals: dict[str, str]) -> None:
        self.told: list[str] = []
        self._refusals = refusals

    async def run(self, argv: Sequence[str], *, stdin: str = "") -> Finished:
        line = f"{' '.join(argv[4:])}\n{stdin}"
        self.told.append(line)
        for word, complaint in self._refusals.items():
            if word in line and " del " not in line and "delete table inet" not in argv:
                return Finished(2, complaint=complaint)
        return Finished(0)


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(getattr(request, "param", {}))
    monkeypatch.setattr(links, "run", kernel.run)
    return kernel


def test_a_partition_is_two_hosts_a_second_and_a_duration() -> None:
    assert parse_partition("ws:backend@30+10") == Partition("ws", "backend", 30, 10)
    assert parse_partition("runner:ws@0+0.5") == Partition("runner", "ws", 0, 0.5)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("ws:backend", "it takes HOST:HOST@SECOND"),
        ("ws:backend@-1+5", "it takes HOST:HOST@SECOND"),
        ("ws:backend@1+5s", "it takes HOST:HOST@SECOND"),
        ("ws:backend@nan+5", "it takes HOST:HOST@SECOND"),
        ("ws:db@1+5", "it takes two of ws, backend, runner"),
        ("ws:ws@1+5", "it takes two of ws, backend, runner"),
        ("ws:backend@1+0.0", "it has to last more than 0 s"),
    ],
)
def test_what_is_no_partition_is_refused_with_what_is(text: str, allowed: str) -> None:
    with pytest.raises(ValueError, match="is no partition: ") as refusal:
        parse_partition(text)
    assert allowed in str(refusal.value)


@given(
    st.permutations(HOST_NAMES),
    st.integers(0, 99_999).map(lambda tenths: tenths / 10),
    st.integers(1, 99_999).map(lambda tenths: tenths / 10),
)
def test_a_partition_reads_as_it_is_written(names: list[str], at: float, length: float) -> None:
    written = Partition(names[0], names[1], at, length)
    assert parse_partition(str(written)) == written


@given(st.text(max_size=30))
def test_any_other_text_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is no partition"):
        parse_partition(text)


async def test_netem_takes_all_three_where_the_kernel_has_it(kernel: Kernel) -> None:
    shaped = await shape(WS, latency_ms=50, loss_percent=0.5, rate_mbit=20)

    assert kernel.told[-1] == (
        "tc qdisc replace dev eth0 root netem limit 100000 "
        "delay 50.000000ms loss 0.500000% rate 20000000bit\n"
    )
    assert shaped.done == [
        "ws: latency of 50 ms on what it sends (netem)",
        "ws: loss of 0.5 % on what it sends (netem)",
        "ws: rate of 20 Mbit/s on what it sends (netem)",
    ]
    assert shaped.undone == []


@pytest.mark.parametrize(
    "kernel", [{"netem": "Error: Specified qdisc kind is unknown."}], indirect=True
)
async def test_without_netem_rate_and_loss_are_shaped_and_latency_is_said(kernel: Kernel) -> None:
    shaped = await shape(WS, latency_ms=50, loss_percent=5, rate_mbit=20)

    assert shaped.undone == ["ws: latency of 50 ms: this kernel has no netem, not shaped"]
    assert shaped.sentences[:2] == [
        "ws: loss of 5 % of what it receives (nft)",
        "ws: rate of 20 Mbit/s on what it sends (tbf)",
    ]
    assert "numgen random mod 10000 < 500 drop" in kernel.told[-2]
    assert "tbf rate 20000000bit burst 25000b latency 400ms" in kernel.told[-1]


@pytest.mark.parametrize(
    "kernel",
    [{"netem": "nonsense", "tbf": "no tbf", "nft": "nft: No such file or directory"}],
    indirect=True,
)
async def test_what_cannot_be_shaped_is_said_in_the_systems_words(kernel: Kernel) -> None:
    shaped = await shape(WS, latency_ms=1, loss_percent=5, rate_mbit=20)
    assert shaped == Shaped(
        undone=[
            "ws: latency of 1 ms: netem says: nonsense, not shaped",
            "ws: loss of 5 %: nft: No such file or directory, not shaped",
            "ws: rate of 20 Mbit/s: no tbf, not shaped",
        ]
    )
    cut = await partition(WS, BACKEND)
    assert cut.undone == [
        "ws and backend cannot be cut off from each other: nft: No such file or directory"
    ]
    assert kernel.told[-1].startswith("nft delete table")  # not one half of it either


async def test_nothing_asked_is_nothing_done(kernel: Kernel) -> None:
    assert await shape(WS) == Shaped()
    assert not any("netem" in line for line in kernel.told)


async def test_on_loopback_there_is_nothing_to_shape_or_cut(kernel: Kernel) -> None:
    shaped = await shape(ON_LOOPBACK, latency_ms=50, loss_percent=1)
    assert [text.partition(": not shaped, on loopback")[0] for text in shaped.undone] == [
        "ws: latency of 50 ms",
        "ws: loss of 1 %",
    ]
    async with partitioned(ON_LOOPBACK, ON_LOOPBACK) as cut:
        assert "cannot be cut off from each other: on loopback" in cut.undone[0]
    await unshape(ON_LOOPBACK)
    assert kernel.told == []


@pytest.mark.parametrize("values", [{"latency_ms": -1}, {"loss_percent": 101}, {"rate_mbit": -0.5}])
async def test_a_link_takes_no_impossible_values(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a link takes no latency"):
        await shape(WS, **values)


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with isolated_hosts(PREFIX) as hosts:
        yield hosts


async def _listing(host: Host, line: str) -> str:
    return (await run(host.command(line.split()))).output


@needs_namespaces
async def test_a_shaped_link_is_seen_by_the_kernels_tools_and_unshaped_again(hosts: Hosts) -> None:
    shaped = await shape(hosts.ws, loss_percent=5, rate_mbit=20)
    assert shaped.undone == []
    qdisc = await _listing(hosts.ws, "tc qdisc show dev eth0")
    assert "20Mbit" in qdisc
    ruleset = await _listing(hosts.ws, "nft list ruleset")
    assert "5%" in qdisc or "numgen random mod 10000 < 500 drop" in ruleset

    await shape(hosts.ws, rate_mbit=10)  # in place of the former
    assert "10Mbit" in await _listing(hosts.ws, "tc qdisc show dev eth0")
    assert await _listing(hosts.ws, "nft list ruleset") == ""

    await unshape(hosts.ws)
    assert "Mbit" not in await _listing(hosts.ws, "tc qdisc show dev eth0")


@needs_namespaces
async def test_latency_is_shaped_or_said_not_to_be(hosts: Hosts) -> None:
    shaped = await shape(hosts.ws, latency_ms=50)
    qdisc = await _listing(hosts.ws, "tc qdisc show dev eth0")
    if shaped.done:
        assert "delay 50ms" in qdisc
    else:
        assert shaped.undone == ["ws: latency of 50 ms: this kernel has no netem, not shaped"]
        assert "noqueue" in qdisc


@needs_namespaces
async def test_a_partition_stops_two_hosts_only_and_heals(
    hosts: Hosts, nursery: trio.Nursery
) -> None:
    await serve_hello(hosts.ws, nursery)
    async with partitioned(hosts.ws, hosts.backend) as cut:
        assert cut.done == ["ws and backend are cut off from each other (nft)"]
        apart = await hear_hello(hosts.backend, hosts.ws.address, seconds=0.3)
        assert not apart.is_fine
        assert (await hear_hello(hosts.runner, hosts.ws.address)).is_fine
    assert (await hear_hello(hosts.backend, hosts.ws.address)).is_fine
    await heal(hosts.ws, hosts.backend)  # healed already


@needs_namespaces
async def test_two_partitions_of_a_host_do_not_heal_each_other(hosts: Hosts) -> None:
    async with partitioned(hosts.ws, hosts.backend):
        async with partitioned(hosts.ws, hosts.runner):
            pass
        assert hosts.backend.address in await _listing(hosts.ws, "nft list ruleset")
    assert await _listing(hosts.ws, "nft list ruleset") == ""


@needs_namespaces
async def test_a_cancelled_partition_heals(hosts: Hosts) -> None:
    with trio.move_on_after(0.1):
        async with partitioned(hosts.ws, hosts.backend):
            await trio.sleep_forever()
    for host in (hosts.ws, hosts.backend):
        assert await _listing(host, "nft list ruleset") == ""
