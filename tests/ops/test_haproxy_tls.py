"""HAProxy's public side with TLS, its log and its figures, in front of nodes that only answer."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.certificates import make_certificates
from tests.e2e.nats import free_port
from tests.faults.server import footprint_of
from tests.ops.conftest import OPS
from tests.ops.nodes import CONFIG, NODES, Node, Proxy, site
from tests.ops.rules import OF_HAPROXY
from tests.ops.tools import require, run, tool
from tests.waiting import until_answer
from trio_odin.lab.load.pages import get
from trio_odin.net.http import Request, Response, serve_request

SCRIPT = OPS / "haproxy" / "certificate.sh"
NAME = "ws.odin.example"
CLIENTS = 500


def certificates_of(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    """The folder that HAProxy is given, and the authority that clients trust."""
    made = make_certificates(folder / "made", name)
    certificates = folder / "certificates"
    certificates.mkdir()
    (certificates / "public.pem").write_bytes(made.certificate.read_bytes() + made.key.read_bytes())
    return certificates, made.authority


@attrs.frozen
class Door:
    """HAProxy with TLS, and what it is asked."""

    proxy: Proxy
    trust: ssl.SSLContext
    nodes: trio.CancelScope

    async def ask(self, path: str, trust: ssl.SSLContext | None = None) -> tuple[int, Message]:
        """The status and the headers of a page, by TLS."""
        url = f"https://localhost:{self.proxy.port}{path}"
        return await trio.to_thread.run_sync(partial(_ask, url, trust or self.trust))

    async def log(self, event: str) -> list[dict[str, object]]:
        """Wait for lines of an event."""
        found: list[dict[str, object]] = await until_answer(
            partial(self._lines, event), what=f"{event} is logged"
        )
        return found

    async def _lines(self, event: str) -> list[dict[str, object]]:
        texts = self.proxy.log.read_text().splitlines()
        lines = [json.loads(text[3:]) for text in texts if re.match(r"<\d>\{", text)]
        return [line for line in lines if line["event"] == event]


def _ask(url: str, trust: ssl.SSLContext) -> tuple[int, Message]:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
    )
    try:
        with opener.open(url, timeout=10) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers


async def _answer(request: Request) -> Response:
    return Response(200)


async def _serve_pages(stream: trio.SocketStream) -> None:
    async with stream:
        await serve_request(stream, _answer)


@asynccontextmanager
async def door(folder: Path) -> AsyncIterator[Door]:
    """HAProxy in front of two nodes that answer 200 to everything."""
    tool("haproxy")
    certificates, authority = certificates_of(folder)
    nodes = [Node(name, folder, "", {}) for name in NODES]
    proxy = Proxy(folder, nodes, certificates=certificates, socket_port=free_port())
    async with trio.open_nursery() as nursery:
        cancel = trio.CancelScope()

        async def answer_all(*, task_status: trio.TaskStatus[None]) -> None:
            listeners = [
                listener
                for node in nodes
                for port in (node.port, node.admin_port)
                for listener in await trio.open_tcp_listeners(port, host="127.0.0.1")
            ]
            with cancel:
                task_status.started()
                await trio.serve_listeners(_serve_pages, listeners)

        await nursery.start(answer_all)
        try:
            proxy.start()
            await proxy.wait_up()
            yield Door(proxy, ssl.create_default_context(cafile=authority), cancel)
        finally:
            proxy.kill()
            nursery.cancel_scope.cancel(reason="the test is over")


def test_without_a_certificate_it_does_not_start_rather_than_serve_without_tls(
    tmp_path: Path,
) -> None:
    require("haproxy")
    variables = {"WS1_ADDR": "127.0.0.1:1", "WS2_ADDR": "127.0.0.1:2"}
    refused = run(tool("haproxy"), "-c", "-f", CONFIG, variables=variables)
    assert refused.returncode == 1
    assert "/etc/haproxy/certs/" in refused.stderr
    certificates, _ = certificates_of(tmp_path)
    given = variables | {"HAPROXY_CERTS": str(certificates)}
    checked = run(tool("haproxy"), "-c", "-f", CONFIG, variables=given)
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


async def test_clients_come_in_by_tls_and_browsers_are_sent_to_it(tmp_path: Path) -> None:
    require("curl")
    async with door(tmp_path) as it:
        status, headers = await it.ask("/health")
        assert status == 200
        assert int(headers["Strict-Transport-Security"].removeprefix("max-age=")) > 10**7
        assert (await it.ask("/metrics"))[0] == 404
        assert (await it.ask("/ready"))[0] == 200
        assert await it.proxy.page("/health") in (0, 400), "not without TLS"

        plain = f"http://127.0.0.1:{it.proxy.plain_port}"
        ready = await get(f"{plain}/ready")
        assert ready is not None
        assert ready.status == 200, "for a balancer whose check has no TLS"
        done = await trio.run_process(
            ["curl", "-si", f"{plain}/ws?token=x", "-H", f"Host: {NAME}"], capture_stdout=True
        )
        answer = done.stdout.decode().lower()
        assert answer.startswith("http/1.1 301")
        assert f"location: https://{NAME}/ws?token=x" in answer


async def test_old_versions_of_tls_are_refused_and_the_log_names_the_reason(tmp_path: Path) -> None:
    async with door(tmp_path) as it:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(urllib.error.URLError):
            await it.ask("/health", old)
        (line, *_) = await it.log("proxy.handshake_failed")
        assert line["address"] == "127.0.0.1"
        assert "SSL" in str(line["error"])
        newer = ssl.create_default_context(cafile=tmp_path / "made" / "ca.pem")
        newer.maximum_version = ssl.TLSVersion.TLSv1_2
        assert (await it.ask("/health", newer))[0] == 200


async def test_what_nobody_could_serve_is_a_line_of_json_without_its_token(tmp_path: Path) -> None:
    async with door(tmp_path) as it:
        await it.ask("/health?token=secret")  # answered: the node's to log
        it.nodes.cancel(reason="both nodes die")
        await it.proxy.wait_status("DOWN", *NODES)
        assert (await it.ask('/ws?token=secret&"x"'))[0] == 503
        (line,) = await it.log("proxy.failed")
        assert line["level"] == "warning"
        assert (line["status"], line["path"], line["method"]) == (503, "/ws", "GET")
        text = it.proxy.log.read_text()
        assert "secret" not in text
        assert "ws/ws-1 is DOWN" in text


async def test_a_path_that_would_break_the_line_does_not(tmp_path: Path) -> None:
    async with door(tmp_path) as it:
        it.nodes.cancel(reason="both nodes die")
        await it.proxy.wait_status("DOWN", *NODES)
        raw = f"GET /dictionary/\\x HTTP/1.1\r\nHost: {NAME}\r\nX: y\r\n\r\n".encode()
        stream = await trio.open_ssl_over_tcp_stream(
            "localhost", it.proxy.port, ssl_context=it.trust, https_compatible=True
        )
        async with stream:
            await stream.send_all(raw)
            assert b" 503 " in await stream.receive_some()
        (line,) = await it.log("proxy.failed")
        assert line["path"] == "/dictionary/\\x"


async def test_the_cloud_script_takes_a_node_out_and_back(tmp_path: Path) -> None:
    async with door(tmp_path) as it:
        variables = {"ODIN_HAPROXY": it.proxy.socket.replace(":", "/")}

        async def rotate(*arguments: str) -> subprocess.CompletedProcess[str]:
            script = OPS / "cloud" / "release.sh"
            asked = partial(run, script, "rotate", "proxy", *arguments, variables=variables)
            return await trio.to_thread.run_sync(asked)

        for state, status in (("drain", "DRAIN"), ("ready", "UP")):
            done = await rotate("ws-1", state)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            await it.proxy.wait_status(status, "ws-1")
        refused = await rotate("ws-9", "drain")
        assert refused.returncode == 1
        assert "HAProxy: No such server" in refused.stderr


async def test_the_alerts_read_figures_that_haproxy_has(tmp_path: Path) -> None:
    async with door(tmp_path) as it:
        await it.ask("/health")
        page = await get(f"http://127.0.0.1:{it.proxy.admin_port}/metrics")
        assert page is not None
        samples = [
            sample
            for family in text_string_to_metric_families(page.body.decode())
            for sample in family.samples
        ]
        for name, labels in OF_HAPROXY.items():
            found = [sample.labels for sample in samples if sample.name == name]
            assert found, name
            for label, values in labels.items():
                if label not in {"job", "instance"}:
                    assert (values or set()) <= {of[label] for of in found if label in of}, name


def test_the_certificate_that_an_authority_gave_becomes_one_file(tmp_path: Path) -> None:
    tool("openssl")
    made, other = make_certificates(tmp_path / "a", NAME), make_certificates(tmp_path / "b", NAME)
    folder = tmp_path / "secrets" / "haproxy"

    def install(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run(SCRIPT, "install", *arguments, variables={"CERTS": str(folder)})

    for arguments, sentence in (
        ((tmp_path / "none", made.key), "cannot be read"),
        ((made.key, made.key), "does not begin with a certificate"),
        ((made.certificate, made.certificate), "no private key"),
        ((made.certificate, other.key), "the key of another certificate"),
        ((made.certificate, made.key), "valid for less than 14 days"),
        ((made.certificate,), "needs the chain, the key"),
    ):
        refused = install(*arguments)
        assert refused.returncode == 2, sentence
        assert sentence in refused.stderr
    assert not folder.exists()

    key, chain = tmp_path / "key", tmp_path / "chain"
    made_by_hand = run(
        *(tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90"),
        *("-keyout", key, "-out", chain, "-subj", "/CN=x", "-addext", f"subjectAltName=DNS:{NAME}"),
    )
    assert made_by_hand.returncode == 0, made_by_hand.stderr
    assert "not for other.example" in install(chain, key, "other.example").stderr
    assert install(chain, key, NAME).returncode == 0
    assert (folder / "public.pem").read_text() == chain.read_text() + key.read_text()
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    for days, code in (("14", 0), ("91", 1), ("x", 2)):
        checked = run(SCRIPT, "check", days, variables={"CERTS": str(folder)})
        assert checked.returncode == code, checked.stderr


def test_a_certificate_to_try_is_one_that_haproxy_takes(tmp_path: Path) -> None:
    tool("openssl")
    folder = tmp_path / "secrets" / "haproxy"
    made = run(SCRIPT, "try", NAME, variables={"CERTS": str(folder)})
    assert made.returncode == 0, made.stderr
    assert re.search(r"public\.pem: notAfter=", made.stdout)
    variables = {"WS1_ADDR": "127.0.0.1:1", "WS2_ADDR": "127.0.0.1:2", "HAPROXY_CERTS": str(folder)}
    checked = run(tool("haproxy"), "-c", "-f", CONFIG, variables=variables)
    assert checked.returncode == 0, checked.stderr
    assert run(SCRIPT, "--help").stdout.startswith("Makes HAProxy's certificate")
    assert run(SCRIPT, "renew").returncode == 2


@pytest.mark.ops
async def test_a_connection_with_tls_costs_two_files_and_bounded_memory(tmp_path: Path) -> None:
    certificates, authority = certificates_of(tmp_path)
    async with site(tmp_path) as it:
        proxy = Proxy(tmp_path, it.nodes, certificates=certificates)
        proxy.start()
        try:
            await proxy.wait_up()
            pid = proxy.processes[0].pid
            before = footprint_of(pid)
            # In another process: the memory of its ends of TLS is not what is measured.
            clients = (
                *(sys.executable, "-m", "trio_odin", "load", f"wss://localhost:{proxy.port}/ws"),
                *(f"--connections={CLIENTS}", "--tokens=5", "--hold=20", "--processes=1"),
            )
            variables = {**proxy.environment(), "SSL_CERT_FILE": str(authority)}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(
                        trio.run_process, clients, env=variables, capture_stdout=True, check=False
                    )
                )
                with trio.fail_after(60):
                    while sum(await proxy.connections()) < CLIENTS:
                        await trio.sleep(0.1)
                it.publisher.is_paused = False
                await trio.sleep(5)
                after = footprint_of(pid)
                nursery.cancel_scope.cancel(reason="it was measured")
            assert after.files - before.files < 2 * CLIENTS + 20
            assert (after.mib - before.mib) * 1024 / CLIENTS < 48  # KiB
        finally:
            proxy.kill()
