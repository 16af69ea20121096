"""Runs several worlds at once, with a number of faults in each, and the verdict on all."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from tests.oracle.faults import draw
from tests.oracle.follower import now_ms
from tests.oracle.judge import Finding, Verdict, judge
from tests.oracle.truth import Truth
from tests.oracle.world import KINDS, Kind, World, running_world

_SETTLE_SECONDS = 45.0
_ASK_AGAIN_SECONDS = 10.0
_LOOK_SECONDS = 0.05
# Concurrent worlds. On a small machine more of them would mostly wait for each other.
_TOGETHER = 4

# What became of each delivery.
_OUTCOMES = [
    "ws_messages_sent_total",
    "ws_deliveries_queued",
    "ws_deliveries_conflated_total",
    "ws_deliveries_skipped_total",
    "ws_deliveries_dropped_total",
]

Say = Callable[[str], None]


@attrs.define
class Outcome:
    """The outcome of one world."""

    kind: str
    seed: str
    faults: Counter[str]
    verdict: Verdict
    events: int
    lives: int
    undecided: int
    starts: list[int]
    clients: int
    seconds: float
    history: list[str]

    @property
    def share(self) -> float:
        """The share of the owed events that were delivered."""
        owed = self.verdict.delivered + self.verdict.declared
        return self.verdict.delivered / owed if owed else 1.0


# A server that declared everything lost would be correct, too. If no fault destroys anything, this
# share must be delivered; if streams are destroyed, it depends on the drawn faults.
_SHARE_MIN = 0.8
# Of the 50 to 200 published events/s, this number a second must reach the stream.
_RATE_MIN = 5
# The greatest share of events with an unknown fate.
_UNDECIDED_MAX = 0.25


def check(outcomes: list[Outcome]) -> None:
    """Fail on any violation of the page."""
    for outcome in outcomes:
        verdict = outcome.verdict
        shown = [f"{one.client} {one.kind}: {one.detail}" for one in verdict.findings[:10]]
        assert not verdict.findings, "\n".join([f"seed {outcome.seed}", *shown])
        assert outcome.faults.total() > 0
        assert verdict.delivered > 0
        assert verdict.skipped > 0, "no client had a rate"
        assert outcome.events > _RATE_MIN * outcome.seconds, f"{outcome.events} events"
        assert outcome.undecided <= _UNDECIDED_MAX * outcome.events, f"{outcome.undecided} events"
        if KINDS[outcome.kind].is_gentle:
            assert not verdict.needless, f"{verdict.needless} resumes needlessly incomplete"
            assert outcome.share >= _SHARE_MIN, f"{outcome.share:.0%} of {outcome.kind}"


def seed_of(seed: int, kind: str) -> str:
    return f"{seed}:{kind}"


async def run_worlds(
    kinds: list[str],
    *,
    faults: int,
    seed: int,
    folder: Path | None = None,
    pace: float = 1.0,
    say: Say = lambda _: None,
) -> list[Outcome]:
    """Run a world of each kind, a few at once, with `faults` in all.

    Args:
        kinds: names of `KINDS`.
        faults: in all worlds together.
        seed: of everything random.
        folder: for logs and stores; by default a temporary one.
        pace: factor for the pauses between faults.
        say: receives lines about the progress.
    """
    outcomes: list[Outcome] = []
    limit = trio.CapacityLimiter(_TOGETHER)
    with tempfile.TemporaryDirectory(prefix="oracle-") as own:

        async def run_one(kind: Kind, share: int) -> None:
            home = (folder or Path(own)) / kind.name
            async with limit:
                outcomes.append(
                    await _run_world(kind, home, share, seed_of(seed, kind.name), pace, say)
                )

        async with trio.open_nursery() as nursery:
            for number, name in enumerate(kinds):
                share = faults // len(kinds) + (number < faults % len(kinds))
                nursery.start_soon(run_one, KINDS[name], share)
    return sorted(outcomes, key=lambda outcome: kinds.index(outcome.kind))


async def _run_world(
    kind: Kind, folder: Path, faults: int, seed: str, pace: float, say: Say
) -> Outcome:
    begun = trio.current_time()
    history: list[str] = []
    done: Counter[str] = Counter()

    def note(text: str) -> None:
        history.append(f"{now_ms():.0f} {text}")
        say(f"{kind.name}: {text}")

    late: list[Finding] = []
    async with running_world(kind, folder, random.Random(seed)) as world:
        note(f"{world.rate:.0f} events/s, workers {[one.workers for one in world.servers]}")
        for server in world.servers:
            await server.wait_up()
        await _break(world, faults, seed, pace, done, note)
        note("heals")
        await world.heal()
        late = await _settle(world)
        late += await _imbalances(world)
    truth, verdict = _verdict_on(world)
    verdict.findings += late
    _write_down(folder, world, history, verdict)
    return Outcome(
        kind=kind.name,
        seed=seed,
        faults=done,
        verdict=verdict,
        events=len(truth.places),
        lives=truth.lives,
        undecided=len(truth.undecided),
        starts=truth.starts,
        clients=len(world.clients),
        seconds=trio.current_time() - begun,
        history=history,
    )


async def _break(
    world: World, faults: int, seed: str, pace: float, done: Counter[str], note: Say
) -> None:
    number = 0
    while done.total() < faults:
        number += 1
        rng = random.Random(f"{seed}:{number}")
        await trio.sleep(rng.uniform(0.05, 1.0) * pace)
        fault = draw(world, rng)
        if what := await fault.do(world, rng):
            done[fault.name] += 1
            note(f"{done.total()}. {fault.name}: {what}")


async def _settle(world: World) -> list[Finding]:
    """Publish a last event of each channel, and wait until all its subscribers have it.

    A client that does not get so far in that time is a finding: nothing may be owed to it.
    """
    last: dict[str, int | None] = {}
    for client in world.clients:
        client.settle()
    await trio.sleep(0.5)
    world.publisher.is_paused = True
    with trio.move_on_after(_SETTLE_SECONDS) as waiting:
        while True:
            wanted = sorted({channel for one in world.clients for channel in one.follower.channels})
            last = {channel: await world.publisher.publish_one(channel) for channel in wanted}
            with trio.move_on_after(_ASK_AGAIN_SECONDS):
                while not all(
                    last[channel] in client.follower.numbers
                    for client in world.clients
                    for channel in client.follower.channels
                ):
                    await trio.sleep(_LOOK_SECONDS)
                await trio.sleep(1)  # time for events that should not come
                break
    if not waiting.cancelled_caught:
        return []
    return [
        Finding(
            kind="not arrived", client=client.name, at_ms=now_ms(), detail=f"{channel}: {number}"
        )
        for client in world.clients
        for channel in sorted(client.follower.channels)
        if (number := last.get(channel)) not in client.follower.numbers
    ]


async def _imbalances(world: World) -> list[Finding]:
    """Check the ledger of each server, also by the numbers that an operator sees."""
    findings = []
    for server in world.servers:
        assert server.process is not None
        await server.process.wait_ready()  # it may have been started without any client
        page = await server.process.metrics()
        outcomes = sum(page[name] for name in _OUTCOMES)
        lost = page["ws_deliveries_matched_total"] - outcomes
        if lost or page["ws_ledger_imbalance"]:
            detail = f"{lost:.0f} deliveries; in all {page['ws_ledger_imbalance']:.0f}"
            name = server.folder.name
            findings.append(Finding(kind="imbalance", client=name, at_ms=now_ms(), detail=detail))
    return findings


def _write_down(folder: Path, world: World, history: list[str], verdict: Verdict) -> None:
    """Write the files that help to explain a finding."""
    for client in world.clients:
        lines = [f"{entry}\n" for entry in client.follower.journal]
        (folder / f"{client.name}.journal").write_text("".join(lines))
    findings = [
        f"{one.at_ms:.0f} {one.client} {one.kind}: {one.detail}" for one in verdict.findings
    ]
    (folder / "history").write_text("\n".join(sorted([*history, *findings])) + "\n")


def _verdict_on(world: World) -> tuple[Truth, Verdict]:
    """Judge each client; events that any of them received were in the stream, too."""
    evidence = world.evidence
    for client in world.clients:
        for epoch, heard_ms in client.follower.heard.items():
            evidence.heard[epoch] = min(heard_ms, evidence.heard.get(epoch, heard_ms))
        for event in client.follower.events():
            if event.number in evidence.sent:
                evidence.saw(event.number, event.offset, event.stored_ms)
                if event.epoch is not None:
                    evidence.epochs[event.epoch].add(event.number)
    truth, verdict = Truth(evidence), Verdict()
    for client in world.clients:
        verdict.add(judge(client.name, client.follower.journal, truth))
        verdict.findings += [
            Finding(kind="error", client=client.name, at_ms=0, detail=text)
            for text in client.follower.errors
        ]
    if world.kind.nodes == 1:  # a single node has only one stream
        verdict.findings += [
            Finding(kind="disputed", client="", at_ms=times[0], detail=f"#{number}")
            for number, times in evidence.disputed.items()
        ]
    return truth, verdict
