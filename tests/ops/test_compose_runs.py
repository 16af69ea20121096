"""The compose files, started by the real Docker and Compose, in a network of their own.

Ours, NATS, Prometheus, Alertmanager and HAProxy run; Grafana, Loki and Fluent Bit cannot be had
everywhere, and are left out by naming the others. Images are made here, see `make_stand_ins`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.logs_page import of_publisher, of_server
from tests.ops.composing import DEVELOPMENT, docker_compose, services
from tests.ops.conftest import OPS
from tests.ops.containers import podman_here, why_no_containers
from tests.ops.docker import (
    BACKEND_ADDRESS,
    WS_ADDRESS,
    Docker,
    docker_here,
    make_stand_ins,
    why_no_docker,
)
from tests.ops.prometheus import RUNBOOKS_URL
from tests.ops.shipper import JSON_LINE, load_script
from tests.ops.tools import missing, tool
from tests.waiting import until

pytestmark = pytest.mark.ops

IMAGE = "trio-odin:dev"
RUNNABLE = ["nats", "publisher", "prometheus", "alertmanager"]
WEBHOOK = "http://127.0.0.1:9/told-by-compose"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """A daemon that has our image and the stand-ins."""
    reason = why_no_docker() or why_no_containers()
    reason = reason or missing("prometheus", "prometheus-alertmanager", "haproxy")
    if reason is not None:
        pytest.skip(reason)
    official = {name: service["image"] for name, service in services(DEVELOPMENT).items()}
    with (
        tempfile.TemporaryDirectory(prefix="odin-docker-") as folder,
        docker_here(Path(folder)) as docker,
    ):
        trio.run(_bring_our_image, docker)
        make_stand_ins(docker, IMAGE, official)
        yield docker


async def _bring_our_image(docker: Docker) -> None:
    podman, archive = podman_here(), docker.folder / "image.tar"
    await podman.build(f"localhost/{IMAGE}")
    # With this name in it; Docker knows it without the host.
    await podman.run(
        "save", "--format=docker-archive", f"--output={archive}", f"localhost/{IMAGE}", seconds=300
    )
    await trio.to_thread.run_sync(docker.run, "load", "--input", str(archive))
    await trio.to_thread.run_sync(docker.run, "tag", f"localhost/{IMAGE}", IMAGE)
    archive.unlink()


@pytest.fixture
def ops(tmp_path: Path) -> Path:
    """A copy of ops/, with variables beside each compose file, as a person makes them."""
    copy = tmp_path / "ops"
    shutil.copytree(OPS, copy, ignore=shutil.ignore_patterns("secrets"))
    tool("openssl")
    subprocess.run(
        [copy / "nats" / "secrets.sh"],
        check=True,
        timeout=60,
        env={**os.environ, "ALERT_WEBHOOK_URL": WEBHOOK},
    )
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    given = {
        "TRIO_ODIN_IMAGE": IMAGE,
        "WS_INTERNAL_IP": WS_ADDRESS,
        "BACKEND_INTERNAL_IP": BACKEND_ADDRESS,
        "RUNBOOKS_URL": RUNBOOKS_URL,
        # Of a process here, which no container gets more of.
        "WS_NOFILE": str(min(files, 200_000)),
    }
    text = "".join(f"{name}={value}\n" for name, value in given.items())
    for folder in (copy, *(copy / "isolated").iterdir()):
        (folder / ".env").write_text(text)
    # Debian's Alertmanager 0.25 does not know `url_file` yet, which came with 0.26.
    file = copy / "alertmanager" / "alertmanager.yml"
    file.write_text(re.sub(r"url_file: \S+", f"url: {WEBHOOK}", file.read_text()))
    return copy


@contextmanager
def up(docker: Docker, folder: Path, *names: str) -> Iterator[None]:
    """Some services of a compose file, all of them healthy."""
    try:
        docker.compose(folder, "up", "--detach", "--no-build", "--wait", "--pull=never", *names)
        yield
    except BaseException as error:
        error.add_note(docker.compose(folder, "logs", "--tail=20"))
        raise
    finally:
        docker.compose(folder, "down", "--volumes", "--timeout=1")


@contextmanager
def watching(docker: Docker, channel: str) -> Iterator[subprocess.Popen[str]]:
    """A client from outside, on the port that is published."""
    command = [
        sys.executable,
        "-m",
        "trio_odin",
        "watch",
        channel,
        "--url",
        "ws://127.0.0.1:3004/ws",
    ]
    process = subprocess.Popen(
        docker.inside(*command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def next_line(client: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """The next event, state or gap that a client prints."""
    assert client.stdout is not None
    found: dict[str, Any] = {}
    while found.get("type") != kind:
        found = json.loads(client.stdout.readline())
    return found


def events_logged(docker: Docker, container: str) -> list[str]:
    return [json.loads(line["log"])["event"] for line in docker.lines_on_disk(container)]


def figure(docker: Docker, query: str) -> float | None:
    """What Prometheus answers, if it has one."""
    answer = json.loads(docker.get(f"http://127.0.0.1:9090/api/v1/query?query={query}"))
    result = answer["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def test_three_machines_work_together_as_their_files_say(docker: Docker, ops: Path) -> None:
    backend, ws, runner = (ops / "isolated" / name for name in ("backend", "ws", "runner"))
    with up(docker, backend, *RUNNABLE), up(docker, ws, "ws"):
        check_limits(docker)
        check_that_prometheus_sees_the_server(docker)
        hook = "/etc/secrets/alert_webhook_url"
        assert docker.run("exec", "odin-alertmanager", "cat", hook).strip() == WEBHOOK
        load = ("--connections=50", "--tokens=10", "--rate=20", "--hold=3", "--expect-success=1.0")
        docker.compose(runner, "run", "--rm", "runner", *load)
        check_that_a_restart_finds_all_in_place(docker, backend)
        check_that_settings_are_read_again(docker, ops, ws)
        check_that_it_is_started_again_when_it_dies(docker)
        check_that_it_drains_and_comes_back(docker, ws)
        check_that_lines_can_be_shipped(docker)


def check_limits(docker: Docker) -> None:
    expected = {"odin-ws": (1.9, 7168), "odin-nats": (0.5, 256), "odin-publisher": (0.2, 128),
                "odin-prometheus": (0.3, 256), "odin-alertmanager": (0.05, 64)}  # fmt: skip
    for name, (cores, memory) in expected.items():
        host = docker.inspect(name)["HostConfig"]
        assert (host["NanoCpus"] / 1e9, host["Memory"] / MIB) == (cores, memory)
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert docker.health(name) == "healthy"
    health = json.loads(docker.get("http://127.0.0.1:3004/health"))
    assert health["checks"]["memory"]["limit_mb"] == 7168, "the server sees its container's limit"
    assert health["status"] == "healthy"


def check_that_prometheus_sees_the_server(docker: Docker) -> None:
    until(lambda: figure(docker, "ws_nats_connected") == 1.0, what="the server is scraped")
    until(lambda: alertmanagers(docker), what="Prometheus knows Alertmanager")


def alertmanagers(docker: Docker) -> list[dict[str, Any]]:
    """Whom Prometheus tells of alerts."""
    answer = json.loads(docker.get("http://127.0.0.1:9090/api/v1/alertmanagers"))
    found: list[dict[str, Any]] = answer["data"]["activeAlertmanagers"]
    return found


def check_that_a_restart_finds_all_in_place(docker: Docker, backend: Path) -> None:
    docker.compose(backend, "restart", *RUNNABLE)
    docker.compose(backend, "up", "--detach", "--no-build", "--wait", "--pull=never", *RUNNABLE)


def check_that_settings_are_read_again(docker: Docker, ops: Path, ws: Path) -> None:
    with (ops / "settings" / "ws.env").open("a") as file:
        file.write("WS_MAX_CONNECTIONS=123\n")
    docker.compose(ws, "exec", "ws", "sh", "-c", "kill -HUP 1")
    until(lambda: "reload.done" in events_logged(docker, "odin-ws"), what="it has read them")
    health = json.loads(docker.get("http://127.0.0.1:3004/health"))
    assert health["checks"]["capacity"]["max"] == 123


def check_that_it_is_started_again_when_it_dies(docker: Docker) -> None:
    """Also behind a SIGHUP: one by `docker kill` would have told Docker to leave it stopped."""
    os.kill(docker.inspect("odin-ws")["State"]["Pid"], signal.SIGKILL)
    until(lambda: docker.inspect("odin-ws")["RestartCount"] == 1, what="Docker starts it again")
    until(lambda: docker.health("odin-ws") == "healthy", what="it is healthy", seconds=60)


def check_that_it_drains_and_comes_back(docker: Docker, ws: Path) -> None:
    with watching(docker, "BTC.trade") as client:
        assert next_line(client, "state")["state"] == "live"
        docker.compose(ws, "stop", "ws")
        assert docker.inspect("odin-ws")["State"]["ExitCode"] == 0
        assert events_logged(docker, "odin-ws")[-1] == "drain.finished"
        assert next_line(client, "state")["state"] != "live"
        docker.compose(ws, "up", "--detach", "--wait", "--pull=never", "ws")
        while next_line(client, "state")["state"] != "live":
            pass  # it connects again by itself
    assert docker.health("odin-ws") == "healthy"


def check_that_lines_can_be_shipped(docker: Docker) -> None:
    """The lines as Docker has written them, through the shipper's script."""
    label = load_script()
    documented = {"ws": of_server(), "publisher": of_publisher()}
    for service in ("ws", "publisher", "nats"):
        lines = docker.lines_on_disk(f"odin-{service}")
        assert len(lines) > 2
        for line in lines:
            shipped = label(line["log"], line["attrs"])
            assert shipped is not None
            assert shipped["service"] == service
            assert shipped["level"] in {"debug", "info", "warning", "error"}, line
            if service != "nats":
                told = json.loads(shipped["log"])
                if "logger" in told:  # of a library: docs/logs.md has our own
                    continue
                _, fields = documented[service][told["event"]]
                assert set(told) <= fields | {"event", "level", "timestamp"}
    assert all("attrs" not in line for line in docker.lines_on_disk("odin-prometheus"))
    assert label(JSON_LINE, {}) is None


