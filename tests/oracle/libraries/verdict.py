"""Compares what a library handed out with the truth.

A library hands out, for each of its subscriptions, events and gaps in an order. The rules:

- an event comes once, and never after a newer one of its channel;
- the events between two that came one after the other were skipped and counted by the later one, or
  a gap of their channel came since the former one. A server may report a loss up to a second after
  it, when it has just reported another.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from tests.oracle.truth import Place, Truth

# As in `judge`: the server's second, and the delays of this machine.
_PATIENCE_MS = 2500.0


@attrs.frozen(kw_only=True)
class Item:
    """Something that a subscription got, at Unix milliseconds.

    `number` is that of an event, None for a gap; `skipped` None: too many to be counted.
    """

    at_ms: float
    channels: frozenset[str]
    number: int | None = None
    skipped: int | None = 0
    is_snapshot: bool = False
    note: str = ""


@attrs.define
class Tally:
    """What became of the events of some subscriptions."""

    delivered: int = 0
    skipped: int = 0
    declared: int = 0
    gaps: int = 0
    findings: list[str] = attrs.field(factory=list)

    def add(self, other: Tally) -> None:
        self.delivered += other.delivered
        self.skipped += other.skipped
        self.declared += other.declared
        self.gaps += other.gaps
        self.findings += other.findings

    def count(self, kind: str) -> int:
        """The number of findings of a kind."""
        return sum(kind in one for one in self.findings)


def judge(name: str, channels: frozenset[str], items: Sequence[Item], truth: Truth) -> Tally:
    """Judge one subscription to `channels`."""
    tally = Tally(gaps=sum(item.number is None for item in items))
    for channel in sorted(channels):
        _judge_channel(f"{name} {channel}", channel, items, truth, tally)
    return tally


def _judge_channel(
    name: str, channel: str, items: Sequence[Item], truth: Truth, tally: Tally
) -> None:
    came: set[int] = set()
    last: Place | None = None
    covered_from: float | None = None
    its = [item for item in items if channel in item.channels]
    for position, item in enumerate(its):
        if item.number is None:
            covered_from = item.at_ms
            continue
        if item.number in came:
            tally.findings.append(f"{name}: repeat of #{item.number} at {item.at_ms:.0f}")
        came.add(item.number)
        tally.delivered += 1
        place = truth.places.get(item.number)
        if place is None:  # NATS has lost it since, or it was in two streams
            continue
        if last is not None and place < last:
            text = f"{name}: older #{item.number} after #{truth.number_at(last)}"
            tally.findings.append(f"{text} at {item.at_ms:.0f}")
            continue
        if last is not None:
            lost = truth.between(channel, last, place)[:-1]
            late = [one for one in its[position:] if one.at_ms - item.at_ms <= _PATIENCE_MS]
            is_told = covered_from is not None or any(one.number is None for one in late)
            if item.skipped is None or item.skipped >= len(lost):
                tally.skipped += len(lost)
            elif is_told:
                tally.declared += len(lost)
            else:
                numbers = [truth.number_at(one) for one in lost]
                text = f"{name}: silent loss of {numbers[:5]} ({len(lost)}) before #{item.number}"
                tally.findings.append(f"{text}, skipped {item.skipped}, at {item.at_ms:.0f}")
        last, covered_from = place, None
