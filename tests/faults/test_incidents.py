"""The drill of incidents: what it expects, what it says, and one incident played."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest

from tests.faults.incidents.drill import incident_of
from tests.faults.incidents.expects import (
    alert,
    amount,
    event,
    failures,
    firing,
    is_pending,
    says,
    sightings,
    table,
)
from tests.faults.incidents.report import cell_of, lines
from tests.faults.incidents.scenes import SCENES, Scene
from tests.logs_page import of_server
from tests.ops.alerting import with_short_windows
from tests.ops.rules import ALERTS
from tests.ops.tools import require
from tests.top.rig import connection, reading
from trio_odin.lab.incidents import Incident, IncidentReport, Place, Sighting
from trio_odin.lab.provenance import provenance
from trio_odin.top.figures import as_text

_ROOT = Path(__file__).parents[2]


def drill(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.faults.incidents", *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def firing_alert(name: str, state: str = "firing", **labels: str) -> dict[str, Any]:
    return {
        "labels": {"alertname": name, **labels},
        "state": state,
        "annotations": {"summary": f"odin-ws: {name}"},
    }


# ---- expectations


def test_an_alert_is_seen_when_it_fires_with_its_labels() -> None:
    expect = alert("ConnectionRejections", reason="at_capacity")
    pending = firing_alert("ConnectionRejections", "pending", reason="at_capacity")
    other = firing_alert("ConnectionRejections", reason="memory")
    assert not expect.sees([pending, other])
    assert is_pending([pending], "ConnectionRejections")
    assert not is_pending([other], "NatsDisconnected")
    fires = firing_alert("ConnectionRejections", reason="at_capacity")
    assert expect.sees([other, fires]) == "odin-ws: ConnectionRejections"


def test_the_alert_that_always_fires_says_nothing() -> None:
    quiet = firing_alert("LoopLag", "pending")
    assert firing([firing_alert("Watchdog"), firing_alert("ServerDown"), quiet]) == {"ServerDown"}


def test_a_line_of_the_log_has_the_event_and_the_fields() -> None:
    expect = event("handshake.refused", reason="origin")
    other: dict[str, Any] = {"event": "handshake.refused", "reason": "unauthorized"}
    assert not expect.sees([other, {"event": "summary"}, {}])
    assert "origin" in expect.sees([other, {"event": "handshake.refused", "reason": "origin"}])


def test_a_text_shows_the_part_that_is_looked_for() -> None:
    expect = says(Place.SCREEN, "refused (origin)", r"refused \S+ \(origin\)")
    assert expect.sees("clients 3  refused 9.8/s (origin)  workers 2 of 2") == (
        "refused 9.8/s (origin)"
    )
    assert not expect.sees("refused 0/s")


def test_the_tables_of_top_are_read_as_they_are_printed() -> None:
    shown = reading(10, connection(1, queued=12), connection(2, subject="ann", channels=256))
    text = "\n".join(as_text("a:1", shown, None, 200))
    first, second = table(text, "connections")
    assert (first["ID"], first["USER"], first["WAIT"], first["CH"]) == ("1", "", "12", "2")
    assert (second["ID"], second["USER"], amount(second["CH"])) == ("2", "ann", 256)
    (channel,) = table(text, "channels")
    assert (channel["CHANNEL"], channel["EVENTS/S"]) == ("BTC.trade", "12")
    assert table(text, "nothing") == []


@pytest.mark.parametrize(("shown", "value"), [("12.3k", 12_300), ("0.4", 0.4), ("–", 0), ("7", 7)])
def test_amounts(shown: str, value: float) -> None:
    assert amount(shown) == value


def test_windows_of_a_rule_are_shortened_and_its_thresholds_stay() -> None:
    rule = 'increase(ws_x_total{reason="a"}[5m]) > 10 and ws_y > 15'
    assert with_short_windows(rule, 20) == (
        'increase(ws_x_total{reason="a"}[15000ms]) > 10 and ws_y > 15'
    )


# ---- incidents


def test_each_name_is_one_word_and_given_once() -> None:
    names = [scene.name for scene in SCENES]
    assert len(names) == len(set(names)) == 10
    assert all(re.fullmatch(r"[a-z-]+", name) for name in names)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_every_place_either_has_to_show_an_incident_or_says_why_not(scene: Scene) -> None:
    incident = incident_of(scene)
    assert [one.place for one in incident.sightings] == list(Place)
    assert all(one.what for one in incident.sightings)
    assert {Place.TOP, Place.SCREEN} <= {one.place for one in scene.expects}
    alerts = [one for one in incident.sightings if one.place is Place.ALERT and one.is_expected]
    assert all(one.rule_for for one in alerts)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_an_incident_names_alerts_sections_and_events_that_exist(scene: Scene) -> None:
    assert {one.alert for one in scene.expects if one.alert} <= ALERTS.keys()
    sections = {name.lower() for name in ALERTS}
    assert set(re.findall(r"alerts\.md#([a-z]+)", scene.what_to_do)) <= sections
    logged = [one.what.split(",")[0] for one in scene.expects if one.place is Place.LOG]
    assert set(logged) <= of_server().keys()


def test_a_place_that_is_expected_and_excused_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="each place"):
        sightings([alert("ServerDown")], dict.fromkeys(Place, "why"), rule_for={})


# ---- what it says


def _incident(**seconds: float | None) -> Incident:
    """One that TOP has to show, and an alert."""
    wanted = {Place.TOP: seconds.get("top"), Place.ALERT: seconds.get("alert")}
    return Incident(
        name="nats-down",
        title="NATS is down",
        what_was_done="SIGKILL",
        users="none",
        what_to_do="start it",
        command="trio-odin top",
        settings={},
        sightings=[
            Sighting(
                place=place,
                what="it is seen",
                is_expected=place in wanted,
                seconds=wanted.get(place),
                pending_seconds=1.2 if place is Place.ALERT else None,
            )
            for place in Place
        ],
    )


def _report(*incidents: Incident) -> IncidentReport:
    return IncidentReport(
        provenance=provenance(),
        command="nox -s incidents",
        versions={},
        faster=20,
        scrape_seconds=1.0,
        incidents=list(incidents),
    )


def test_what_is_missing_is_a_sentence_and_the_verdict() -> None:
    incident = _incident(top=2.5)
    incident.failures = failures(incident, 60)
    said = list(lines(_report(incident, _incident(top=1.0, alert=3.0))))
    assert incident.failures == ["nats-down: alert has not shown it within 60 s: it is seen"]
    assert any(line.startswith("NOT seen  nats-down: alert") for line in said)
    assert said[-1] == "NOT passed: nats-down"
    assert not incident.passed


def test_the_table_has_seconds_of_each_place() -> None:
    said = list(lines(_report(_incident(top=1.0, alert=3.0))))
    row = next(line for line in said if line.startswith("nats-down"))
    cells = re.split(r" {2,}", row)
    assert cells == ["nats-down", "1.0", "–", "–", "–", "1.2 → 3.0", "–", "–", "it is seen"]
    assert said[-1] == "passed: 1 incidents, each seen where it has to be"
    assert any("1/20 of the shipped one" in line for line in said)


def test_an_incident_without_any_look_has_not_passed() -> None:
    assert not attrs.evolve(_incident(), sightings=[]).passed


def test_the_place_that_showed_it_first() -> None:
    first = _incident(top=2.0, alert=1.0).first
    assert first is not None
    assert first.place is Place.ALERT
    assert _incident().first is None


def test_a_missing_place_is_marked() -> None:
    assert cell_of(_incident().at(Place.TOP)) == "MISSING"
    assert cell_of(_incident(top=1.0).at(Place.LOG)) == "–"


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--only=nats-down,fire", "'fire': allowed are slow-client, hot-channel"),
        ("--json=nowhere/x.json", "'nowhere/x.json': allowed is a file in a folder that exists"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(argument: str, sentence: str) -> None:
    done = drill(argument)
    assert done.returncode == 2
    assert sentence in done.stderr


# ---- the whole


@pytest.mark.faults
def test_one_incident_is_played_and_recorded(tmp_path: Path) -> None:
    require("prometheus")
    file = tmp_path / "incidents.json"
    done = drill("--only=nats-down", f"--json={file}", f"--keep={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    (incident,) = msgspec.json.decode(file.read_bytes(), type=IncidentReport).incidents
    assert incident.passed
    fired = incident.at(Place.ALERT)
    assert fired.seconds is not None
    assert fired.pending_seconds is not None
    assert fired.pending_seconds < fired.seconds
    assert "NatsDisconnected" in incident.alerts
    assert list(tmp_path.glob("drill-*/nats-down/server.log"))
