"""Three NATS with users and TLS, of compose and of Kubernetes: real ones, with other addresses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import attrs
import pytest

from tests.e2e.nats import free_port
from tests.ops.conftest import OPS
from tests.ops.prometheus import running
from tests.ops.test_nats_secrets import login_of, make_secrets
from tests.waiting import until_answer, wait_until
from trio_odin.demo.nats_server import find_nats_server
from trio_odin.lab.load.pages import get, get_object, parse_metrics

_SIZE = 3
_REFUSED = "TLS route handshake error"
_OF_PODS = OPS / "kubernetes" / "nats" / "nats.conf"


@attrs.frozen
class Member:
    """One server of the cluster, and where it listens."""

    name: str
    home: Path
    port: int = attrs.field(factory=free_port)
    route: int = attrs.field(factory=free_port)
    pages: int = attrs.field(factory=free_port)


def _moved(text: str, one: Member, members: list[Member], secrets: Path) -> str:
    text = text.replace("0.0.0.0:4222", f"127.0.0.1:{one.port}")
    text = text.replace("0.0.0.0:8222", f"127.0.0.1:{one.pages}")
    text = text.replace("0.0.0.0:6222", f"127.0.0.1:{one.route}")
    for name, other in zip(re.findall(r"nats-route://([\w.:-]+)", text), members, strict=False):
        text = text.replace(f"nats-route://{name}", f"nats-route://localhost:{other.route}")
    return text.replace("/etc/secrets", str(secrets)).replace("/data", str(one.home / "data"))


def write_for_compose(one: Member, members: list[Member], secrets: Path) -> Path:
    shutil.copytree(OPS / "nats", one.home / "nats")
    (one.home / "secrets").symlink_to(secrets)
    for file in (one.home / "nats").glob("*.conf"):
        file.write_text(_moved(file.read_text(), one, members, secrets))
    return one.home / "nats" / "clustered.conf"


def write_for_pods(one: Member, members: list[Member], secrets: Path) -> Path:
    one.home.mkdir(parents=True)
    (one.home / "secrets").symlink_to(secrets)
    file = one.home / "nats.conf"
    file.write_text(_moved(_OF_PODS.read_text(), one, members, secrets))
    return file


def variables(one: Member) -> Mapping[str, str]:
    client, route = f"localhost:{one.port}", f"localhost:{one.route}"
    return {
        "NATS_NAME": one.name,
        "NATS_CLIENT_ADDRESS": client,
        "NATS_ROUTE_ADDRESS": route,
        "POD_NAME": one.name,
        "CLIENT_ADDRESS": client,
        "ROUTE_ADDRESS": route,
    }


@attrs.frozen
class Cluster:
    """A cluster that runs. `stacks` ends one member each."""

    folder: Path
    members: list[Member]
    stacks: list[ExitStack]

    async def peers(self, one: Member) -> int:
        """To how many others a member has routes."""
        page = await get_object(f"http://127.0.0.1:{one.pages}/routez") or {}
        return len({route["remote_name"] for route in page.get("routes", [])})

    async def is_complete(self) -> bool:
        for one in self.members:
            if await self.peers(one) < _SIZE - 1:
                return False
            page = await get(f"http://127.0.0.1:{one.pages}/healthz")
            if page is None or page.status != 200:
                return False
        return True

    def environment(self, client: str) -> dict[str, str]:
        """As compose gives it, the addresses apart."""
        urls = [f"tls://localhost:{one.port}" for one in self.members]
        file = self.folder / f"{client}_url"
        file.write_text(",".join(urls) + "\n")
        given = login_of(self.folder / "secrets", client)
        return {**given, "NATS_URL_FILE": str(file)}


Write = Callable[[Member, list[Member], Path], Path]


@pytest.fixture(params=[write_for_compose, write_for_pods], ids=["compose", "kubernetes"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    write: Write = request.param
    make_secrets(tmp_path / "secrets")
    members = [Member(f"nats-{n}", tmp_path / f"nats-{n}") for n in range(_SIZE)]
    with ExitStack() as all_of_them:
        stacks = []
        for one in members:
            config = write(one, members, tmp_path / "secrets" / "nats")
            stack = all_of_them.enter_context(ExitStack())
            command: list[str | Path] = [find_nats_server(), "--config", config]
            stack.enter_context(
                running(command, tmp_path, f"{one.name}-server", variables=variables(one))
            )
            stacks.append(stack)
        yield Cluster(tmp_path, members, stacks)


def _limits(text: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^ *(max_\w+|ping_\w+|logtime_utc|verify): (.+)$", text))


def test_pods_have_the_limits_of_the_other_one() -> None:
    """A pod may have more connections: there can be ten servers, and publishers."""
    own, other = (
        _limits(text)
        for text in (
            _OF_PODS.read_text(),
            (OPS / "nats" / "nats.conf").read_text()
            + (OPS / "nats" / "clustered.conf").read_text(),
        )
    )
    assert int(own.pop("max_connections")) >= int(other.pop("max_connections"))
    assert own == other


@pytest.mark.parametrize("write", [write_for_compose, write_for_pods], ids=["compose", "pods"])
def test_nats_server_takes_the_configuration(tmp_path: Path, write: Write) -> None:
    make_secrets(tmp_path / "secrets")
    members = [Member(f"nats-{n}", tmp_path / f"nats-{n}") for n in range(_SIZE)]
    config = write(members[0], members, tmp_path / "secrets" / "nats")
    checked = subprocess.run(
        [find_nats_server(), "-t", "--config", config],
        env={**os.environ, **variables(members[0])},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


async def _received(port: int) -> float:
    page = await get(f"http://127.0.0.1:{port}/metrics")
    figures = {} if page is None else parse_metrics(page.body.decode())
    return figures.get("ws_nats_messages_received_total", 0)


async def _has_more(port: int, than: float) -> bool:
    return await _received(port) > than


@pytest.mark.ops
async def test_the_server_has_events_while_one_of_three_is_lost(cluster: Cluster) -> None:
    await until_answer(cluster.is_complete, what="three that know each other", seconds=60)
    port = free_port()
    with ExitStack() as stack:
        for client, arguments, more in (
            ("ws", ("serve", "--addr", f"127.0.0.1:{port}"), {"JS_STREAM_REPLICAS": "3"}),
            ("publisher", ("publish", "--addr", f"127.0.0.1:{free_port()}", "--rate", "20"), {}),
        ):
            command = [sys.executable, "-m", "trio_odin", *arguments]
            given = {**os.environ, **cluster.environment(client), **more}
            stack.enter_context(running(command, cluster.folder, client, variables=given))
        await until_answer(partial(_has_more, port, 20), what="events come", seconds=60)
        assert '"replicas": 3' in (cluster.folder / "ws.log").read_text()
        cluster.stacks[0].close()
        before = await _received(port)
        await until_answer(
            partial(_has_more, port, before + 20), what="events without it", seconds=60
        )


@pytest.mark.ops
async def test_a_server_without_a_certificate_of_ours_does_not_join(cluster: Cluster) -> None:
    await until_answer(cluster.is_complete, what="three that know each other", seconds=60)
    route = f"nats-route://127.0.0.1:{cluster.members[0].route}"
    foreign: list[str | Path] = [find_nats_server(), "-a", "127.0.0.1", "-p", str(free_port())]
    foreign += ["--cluster_name", "odin", "--cluster", f"nats://127.0.0.1:{free_port()}"]
    foreign += ["--routes", route]
    log = cluster.folder / "nats-0-server.log"
    with running(foreign, cluster.folder, "foreign"):
        await wait_until(lambda: _REFUSED in log.read_text(), seconds=60, what="it is refused")
    for one in cluster.members:
        assert await cluster.peers(one) == _SIZE - 1
