"""The live page in a real browser, against the server as in production."""

from __future__ import annotations

import os
import signal
import socketserver
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from socket import SHUT_WR, create_connection, socket

import pytest
import trio

from tests.e2e.nats import free_port, nats_client, running_nats
from tests.faults.server import start
from tests.page.chromium import Chromium, Page, find_chromium, running_chromium
from tests.signing import secret_signer, write_key_set
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.browser]

AXE = Path(__file__).parents[2] / "clients" / "js" / "node_modules" / "axe-core" / "axe.min.js"
PRICES = "[...document.querySelectorAll('tbody .price')].map((cell) => cell.textContent)"
SYMBOLS = "[...document.querySelectorAll('tbody b')].map((cell) => cell.textContent)"
IS_LIVE = (
    "document.body.dataset.state === 'live' && document.querySelectorAll('tbody tr').length > 9"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium on PATH")
    with running_chromium(program, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@contextmanager
def running_up(port: int, *options: str, **variables: str) -> Iterator[str]:
    """A market and a server; yields the address of the page."""
    command = [sys.executable, "-m", "trio_odin", "up", "--addr", f"127.0.0.1:{port}", *options]
    with subprocess.Popen(
        command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}/"
            until(lambda: _answers(f"{url}health"), what="an answer of the server")
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_up(free_port(), "--rate", "60") as url:
        yield url


@pytest.fixture
def page(chromium: Chromium, url: str) -> Iterator[Page]:
    """The page, live; at the end nothing may have gone wrong in it."""
    with chromium.page(url) as page:
        page.until(IS_LIVE)
        yield page
        assert page.complaints() == []


def search(page: Page, text: str) -> None:
    page.run("document.querySelector('#names').focus()")
    page.type(text)
    page.press("Enter")


def choose_rate(page: Page, value: str) -> None:
    page.run(f"document.querySelector('#rate input[value=\"{value}\"]').click()")


def test_prices_appear_and_change(page: Page, url: str) -> None:
    before = page.run(PRICES)
    assert len(before) == 10
    assert all(float(price.replace(",", "")) > 0 for price in before)
    page.until(f"{PRICES}.some((price, at) => price !== {before}[at])")
    assert page.text("#state strong") == "Live"
    assert page.run(SYMBOLS) == sorted(page.run(SYMBOLS)), "no row has moved"
    assert page.run("document.querySelector('.trend path').getAttribute('d') !== null")
    assert page.until("parseFloat(document.querySelector('#events').textContent) > 1")
    assert page.until("parseFloat(document.querySelector('#bytes').textContent) > 0")
    assert all(address.startswith(url) for address in page.requests()), "nothing from elsewhere"


def test_a_paused_page_stands_still_and_goes_on(page: Page) -> None:
    choose_rate(page, "")
    page.until("document.querySelector('#events').textContent === '0/s'")
    assert page.text("#state strong") == "Paused"
    before = page.run(PRICES)
    ages = "[...document.querySelectorAll('.age')].map((cell) => parseInt(cell.textContent))"
    oldest = page.run(f"Math.max(...{ages})")
    page.until(f"Math.max(...{ages}) > {oldest} + 1")
    assert page.run(PRICES) == before
    choose_rate(page, "0")
    page.until(f"{PRICES}.some((price, at) => price !== {before}[at])")
    assert page.text("#state strong") == "Live"
    assert page.text("#missed") == "0", "a pause is no loss"


def test_a_hidden_page_gets_nothing(page: Page) -> None:
    hide = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => %s});"
    show = "document.dispatchEvent(new Event('visibilitychange'))"
    before = page.run(PRICES)
    page.until(f"{PRICES}.some((price, at) => price !== {before}[at])")
    page.run(hide % "true" + show)
    page.run("new Promise((done) => setTimeout(done, 500))")
    before = page.run(PRICES)
    page.run("new Promise((done) => setTimeout(done, 1500))")
    assert page.run(PRICES) == before
    page.run(hide % "false" + show)
    page.until(f"{PRICES}.some((price, at) => price !== {before}[at])")


