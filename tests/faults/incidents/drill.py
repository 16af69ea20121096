"""Plays incidents, one after the other, each with processes of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from tests.faults.incidents.expects import Expect, failures, sightings
from tests.faults.incidents.scenes import Scene
from tests.faults.incidents.site import Site, site
from tests.faults.incidents.watch import Watch
from tests.ops.rules import ALERTS
from trio_odin.lab.incidents import Incident, Place

# Beside the incident itself, the most for a start and an end.
_AROUND_SECONDS = 150.0

Say = Callable[[str], object]


async def play(scene: Scene, folder: Path, say: Say) -> Incident:
    """Play one incident; files are in `folder`."""
    incident = incident_of(scene)
    try:
        with trio.fail_after(2 * _AROUND_SECONDS + scene.seconds):
            settings = await scene.settings(folder)
            incident.settings = {name: _shown(value, folder) for name, value in settings.items()}
            async with site(folder, settings, clients=scene.clients) as it:
                await _play(scene, incident, it, say)
    except* trio.TooSlowError:
        incident.failures.append(f"{scene.name}: a step was not over in time")
    except* Exception as errors:  # noqa: BLE001 - the other incidents are played all the same
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        incident.failures.append(f"{scene.name}: {str(first) or type(first).__name__}")
    return incident


def incident_of(scene: Scene) -> Incident:
    """The record of a scene in which nothing has been seen yet."""
    return Incident(
        name=scene.name,
        title=scene.title,
        what_was_done=scene.what_was_done,
        users=scene.users,
        what_to_do=scene.what_to_do,
        command=scene.command,
        settings={},
        sightings=sightings(
            scene.expects,
            scene.blind,
            rule_for={name: rule["for"] for name, rule in ALERTS.items()},
        ),
    )


def _shown(value: str, folder: Path) -> str:
    return value.replace(f"{folder}/", "")


async def _play(scene: Scene, incident: Incident, it: Site, say: Say) -> None:
    watch = Watch(it, scene.sort)
    watch.begin()
    if scene.clients:
        for expect in scene.expects:
            await _check_is_quiet(expect, watch)
    async with trio.open_nursery() as nursery:
        await nursery.start(scene.play, it)
        nursery.start_soon(watch.follow_alerts)
        since = trio.current_time()
        with trio.move_on_after(scene.seconds):
            found = {one.place: one for one in incident.sightings}
            await watch.until_seen(scene.expects, found, since, say)
        nursery.cancel_scope.cancel(reason="everything was seen, or time is up")
    incident.alerts = sorted(watch.fired)
    incident.failures += failures(incident, scene.seconds)


async def _check_is_quiet(expect: Expect, watch: Watch) -> None:
    """What is there before the incident does not show it."""
    content = await watch.read(expect.place)
    if content is None and expect.place is not Place.EXPLAIN:  # that has no line to explain yet
        raise RuntimeError(f"{expect.place.value} gives no answer before it begins")
    if content is not None and (text := expect.sees(content)):
        raise RuntimeError(f"{expect.place.value} shows it before it begins ({text})")
