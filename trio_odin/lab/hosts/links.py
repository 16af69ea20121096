"""Worse links: latency, loss, a rate, and hosts that cannot reach each other for a while.

netem does the first three where the kernel has it; without it tbf limits the rate and an nft rule
drops packets, and latency is not to be had. All of it is set in the namespaces of the hosts.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import attrs

from trio_odin.lab.hosts.hosts import HOST_NAMES, LINK, Host
from trio_odin.lab.hosts.run import Finished, run
from trio_odin.lab.hosts.teardown import to_the_end

_HEAL_SECONDS = 25.0
_LOSS_TABLE = "trio_odin_loss"
_LOSS_STEPS = 10_000  # hundredths of a percent
# netem drops what it cannot hold; its own 1,000 packets are a few milliseconds of a fan-out.
_NETEM_QUEUE_PACKETS = 100_000
_TBF_QUEUE_MILLISECONDS = 400
_LEAST_BURST_BYTES = 16_384
_ON_LOOPBACK = "on loopback the hosts have no links of their own"


@attrs.frozen
class Shaped:
    """What was done to a link and what was not, in sentences."""

    done: list[str] = attrs.field(factory=list)
    undone: list[str] = attrs.field(factory=list)

    @property
    def sentences(self) -> list[str]:
        """All of it, what was not done last."""
        return self.done + self.undone


@attrs.frozen
class Partition:
    """Two hosts cannot reach each other: from second `at` of each stage, for so many seconds."""

    host: str
    peer: str
    at_seconds: float
    for_seconds: float

    def __str__(self) -> str:
        """As `parse_partition` takes it."""
        return f"{self.host}:{self.peer}@{self.at_seconds:g}+{self.for_seconds:g}"


_PARTITION = re.compile(r"(\w+):(\w+)@(\d+(?:\.\d+)?)\+(\d+(?:\.\d+)?)", re.ASCII)


def parse_partition(text: str) -> Partition:
    """Read "ws:backend@30+10": from 30 s of each stage on they are apart for 10 s.

    Raises:
        ValueError: says what is allowed.
    """
    found = _PARTITION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no partition: it takes HOST:HOST@SECOND+SECONDS")
    host, peer = found[1], found[2]
    if host not in HOST_NAMES or peer not in HOST_NAMES or host == peer:
        raise ValueError(f"{text!r} is no partition: it takes two of {', '.join(HOST_NAMES)}")
    if float(found[4]) == 0:
        raise ValueError(f"{text!r} is no partition: it has to last more than 0 s")
    return Partition(host, peer, float(found[3]), float(found[4]))


@attrs.frozen
class _Wish:
    latency_ms: float
    loss_percent: float
    rate_mbit: float

    def __attrs_post_init__(self) -> None:
        if min(attrs.astuple(self)) < 0 or self.loss_percent > 100:
            raise ValueError(
                "a link takes no latency, loss or rate below 0, nor a loss above 100 %"
            )

    def sentences(self, host: str) -> list[str]:
        """What netem does with it: all on what the host sends."""
        parts = [
            (self.latency_ms, f"latency of {self.latency_ms:g} ms"),
            (self.loss_percent, f"loss of {self.loss_percent:g} %"),
            (self.rate_mbit, f"rate of {self.rate_mbit:g} Mbit/s"),
        ]
        return [f"{host}: {text}" for value, text in parts if value]


async def shape(
    host: Host, *, latency_ms: float = 0, loss_percent: float = 0, rate_mbit: float = 0
) -> Shaped:
    """Make a host's link worse, in place of what an earlier call did; 0 leaves that part alone.

    Latency (milliseconds) and rate (megabits a second) apply to what the host sends, loss to what
    it sends by netem and to what it receives without. Lasts until `unshape` or the host's end.

    Raises:
        ValueError: a value is out of range.
    """
    wish = _Wish(latency_ms, loss_percent, rate_mbit)
    wanted = wish.sentences(host.name)
    if host.namespace is None:
        return Shaped(undone=[f"{text}: not shaped, {_ON_LOOPBACK}" for text in wanted])
    await unshape(host)
    if not wanted:
        return Shaped()
    refusal = await run(host.command(_netem(wish)))
    if refusal.is_fine:
        return Shaped(done=[f"{text} on what it sends (netem)" for text in wanted])
    return await _shape_without_netem(host, wish, refusal)


async def unshape(host: Host) -> None:
    """Make a host's link as good as new; does nothing to one that is."""
    if host.namespace is not None:
        await run(host.command(["tc", "qdisc", "del", "dev", LINK, "root"]))
        await run(host.command(["nft", "delete", "table", "inet", _LOSS_TABLE]))


