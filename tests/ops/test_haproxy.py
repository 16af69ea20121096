"""HAProxy with the configuration of ops/haproxy: who gets to which node, and what stays inside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trio

from tests.e2e.nats import free_port
from tests.faults.server import footprint_of
from tests.ops.conftest import OPS
from tests.ops.nodes import CONFIG, NODES, Proxy, scaled, site
from tests.ops.rehearsing import Rehearse
from tests.ops.tools import require
from tests.ops.users import User, check_books
from trio_odin.lab.load.pages import get
from trio_odin.listener.page import Page
from trio_odin.net.http import Request
from trio_odin.settings.reading import read_settings
from trio_odin.wire import contract
from trio_odin.wire.dictionary import built_in

_ADDRESSES = {"WS1_ADDR": "127.0.0.1:3004", "WS2_ADDR": "127.0.0.1:3014"}
_WITHOUT_TLS = {"HAPROXY_TLS": "off"}  # test_haproxy_tls.py has the rest


def _check(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["haproxy", "-c", "-f", CONFIG],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_configuration_is_valid() -> None:
    require("haproxy")
    checked = _check(**_ADDRESSES, **_WITHOUT_TLS)
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


@pytest.mark.parametrize("name", _ADDRESSES)
def test_a_missing_address_is_said(name: str) -> None:
    require("haproxy")
    checked = _check(**{k: v for k, v in _ADDRESSES.items() if k != name})
    assert checked.returncode == 1
    assert f"set {name} to the address" in checked.stderr


def test_an_idle_websocket_is_the_servers_to_end() -> None:
    """The proxy waits longer than the server, which sees the silence at the ping after its end."""
    (tunnel,) = re.findall(r"(?m)^ +timeout tunnel (\d+)s$", CONFIG.read_text())
    settings = read_settings({})
    assert settings.keepalive_seconds + settings.ping_interval_seconds < int(tunnel)


@pytest.mark.ops
async def test_only_what_clients_need_is_public(tmp_path: Path) -> None:
    async with site(tmp_path) as it:
        assert await it.proxy.page("/health") == 200
        assert await it.proxy.page("/ws") == 426
        assert await it.proxy.page("/ready") == 200  # HAProxy's own
        assert await it.proxy.page(built_in().path) == 200
        assert await it.proxy.page(contract.PATH) == 200
        assert await it.proxy.page("/") == 200
        hidden = ("/metrics", "//metrics", "/ws/../metrics", "/metrics?/ws", "/stats")
        for path in (*hidden, "/page", "/page/../metrics", "/page/none", "/asyncapi.json/x"):
            assert await it.proxy.page(path) == 404, path
        for node in it.nodes:
            await node.admin.metrics()
        page = await get(f"http://127.0.0.1:{it.proxy.admin_port}/metrics")
        assert page is not None
        for name in NODES:
            assert f'haproxy_server_current_sessions{{proxy="ws",server="{name}"}}' in (
                page.body.decode()
            )


def _fetch(url: str) -> tuple[int, str, str]:
    """Status, content type and content of what a browser gets."""
    request = urllib.request.Request(url, headers={"Accept": "text/html"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get_content_type(), ""


@pytest.mark.ops
@pytest.mark.parametrize("page", ["on", "off"])
async def test_a_browser_gets_the_page_unless_the_nodes_hide_it(tmp_path: Path, page: str) -> None:
    async with site(tmp_path, WS_PAGE=page) as it:

        async def fetch(path: str) -> tuple[int, str, str]:
            url = f"http://127.0.0.1:{it.proxy.port}{path}"
            return await trio.to_thread.run_sync(_fetch, url)

        status, kind, content = await fetch("/")
        html = Page().respond(Request("GET", "/", ((b"accept", b"text/html"),)))
        assert html is not None
        files = re.findall(r"page/\w+/[\w.]+", html.body.decode())
        assert len(files) == 3
        if page == "on":
            assert (status, kind) == (200, "text/html")
            assert all(file in content for file in files)
            assert [(await fetch(f"/{file}"))[0] for file in files] == [200] * 3
        else:
            assert (status, kind) == (200, "text/plain")
            assert [(await fetch(f"/{file}"))[0] for file in files] == [404] * 3


@pytest.mark.ops
async def test_new_connections_go_to_the_node_with_the_fewest(tmp_path: Path) -> None:
    async with site(tmp_path) as it:
        await it.proxy.set_state("ws-2", "drain")
        await it.crowd.join(100, resumes=False)
        assert await it.proxy.connections() == [100, 0]  # nobody new for the drained one
        await it.proxy.set_state("ws-2", "ready")
        for name in NODES:
            await it.proxy.wait_full_weight(name)
        await it.crowd.join(60, resumes=False)
        assert await it.proxy.connections() == [100, 60]
        await it.crowd.join(140, resumes=False)
        first, second = await it.proxy.connections()
        assert first + second == 300
        assert abs(first - second) <= 10


@pytest.mark.ops
async def test_who_was_on_a_killed_node_is_on_the_other_one(
    tmp_path: Path, rehearse: Rehearse
) -> None:
    row = rehearse("rollback", "A node dies", "SIGKILL of one of two nodes with 600 users")
    async with site(tmp_path) as it:
        resuming, others = await it.join(300, 300)
        it.node("ws-1").process.process.send_signal(signal.SIGKILL)
        begun = trio.current_time()
        await it.proxy.wait_status("DOWN", "ws-1")
        row.notes.append(f"HAProxy held it for dead after {trio.current_time() - begun:.1f} s")
        await it.crowd.wait_all()
        row.seconds = trio.current_time() - begun
        assert await it.proxy.connections() == [0, 600]
        await trio.sleep(1)
        await it.come_to_rest()
        resumed, missing = check_books(row, it.publisher, resuming, others)
        assert row.refused == 0
        assert set(resumed.closed) == set(missing.closed) == {1006}
        await it.check_balance()


@pytest.mark.ops
async def test_a_connection_costs_two_files_and_little_memory(tmp_path: Path) -> None:
    async with site(tmp_path) as it:
        pid = it.proxy.processes[0].pid
        before = footprint_of(pid)
        await it.crowd.join(1000, resumes=False)
        it.publisher.is_paused = False
        await trio.sleep(5)
        after = footprint_of(pid)
        assert after.files - before.files < 2 * 1000 + 20
        assert (after.mib - before.mib) * 1024 / 1000 < 16  # KiB


@pytest.mark.ops
async def test_a_node_that_refuses_is_passed_over(tmp_path: Path) -> None:
    """At its limit it says 503, before the upgrade: the request goes to the other one."""
    async with site(tmp_path, WS_MAX_CONNECTIONS="100") as it:
        await it.proxy.set_state("ws-2", "drain")
        await it.crowd.join(100, resumes=False)
        await it.proxy.set_state("ws-2", "ready")
        # Weights send them to the first one, which is full.
        await it.proxy.ask("set server ws/ws-1 weight 256")
        await it.proxy.ask("set server ws/ws-2 weight 1")
        await it.crowd.join(50, resumes=False)
        assert await it.proxy.connections() == [100, 50]
        assert sum(user.rejected.total() for user in it.crowd.users) == 0
        assert int((await it.proxy.stat("ws-1"))["wredis"]) > 0


@pytest.mark.ops
async def test_without_a_node_the_answer_says_when_to_come_back(tmp_path: Path) -> None:
    require("curl")
    async with site(tmp_path) as it:
        for node in it.nodes:
            node.kill()
        await it.proxy.wait_status("DOWN", *NODES)
        assert await it.proxy.page("/ready") == 503
        done = await trio.run_process(
            ["curl", "-si", f"http://127.0.0.1:{it.proxy.port}/ws"], capture_stdout=True
        )
        answer = done.stdout.decode().lower()
        assert answer.startswith("http/1.1 503")
        assert "retry-after: 2" in answer


@pytest.mark.ops
async def test_the_limit_of_an_address_is_that_of_the_client(tmp_path: Path) -> None:
    async with site(tmp_path, WS_MAX_CONNECTIONS_PER_IP="2") as it:
        await it.proxy.set_state("ws-2", "maint")  # the limit is each node's own
        for number in (1, 2, 3):
            user = User(it.proxy.port, ["T1.trade"], source=f"127.0.0.{10 + number // 3}")
            it.crowd.users.append(user)
            it.crowd.nursery.start_soon(user.stay)
        await it.crowd.wait_all()  # two of one address, one of another
        third = User(it.proxy.port, ["T1.trade"], source="127.0.0.10")
        it.crowd.nursery.start_soon(third.stay)
        with trio.fail_after(10):
            while not third.rejected:
                await trio.sleep(0.02)
        assert set(third.rejected) == {429}
        assert int((await it.proxy.stat("ws-1"))["wredis"]) == 0


@pytest.mark.ops
async def test_an_idle_websocket_outlives_the_timeouts_of_http(tmp_path: Path) -> None:
    config = scaled(tmp_path, client="1s", server="1s", http_request="1s", tunnel="5s")
    async with site(tmp_path, config=config, WS_PING_INTERVAL="2s") as it:
        users = await it.crowd.join(5, resumes=False)
        await trio.sleep(8)  # only the server's pings are on the wire
        assert all(user.is_subscribed and not user.closed for user in users)
        # And if the server does not ping either, nothing but the tunnel's timeout ends it.
        it.node("ws-1").process.signal(signal.SIGSTOP)
        it.node("ws-2").process.signal(signal.SIGSTOP)
        try:
            with trio.fail_after(15):
                while not all(user.closed for user in users):
                    await trio.sleep(0.1)
        finally:
            it.node("ws-1").process.signal(signal.SIGCONT)
            it.node("ws-2").process.signal(signal.SIGCONT)


@pytest.mark.ops
async def test_a_reload_of_haproxy_cuts_nobody(tmp_path: Path, rehearse: Rehearse) -> None:
    row = rehearse("migration", "Reload of HAProxy", "a new process takes over, 300 users")
    async with site(tmp_path) as it:
        resuming, others = await it.join(150, 150)
        begun = trio.current_time()
        it.proxy.start()
        await it.crowd.join(200, resumes=False)  # connects in each moment of it
        await it.proxy.wait_up()
        row.seconds = trio.current_time() - begun
        await it.come_to_rest()
        check_books(row, it.publisher, resuming, others)
        assert row.sent_away == row.refused == 0
        assert sum(user.rejected.total() for user in it.crowd.users) == 0
        old, new = it.proxy.processes
        assert old.poll() is None, "it has cut its clients"
        assert new.poll() is None
        row.notes.append("the process before it stays until its last client has gone")


@pytest.mark.ops
async def test_a_master_process_reloads_upon_a_signal(tmp_path: Path) -> None:
    """As in ops/isolated/proxy/compose.yml."""
    async with site(tmp_path) as it:
        proxy = Proxy(tmp_path, it.nodes, socket_port=free_port())
        command = ["haproxy", "-W", "-db", "-f", str(CONFIG)]
        master = await trio.lowlevel.open_process(command, env=proxy.environment())
        try:
            await proxy.wait_up()
            it.crowd.port = proxy.port
            users = await it.crowd.join(50, resumes=False)
            worker = int(_first_line(await proxy.ask("show info"), "Pid: "))
            master.send_signal(signal.SIGUSR2)
            with trio.fail_after(10):
                while int(_first_line(await proxy.ask("show info"), "Pid: ")) == worker:
                    await trio.sleep(0.05)
            await it.crowd.join(50, resumes=False)
            assert not any(user.closed or user.rejected for user in users)
            code, said = await it.roll("--dry-run", proxies=[proxy])
            assert code == 0, said
        finally:
            master.terminate()
            await master.wait()


def _first_line(text: str, start: str) -> str:
    return next(line.removeprefix(start) for line in text.splitlines() if line.startswith(start))


def test_the_compose_file_names_what_the_configuration_reads() -> None:
    compose = (OPS / "isolated" / "proxy" / "compose.yml").read_text()
    for name in _ADDRESSES:
        assert f"${{{name}:?" in compose
