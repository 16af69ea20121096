"""`trio-odin ready`, which the health check of a container runs every few seconds.

So it imports little: neither trio nor the other settings, and no HTTP client.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Mapping

import click

from trio_odin.net.address import Address
from trio_odin.settings.assignments import parse_assignments

_DEADLINE_SECONDS = 2.0
_ANSWER_MAX_BYTES = 65_536
_SAID_MAX = 200
_URL = re.compile(r"http://(?P<address>[^/?#@\s]+)(?P<page>/[^\s#]*)?")
_STATUS = re.compile(rb"HTTP/1\.[01] (?P<status>\d{3})\b")


class _NotReady(Exception):
    """The text says why."""


@click.command("ready", short_help="Say whether a server takes clients.")
@click.option("--url", metavar="URL", help="Another page to ask, like http://127.0.0.1:3003/health")
def ready_command(url: str | None) -> None:
    """Say whether a server takes clients: exit code 0 if it does, 1 if not.

    Asks /ready of the server that runs with this environment, at WS_ADMIN_ADDR or else WS_ADDR. A
    page of any other program will do for --url, if it is 200 as long as all is well.
    """
    try:
        url = url or _url_of(os.environ)
        _ask(url)
    except _NotReady as reason:
        click.echo(f"trio-odin: {url or 'not ready'}: {reason}", err=True)
        sys.exit(1)  # 2, that of other mistakes, is reserved by Docker
    click.echo(f"{url}: ready")


def _url_of(environment: Mapping[str, str]) -> str:
    """The page of the server that has this environment.

    Raises:
        _NotReady: no server could run with it.
    """
    given = {**environment, **_reload_file(environment.get("WS_RELOAD_FILE", "").strip())}
    set_ = (given.get(name, "").strip() for name in ("WS_ADMIN_ADDR", "WS_ADDR"))
    return f"http://{_address(next(filter(None, set_), ':3002')).connectable}/ready"


def _reload_file(path: str) -> Mapping[str, str]:
    """What goes before the environment.

    Nothing where it cannot be read: a server that runs has kept what it had, and says so itself.
    """
    if not path:
        return {}
    try:
        with click.open_file(path, encoding="utf-8-sig") as file:
            return parse_assignments(file.read())
    except (OSError, ValueError):
        return {}


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise _NotReady(f"{text!r}: allowed is {error}") from None


def _ask(url: str) -> None:
    """Ask for a page.

    Raises:
        _NotReady: the answer is not a 200, or there is none in time.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        raise _NotReady("allowed is a URL like http://127.0.0.1:3002/ready")
    address = _address(parts["address"])
    try:
        answer = _get(address, parts["page"] or "/ready", time.monotonic() + _DEADLINE_SECONDS)
    except TimeoutError:
        raise _NotReady(f"no answer within {_DEADLINE_SECONDS:g} s") from None
    except (OSError, UnicodeError) as error:  # the second one of a name that can be no host's
        raise _NotReady(str(error)) from None
    head, _, body = answer.partition(b"\r\n\r\n")
    status = _STATUS.match(head)
    if status is None:
        raise _NotReady("what answers does not speak HTTP")
    if status["status"] != b"200":
        said = body.decode(errors="replace").strip()[:_SAID_MAX]
        raise _NotReady(f"{status['status'].decode()} {said}".strip())


def _get(address: Address, page: str, deadline: float) -> bytes:
    """The whole answer to a request, which ends with the connection.

    Raises:
        OSError: there is no connection, or no more.
        TimeoutError: the deadline came first.
    """
    peer = (address.host, address.port)
    with socket.create_connection(peer, timeout=_seconds_until(deadline)) as sock:
        request = f"GET {page} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        sock.sendall(request.encode())
        answer = b""
        while len(answer) < _ANSWER_MAX_BYTES:
            sock.settimeout(_seconds_until(deadline))
            more = sock.recv(_ANSWER_MAX_BYTES)
            if not more:
                break
            answer += more
    return answer


def _seconds_until(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
