"""A Chromium without a window, over its own protocol (CDP): no driver has to be installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from websockets.sync.client import ClientConnection, connect

from tests.waiting import until

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ANSWER_SECONDS = 60


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def running_chromium(program: str, folder: Path) -> Iterator[Chromium]:
    """Start a browser with a profile of its own in `folder`; ends it."""
    options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    options += ["--no-first-run", "--disable-gpu", "--disable-background-networking"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # it refuses to run as root with one
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen([program, *options, "about:blank"], stdout=log, stderr=log)
    try:
        file = folder / "DevToolsActivePort"
        until(lambda: file.exists() and file.read_text().count("\n"), what="where Chromium listens")
        port, path = file.read_text().split("\n")[:2]
        # No pings: while a test does something else, nobody reads the pongs behind the events.
        address = f"ws://127.0.0.1:{port}{path}"
        with connect(address, max_size=None, ping_interval=None) as socket:
            yield Chromium(socket)
    finally:
        process.kill()
        process.wait()


@attrs.define
class Chromium:
    """The browser. It does one thing at a time."""

    _socket: ClientConnection
    _numbers: int = 0
    _events: list[dict[str, Any]] = attrs.field(factory=list)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of CDP, and return its result. Events that come meanwhile are kept."""
        self._numbers += 1
        request = {"id": self._numbers, "method": method, "params": parameters}
        self._socket.send(json.dumps(request | ({"sessionId": session} if session else {})))
        while True:
            message = json.loads(self._socket.recv(timeout=_ANSWER_SECONDS))
            if message.get("id") == self._numbers:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result
            self._events.append(message)

    @contextmanager
    def page(self, url: str, *, width: int = 1000, height: int = 800) -> Iterator[Page]:
        """Open `url` in a tab of its own, without cookies or caches of others; closes it."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        session = self.call("Target.attachToTarget", flatten=True, **target)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        page.call("Page.navigate", url=url)
        page.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        try:
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)
            self._events.clear()

    def events(self, session: str) -> list[dict[str, Any]]:
        return [event for event in self._events if event.get("sessionId") == session]


@attrs.define
class Page:
    """A tab."""

    _browser: Chromium
    _session: str

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def run(self, script: str) -> Any:
        """Return what `script`, an expression or a promise of one, evaluates to."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until `script` evaluates to something true; return that."""
        return until(lambda: self.run(script), what=script)

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    def press(self, key: str) -> None:
        """Press a key, as somebody at the keyboard does."""
        codes = {
            "Tab": 9,
            "Enter": 13,
            "Escape": 27,
            "ArrowDown": 40,
            "ArrowUp": 38,
            "ArrowLeft": 37,
        }
        text = {"text": "\r"} if key == "Enter" else {}
        event = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Write over what is in the field that has the focus."""
        self.run("document.activeElement.select()")
        self.call("Input.insertText", text=text)

    def complaints(self) -> list[str]:
        """Exceptions, errors and violations of the policy since the tab was opened."""
        self.run("0")  # what came before this has arrived
        found = []
        for event in self._browser.events(self._session):
            method, parameters = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                found.append(json.dumps(parameters["exceptionDetails"]))
            elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                found.append(parameters["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and parameters["type"] in {
                "error",
                "warning",
            }:
                found.append(json.dumps(parameters["args"]))
        return found

    def requests(self) -> list[str]:
        """The addresses that were asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self._browser.events(self._session)
            if event["method"] == "Network.requestWillBeSent"
        ]