def test_a_search_chooses_the_channels(page: Page) -> None:
    search(page, "ETH BTC.trade nothing.at.all")
    page.until(f"{SYMBOLS}.join() === 'BTC,ETH'")
    assert "nothing.at.all" in page.text("#hint")
    assert page.run("location.hash") == "#ETH%20BTC.trade%20nothing.at.all"
    page.run("location.hash = '#%E0%A4%A'")  # no UTF-8: as if nothing were there
    page.until(f"{SYMBOLS}.length === 10")
    page.run("location.hash = '#ETH%20BTC.trade'")
    page.until(f"{SYMBOLS}.join() === 'BTC,ETH'")
    page.run("window.isOld = true; location.reload()")
    page.until(
        f"!window.isOld && document.readyState === 'complete' && {SYMBOLS}.join() === 'BTC,ETH'"
    )
    search(page, "none")
    page.until("document.querySelector('#note').textContent.startsWith('No event of none.* yet')")
    assert page.run(SYMBOLS) == []
    search(page, ">")
    page.until(f"{SYMBOLS}.length === 10")
    assert page.text("#hint") == ""


def test_a_header_sorts_once_and_rows_stay(page: Page) -> None:
    page.run("document.querySelector('[data-by=price]').click()")
    page.until(f"{SYMBOLS}[0] === 'BTC'")
    order = page.run(SYMBOLS)
    prices = page.run(PRICES)
    page.until(f"{PRICES}.some((price, at) => price !== {prices}[at])")
    assert page.run(SYMBOLS) == order
    assert page.run("document.querySelector('[aria-sort]').ariaSort") == "descending"
    page.run("document.querySelector('[data-by=channel]').click()")
    page.until(f"{SYMBOLS}[0] === 'ADA'")


def test_everything_is_reached_with_the_keyboard(page: Page) -> None:
    reached: list[str] = []
    for _ in range(12):
        page.press("Tab")
        reached.append(
            page.run(
                "(({id, name, dataset, textContent: text}) =>"
                " id || name || dataset.by || text.trim())(document.activeElement)"
            )
        )
    controls = ["names", "rate", "missed", "channel", "price", "change", "ADA"]
    assert [name for name in reached if name in controls][: len(controls)] == controls
    page.run("document.querySelector('tbody button').focus()")
    page.press("ArrowDown")
    assert page.run("document.activeElement.textContent.trim()") == "BNB"
    page.press("Enter")
    page.until("document.querySelector('#details h2').textContent === 'BNB.trade'")
    shown = page.run("JSON.parse(document.querySelector('#details pre').textContent)")
    assert shown["tokenId"] == "BNB"
    assert page.run("document.querySelector('tr[aria-current]').dataset.channel") == "BNB.trade"
    page.press("Escape")
    page.until("document.querySelector('#details').hidden")


