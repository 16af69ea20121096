"""`python -m tests.oracle.libraries --faults 200 --seed 1`: the client libraries under faults."""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import attrs
import msgspec
import trio

from tests.oracle.faults import draw
from tests.oracle.follower import now_ms
from tests.oracle.libraries.players import Player, maker
from tests.oracle.libraries.verdict import Tally, judge
from tests.oracle.truth import Truth
from tests.oracle.world import CHANNELS, KINDS, Kind, World, running_world
from trio_odin.lab.provenance import Provenance, provenance

_SETTLE_SECONDS = 60.0
_ASK_AGAIN_SECONDS = 12.0
_TOGETHER = 2
_PLAYERS = ("trio", "asyncio", "node", "browser")


@attrs.define
class Outcome:
    """What was seen in one world, by kind of player."""

    world: str
    seed: str
    faults: Counter[str]
    events: int
    lives: int
    seconds: float
    tallies: dict[str, Tally]
    states: dict[str, Counter[str]]


async def _run_world(
    kind: Kind, players: list[str], faults: int, seed: str, pace: float, folder: Path
) -> Outcome:
    rng = random.Random(seed)
    make = maker(players, CHANNELS, random.Random(rng.random()))
    done: Counter[str] = Counter()
    history: list[str] = []
    begun_ms = now_ms()
    async with running_world(kind, folder, rng, make_players=make) as world:
        for server in world.servers:
            await server.wait_up()
        with trio.fail_after(60):  # all have begun
            while not all(part.numbers for one in world.players for part in one.parts):
                await trio.sleep(0.1)
        number = 0
        while done.total() < faults:
            number += 1
            drawn = random.Random(f"{seed}:{number}")
            await trio.sleep(drawn.uniform(0.05, 1.0) * pace)
            fault = draw(world, drawn)
            if what := await fault.do(world, drawn):
                done[fault.name] += 1
                history.append(f"{now_ms():.0f} {done.total()}. {fault.name}: {what}")
                if done.total() % 25 == 0:
                    print(f"{kind.name}: {done.total()} of {faults} faults", flush=True)
        await world.heal()
        missing = await _settle(world)
    seconds = (now_ms() - begun_ms) / 1000
    truth = Truth(world.evidence)
    tallies: dict[str, Tally] = {}
    states: dict[str, Counter[str]] = {}
    for player in world.players:
        tally = tallies.setdefault(player.kind, Tally())
        for number, part in enumerate(player.parts):
            name = f"{player.name}/{number}"
            tally.add(judge(name, part.channels, part.items, truth))
            lines = [f"{one.at_ms:.0f} {one.number} {one.note} {one}" for one in part.items]
            (folder / f"{player.name}-{number}.items").write_text("\n".join(lines) + "\n")
        tally.findings += [f"{player.name}: {text}" for text in player.errors]
        tally.findings += [text for text in missing if text.startswith(player.name)]
        states.setdefault(player.kind, Counter()).update(player.states)
    found = [text for tally in tallies.values() for text in tally.findings]
    (folder / "history").write_text("\n".join([*history, *found]) + "\n")
    events = len(truth.places)
    return Outcome(kind.name, seed, done, events, truth.lives, seconds, tallies, states)


async def _settle(world: World) -> list[str]:
    """Publish a last event of each channel; what does not arrive is a finding."""
    last: dict[str, int | None] = {}
    await trio.sleep(1)
    world.publisher.is_paused = True
    with trio.move_on_after(_SETTLE_SECONDS):
        while True:
            last = {channel: await world.publisher.publish_one(channel) for channel in CHANNELS}
            with trio.move_on_after(_ASK_AGAIN_SECONDS):
                while _missing(world.players, last):
                    await trio.sleep(0.05)
                await trio.sleep(3)  # time for what should not come, and for late notices
                return []
    return _missing(world.players, last)