def _netem(wish: _Wish) -> list[str]:
    words = f"tc qdisc replace dev {LINK} root netem limit {_NETEM_QUEUE_PACKETS}"
    if wish.latency_ms:
        words += f" delay {wish.latency_ms:f}ms"
    if wish.loss_percent:
        words += f" loss {wish.loss_percent:f}%"
    if wish.rate_mbit:
        words += f" rate {_bits(wish)}bit"
    return words.split()


def _bits(wish: _Wish) -> int:
    return round(wish.rate_mbit * 1e6)


def _tbf(wish: _Wish) -> list[str]:
    # What passes at once has to last until the next look at the clock, 10 ms at worst.
    burst = max(_LEAST_BURST_BYTES, _bits(wish) // 8 // 100)
    return (
        f"tc qdisc replace dev {LINK} root tbf rate {_bits(wish)}bit burst {burst}b"
        f" latency {_TBF_QUEUE_MILLISECONDS}ms"
    ).split()


async def _shape_without_netem(host: Host, wish: _Wish, refusal: Finished) -> Shaped:
    shaped = Shaped()
    if wish.latency_ms:
        text = f"{host.name}: latency of {wish.latency_ms:g} ms"
        shaped.undone.append(f"{text}: {_why_no_netem(refusal)}, not shaped")
    if wish.loss_percent:
        text = f"{host.name}: loss of {wish.loss_percent:g} %"
        done = await _nft(host, _LOSS_TABLE, _loss_rule(wish.loss_percent))
        _note(shaped, done, f"{text} of what it receives (nft)", text)
    if wish.rate_mbit:
        text = f"{host.name}: rate of {wish.rate_mbit:g} Mbit/s"
        done = await run(host.command(_tbf(wish)))
        _note(shaped, done, f"{text} on what it sends (tbf)", text)
    return shaped


def _why_no_netem(refusal: Finished) -> str:
    """A missing module is no error worth quoting; anything else is."""
    is_missing = "kind is unknown" in refusal.complaint or "No such file" in refusal.complaint
    return "this kernel has no netem" if is_missing else f"netem says: {refusal.complaint}"


def _note(shaped: Shaped, done: Finished, success: str, failure: str) -> None:
    if done.is_fine:
        shaped.done.append(success)
    else:
        shaped.undone.append(f"{failure}: {done.complaint}, not shaped")


def _loss_rule(percent: float) -> str:
    return f"numgen random mod {_LOSS_STEPS} < {round(percent * _LOSS_STEPS / 100)} drop"


async def _nft(host: Host, table: str, rule: str) -> Finished:
    """Have one rule on what the host receives, in a table of its own; replaces that table."""
    script = f"""\
add table inet {table}
delete table inet {table}
table inet {table} {{
    chain input {{
        type filter hook input priority 0; policy accept;
        iifname "{LINK}" {rule}
    }}
}}
"""
    return await run(host.command(["nft", "-f", "-"]), stdin=script)


async def partition(host: Host, peer: Host) -> Shaped:
    """Cut two hosts off from each other: each drops what comes from the other, without a word.

    As with a pulled cable neither hears of it; connections between them stay open and starve.
    Lasts until `heal`. If one of them cannot be cut, neither is.
    """
    both = f"{host.name} and {peer.name}"
    if host.namespace is None or peer.namespace is None:
        return Shaped(undone=[f"{both} cannot be cut off from each other: {_ON_LOOPBACK}"])
    for here, there in ((host, peer), (peer, host)):
        done = await _nft(here, _cut_table(there), f"ip saddr {there.address} drop")
        if not done.is_fine:
            await heal(host, peer)
            return Shaped(undone=[f"{both} cannot be cut off from each other: {done.complaint}"])
    return Shaped(done=[f"{both} are cut off from each other (nft)"])


async def heal(host: Host, peer: Host) -> None:
    """Let two hosts reach each other again; does nothing if they can."""
    for here, there in ((host, peer), (peer, host)):
        if here.namespace is not None:
            await run(here.command(["nft", "delete", "table", "inet", _cut_table(there)]))


def _cut_table(there: Host) -> str:
    return f"trio_odin_cut_{there.name}"


@asynccontextmanager
async def partitioned(host: Host, peer: Host) -> AsyncIterator[Shaped]:
    """Two hosts cut off from each other for the length of a block; healed however it is left."""
    try:
        yield await partition(host, peer)
    finally:
        await to_the_end(partial(heal, host, peer), _HEAL_SECONDS)