@pytest.mark.parametrize("width", [360, 900, 1600])
def test_nothing_overflows_and_nothing_shifts(chromium: Chromium, url: str, width: int) -> None:
    with chromium.page(url, width=width) as page:
        page.until(IS_LIVE)
        page.run("new Promise((done) => setTimeout(done, 1500))")
        page.run(
            "window.shifts = 0; new PerformanceObserver((list) => {"
            " for (const entry of list.getEntries()) window.shifts += entry.value;"
            "}).observe({type: 'layout-shift'})"
        )
        before = page.run(PRICES)
        page.until(f"{PRICES}.some((price, at) => price !== {before}[at])")
        assert page.run("window.shifts") == 0
        assert page.run("document.documentElement.scrollWidth") <= width
        cut = "[...document.querySelectorAll('tbody .price, tbody .change, tbody .age')]"
        assert page.run(f"{cut}.every((one) => one.scrollWidth <= one.clientWidth)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("needs `npm ci` in clients/js")
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.call("Emulation.setEmulatedMedia", features=[feature])
    page.run("document.querySelector('tbody tr').click()")
    page.run(AXE.read_text())
    found = page.run(
        "axe.run().then(({violations, passes}) => [passes.length, violations.map(({id, nodes}) =>"
        " id + ': ' + nodes.map(({html}) => html).join(' '))])"
    )
    assert found[0] > 20
    assert found[1] == []


def test_it_says_that_the_server_is_gone_and_comes_back(chromium: Chromium) -> None:
    port = free_port()
    with ExitStack() as opened:
        with running_up(port, "--rate", "60") as url:
            page = opened.enter_context(chromium.page(url))
            page.until(IS_LIVE)
        page.until("document.body.dataset.state === 'offline'")
        page.until(
            "/again in \\d+ s|trying now/.test(document.querySelector('#retry').textContent)"
        )
        assert page.text("#state strong") == "Offline"
        assert "since" in page.text("#state span")
        assert page.run("document.title").startswith("Offline")
        with running_up(port, "--rate", "60"):
            page.until(IS_LIVE)
            assert page.text("#state span") == ""
            before = page.run(PRICES)
            page.until(f"{PRICES}.some((price, at) => price !== {before}[at])")
            page.until("document.querySelector('#missed').textContent !== '0'")
            assert "*.trade" in page.text("#gaps ol li")


def test_more_channels_than_anyone_reads_are_counted(chromium: Chromium) -> None:
    with (
        running_up(free_port(), "--rate", "300", "--tokens", "400", "--shares", "even") as url,
        chromium.page(url) as page,
    ):
        page.until("document.querySelector('#note').textContent.includes('of 400')")
        assert "The first 250 of 400 channels" in page.text("#note")
        assert page.run("document.querySelectorAll('tbody tr').length") == 250
        assert page.run(SYMBOLS) == sorted(page.run(SYMBOLS))


def test_the_details_go_with_their_channel(chromium: Chromium, url: str) -> None:
    with chromium.page(url, width=360) as page:
        page.until(IS_LIVE)
        page.run("document.querySelector('tr[data-channel=\"ADA.trade\"]').click()")
        page.until("document.querySelector('#details h2').textContent === 'ADA.trade'")
        search(page, "ADA BTC")
        page.until(f"{SYMBOLS}.join() === 'ADA,BTC'")
        assert page.run("document.querySelector('#side').classList.contains('is-open')")
        search(page, "BTC")
        page.until(f"{SYMBOLS}.join() === 'BTC'")
        page.until("!document.querySelector('#side').classList.contains('is-open')")
        assert page.run("document.querySelector('#details').hidden")
        assert page.complaints() == []


def test_names_without_an_event_are_listed(page: Page) -> None:
    search(page, "BTC.trade NOPE.trade *.liquidity")
    page.until(f"{SYMBOLS}.join() === 'BTC'")
    page.until(
        "document.querySelector('#note').textContent"
        " === '1 channel. No event of NOPE.trade, *.liquidity yet.'"
    )
    search(page, "BTC.trade")
    page.until("document.querySelector('#note').textContent === '1 channel'")


def test_a_delay_is_named_once(chromium: Chromium) -> None:
    """The server is full: the countdown beside the cause says when the page tries again."""
    with (
        running_up(free_port(), WS_MAX_CONNECTIONS="1") as url,
        chromium.page(url) as first,
        chromium.page(url) as second,
    ):
        pages = [first, second]
        state = "document.body.dataset.state"
        until(
            lambda: sorted(page.run(state) for page in pages) == ["live", "offline"],
            what="one page too many",
        )
        (refused,) = (page for page in pages if page.run(state) == "offline")
        refused.until("/^again in \\d+ s$/.test(document.querySelector('#retry').textContent)")
        assert "again in" not in refused.text("#state")
        assert len(refused.text("#state span")) > 10


# What publishers can send, and no market does.
ODD_PRICES = {
    "HUGE": "1e308",
    "MINUS": "-1e308",
    "TINY": "1e-300",
    "BEYOND": "1e999",
    "ZERO": "0",
    "MILLIONS": "1234567.891",
    "__proto__": "1",
    "constructor": "2",
    "-": "3",
    "1E5": "4",
    "W" * 58: "5",
}


@pytest.mark.parametrize("width", [360, 800, 1440])
def test_odd_names_and_numbers_stay_in_their_cells(
    chromium: Chromium, odd_market: str, width: int
) -> None:
    with chromium.page(odd_market, width=width) as page:
        page.until(f"{SYMBOLS}.length === {len(ODD_PRICES)}")
        assert sorted(page.run(SYMBOLS)) == sorted(ODD_PRICES)
        page.run("new Promise((done) => setTimeout(done, 3500))")  # some points of the trends
        paths = page.run(
            "[...document.querySelectorAll('.trend path')].map((p) => p.getAttribute('d'))"
        )
        assert any(paths)
        assert not [path for path in paths if "NaN" in path or "Infinity" in path]
        for name in ODD_PRICES:
            page.run(f"document.querySelector('tr[data-channel=\"{name}.trade\"]').click()")
            page.until(f"document.querySelector('#details h2').textContent === '{name}.trade'")
        assert page.run("document.documentElement.scrollWidth") <= width
        figures = "tr:not(.plain) :is(.price, .change, .volume, .age)"
        cells = f"[...document.querySelectorAll('tbody {figures}')]"
        wide = f"{cells}.filter((one) => one.scrollWidth > one.clientWidth)"
        assert page.run(f"{wide}.map((one) => one.textContent)") == []
        assert page.complaints() == []


@pytest.fixture(scope="module")
def odd_market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that had the events of `ODD_PRICES`."""
    folder = tmp_path_factory.mktemp("odd")
    with running_nats(folder / "nats") as nats:
        server = start(folder, nats.url)
        try:
            trio.run(server.wait_ready)
            trio.run(_publish_odd_prices, nats.url)
            yield f"http://127.0.0.1:{server.port}/"
        finally:
            server.kill()


async def _publish_odd_prices(nats_url: str) -> None:
    async with nats_client(nats_url) as client:
        for name, price in ODD_PRICES.items():
            data = f'{{"price":{price},"volume24h":{price},"tokenId":"{name}"}}'
            await client.publish(f"odin.token.{name}.trade", data.encode())


def test_a_server_with_tokens_gets_one(chromium: Chromium, tmp_path: Path) -> None:
    signer = secret_signer()
    keys = write_key_set(tmp_path / "keys.json", signer)
    variables = {"WS_JWT_KEYS": str(keys), "WS_JWT_ALGORITHMS": "HS256"}
    with running_up(free_port(), **variables) as url, chromium.page(url) as page:
        page.until("!document.querySelector('#entry').hidden")
        assert page.text("#state strong") == "Ended"
        for token, state in (("no.such.token", "closed"), (signer.token(), "live")):
            page.run("document.querySelector('#token').focus()")
            page.type(token)
            page.press("Enter")
            page.until(f"document.body.dataset.state === '{state}'")
        page.until(IS_LIVE)
        assert page.run("document.querySelector('#entry').hidden")


def test_a_proxy_may_put_it_under_a_path(chromium: Chromium, url: str) -> None:
    port = int(url.rstrip("/").rpartition(":")[2])
    with _PathProxy(port) as address, chromium.page(f"{address}/odin/#BTC") as page:
        page.until("document.body.dataset.state === 'live'")
        page.until(f"{SYMBOLS}.join() === 'BTC'")
        assert page.complaints() == []
        assert all("/odin/" in asked for asked in page.requests())


class _PathProxy:
    """Passes /odin/… on as /…, and refuses everything else."""

    def __init__(self, port: int) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                head: bytes = self.request.recv(16_384)
                if b" /odin/" not in head.partition(b"\r\n")[0]:
                    return
                with create_connection(("127.0.0.1", port)) as server:
                    server.sendall(head.replace(b" /odin/", b" /", 1))
                    back = threading.Thread(target=_pump, args=(server, self.request))
                    back.start()
                    _pump(self.request, server)
                    back.join()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _pump(source: socket, sink: socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(SHUT_WR)