def _missing(players: list[Player], last: dict[str, int | None]) -> list[str]:
    return [
        f"{player.name}: never came: #{last.get(channel)} of {channel}"
        for player in players
        for part in player.parts
        for channel in sorted(part.channels)
        if last.get(channel) not in part.numbers
    ]


def _line(outcome: Outcome) -> str:
    each = [
        f"{kind}: {tally.delivered} delivered, {tally.skipped} skipped, {tally.declared} in gaps "
        f"({tally.gaps} told), {tally.count('silent')} silent losses, {tally.count('repeat')} "
        f"repeats, {tally.count('older')} older, {len(tally.findings)} findings"
        for kind, tally in outcome.tallies.items()
    ]
    head = f"{outcome.world}: {outcome.faults.total()} faults, {outcome.events} events in "
    return "\n  ".join([f"{head}{outcome.lives} lives, seed {outcome.seed}", *each])


async def _run_all(options: argparse.Namespace, folder: Path) -> list[Outcome]:
    outcomes: list[Outcome] = []
    limit = trio.CapacityLimiter(_TOGETHER)

    async def run_one(name: str, share: int) -> None:
        async with limit:
            seed = f"{options.seed}:{name}"
            home = folder / name
            outcome = await _run_world(
                KINDS[name], options.players, share, seed, options.pace, home
            )
            outcomes.append(outcome)
            print(_line(outcome), flush=True)
            for tally in outcome.tallies.values():
                for finding in tally.findings[: options.show]:
                    print(f"    {finding}", flush=True)

    async with trio.open_nursery() as nursery:
        count = len(options.worlds)
        for number, name in enumerate(options.worlds):
            share = options.faults // count + (number < options.faults % count)
            nursery.start_soon(run_one, name, share)
    return outcomes


def _record(
    options: argparse.Namespace, origin: Provenance, outcomes: list[Outcome]
) -> dict[str, object]:
    """What docs/clients/faults.md is made from."""
    worlds = []
    for one in sorted(outcomes, key=lambda one: options.worlds.index(one.world)):
        players = {
            kind: {
                "delivered": tally.delivered,
                "skipped": tally.skipped,
                "reported": tally.declared,
                "gaps": tally.gaps,
                "lost": tally.count("silent loss"),
                "doubled": tally.count("repeat"),
                "older": tally.count("older"),
                "findings": len(tally.findings),
            }
            for kind, tally in one.tallies.items()
        }
        kept = {name: getattr(one, name) for name in ("world", "faults", "events", "lives")}
        worlds.append(kept | {"per_second": round(one.events / one.seconds), "players": players})
    record = "--record docs/clients/random-faults.json"
    how = f"--faults {options.faults} --seed {options.seed} {record}"
    return {
        "provenance": msgspec.to_builtins(origin),
        "command": f"python -m tests.oracle.libraries {how}",
        "worlds": worlds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.libraries", description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="in all worlds together")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    worlds = ["single-file", "single-memory", "gentle-cluster", "cluster-r3-memory"]
    parser.add_argument("--worlds", nargs="+", choices=KINDS, default=worlds, metavar="WORLD")
    parser.add_argument("--players", nargs="+", choices=_PLAYERS, default=list(_PLAYERS))
    parser.add_argument("--pace", type=float, default=1.0, help="factor for pauses between faults")
    parser.add_argument("--folder", type=Path, help="for logs, to be looked at")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write what was seen")
    parser.add_argument("--show", type=int, default=20, help="findings of each kind to show")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    origin = provenance()
    print(f"seed {options.seed}, {options.faults} faults in {', '.join(options.worlds)}")
    with tempfile.TemporaryDirectory(prefix="oracle-") as own:
        outcomes = trio.run(partial(_run_all, options, options.folder or Path(own)))
    if options.record is not None:
        options.record.write_text(json.dumps(_record(options, origin, outcomes), indent=1) + "\n")
    findings = sum(len(tally.findings) for one in outcomes for tally in one.tallies.values())
    print(f"{findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