def test_one_machine_has_a_market_whose_events_a_client_gets(docker: Docker, ops: Path) -> None:
    with up(docker, ops, *RUNNABLE, "ws"):
        with watching(docker, "BTC.trade") as client:
            assert next_line(client, "price:update")["data"]["tokenId"] == "BTC"
        sent = "sum(ws_messages_sent_total)"
        until(lambda: (figure(docker, sent) or 0) > 0, what="Prometheus counts deliveries")
        docker.compose(ops, "restart", "nats")
        until(
            lambda: events_logged(docker, "odin-ws").count("nats.connected") == 2,
            what="the server has NATS again",
        )
        with watching(docker, "ETH.trade") as client:
            assert next_line(client, "price:update")["data"]["tokenId"] == "ETH"


def test_the_walk_of_the_page_about_operating(docker: Docker, ops: Path) -> None:
    """Health, an alert and its end, a rolling upgrade: docs/operating.md, with its commands."""
    with up(docker, ops, *RUNNABLE, "ws", "ws-2", "haproxy"):
        assert json.loads(docker.get("http://127.0.0.1:3004/health"))["status"] == "healthy"
        check_that_an_alert_fires_and_ends(docker, ops)
        check_that_a_rolling_upgrade_refuses_nobody(docker, ops)


def check_that_an_alert_fires_and_ends(docker: Docker, ops: Path) -> None:
    def alerts() -> dict[str, str]:
        page = json.loads(docker.get("http://127.0.0.1:9093/api/v2/alerts"))
        named = {a["labels"]["alertname"]: a["annotations"]["runbook_url"] for a in page}
        # Always there: so that its absence tells.
        assert named.pop("Watchdog") == f"{RUNBOOKS_URL}#watchdog"
        return named

    until(
        lambda: "Watchdog" in docker.get("http://127.0.0.1:9093/api/v2/alerts"),
        what="a pulse",
        seconds=90,
    )
    assert alerts() == {}
    docker.compose(ops, "stop", "nats")
    told = until(alerts, what="an alert", seconds=90)
    assert told == {"NatsDisconnected": f"{RUNBOOKS_URL}#natsdisconnected"}
    docker.compose(ops, "start", "nats")
    # The stream was in NATS' memory, so what came after it is another one: that is told, too.
    until(lambda: set(alerts()) <= {"EventsLost"}, what="the end of the alert", seconds=90)


def check_that_a_rolling_upgrade_refuses_nobody(docker: Docker, ops: Path) -> None:
    connections, result = 300, docker.folder / "load.json"
    load = f"load ws://127.0.0.1:3000/ws --connections {connections} --tokens BTC,ETH --hold 90"
    beside = f"--reconnect --health-url http://127.0.0.1:3005/health --json {result}"
    command = [sys.executable, "-m", "trio_odin", *load.split(), *beside.split()]
    clients = subprocess.Popen(
        docker.inside(*command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        open_now = "sum(ws_connections_current)"
        until(
            lambda: (figure(docker, open_now) or 0) >= connections / 2,
            what="half of them are connected",
        )
        roll(docker, ops, "ws-1", "ws")
        roll(docker, ops, "ws-2", "ws-2")
        said, _ = clients.communicate(timeout=180)
    finally:
        clients.kill()
        clients.wait(10)
    found = json.loads(result.read_text())
    assert clients.returncode in (0, 1), said  # 1: events were missed by who was away
    assert found["rejections"] == found["failures"] == {}, said
    assert found["reconnects"]["lost"] == found["reconnects"]["back"] >= connections, said


def roll(docker: Docker, ops: Path, node: str, service: str) -> None:
    restart = f"{docker_compose()} up -d --no-build --force-recreate --no-deps {service}"
    script = [str(ops / "haproxy" / "rolling.py"), "--socket=127.0.0.1:8405", f"--node={node}"]
    done = subprocess.run(
        docker.inside(*script, "--restart", restart),
        env=docker.environment,
        cwd=ops,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
