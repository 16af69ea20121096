"""`trio-odin ready`, which the health check of a container runs every few seconds.

It imports little for that reason: not trio, not the other settings, and no HTTP client.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from trio_odin.net.address import Address
from trio_odin.settings.assignments import parse_assignments

if TYPE_CHECKING:
    import ssl

_DEADLINE_SECONDS = 2.0
_ANSWER_MAX_BYTES = 65_536
_SAID_MAX = 200
_URL = re.compile(
    r"(?P<scheme>http|https(?=://[^/]*:\d))://(?P<address>[^/?#@\s]+)(?P<page>/[^\s#]*)?"
)
_STATUS = re.compile(rb"HTTP/1\.[01] (?P<status>\d{3})\b")


class _NotReady(Exception):
    """The server is not ready; the message says why."""


@click.command("ready", short_help="Check whether a server accepts clients.")
@click.option("--url", metavar="URL", help="Ask another page, such as http://127.0.0.1:3003/health")
def ready_command(url: str | None) -> None:
    """Check whether a server accepts clients: exit code 0 if it does, 1 if not.

    The command asks /ready of the server that runs with this environment, at WS_ADMIN_ADDR or else
    WS_ADDR. --url may name a page of any other program that answers 200 while all is well.
    """
    try:
        # Its certificate is for the name that clients use, which is not known here.
        is_verified = url is not None
        url = url or _url_of(os.environ)
        _ask(url, is_verified=is_verified)
    except _NotReady as reason:
        click.echo(f"trio-odin: {url or 'not ready'}: {reason}", err=True)
        sys.exit(1)  # 2, as for other mistakes, is reserved by Docker
    click.echo(f"{url}: ready")


def _url_of(environment: Mapping[str, str]) -> str:
    """Return the URL of /ready of the server with this environment.

    Raises:
        _NotReady: no server could run with this environment.
    """
    given = {**environment, **_reload_file(environment.get("WS_RELOAD_FILE", "").strip())}
    admin, address, tls = (
        given.get(name, "").strip() for name in ("WS_ADMIN_ADDR", "WS_ADDR", "WS_TLS_CERT")
    )
    admin = "" if admin.lower() == "off" else admin
    scheme = "https" if tls and not admin else "http"  # the admin port is always plain
    return f"{scheme}://{_address(admin or address or ':3002').connectable}/ready"


def _reload_file(path: str) -> Mapping[str, str]:
    """Return the variables that override the environment.

    They are empty if the file cannot be read: a running server has kept its settings, and logs the
    error itself.
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


def _ask(url: str, *, is_verified: bool) -> None:
    """Ask for a page; `is_verified`: the certificate, if the server has one, must be for that URL.

    Raises:
        _NotReady: the answer is not a 200, or does not come in time.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        raise _NotReady("allowed is a URL like http://127.0.0.1:3002/ready")
    address = _address(parts["address"])
    try:
        answer = _get(
            address,
            parts["page"] or "/ready",
            time.monotonic() + _DEADLINE_SECONDS,
            _tls(is_verified=is_verified) if parts["scheme"] == "https" else None,
        )
    except TimeoutError:
        raise _NotReady(f"no answer within {_DEADLINE_SECONDS:g} s") from None
    except (OSError, UnicodeError) as error:  # UnicodeError: the name cannot be that of a host
        raise _NotReady(str(error)) from None
    head, _, body = answer.partition(b"\r\n\r\n")
    status = _STATUS.match(head)
    if status is None:
        raise _NotReady("what answers does not speak HTTP")
    if status["status"] != b"200":
        said = body.decode(errors="replace").strip()[:_SAID_MAX]
        raise _NotReady(f"{status['status'].decode()} {said}".strip())


def _tls(*, is_verified: bool) -> ssl.SSLContext:
    import ssl  # noqa: PLC0415 - most checks are without it

    context = ssl.create_default_context()
    if not is_verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _get(address: Address, page: str, deadline: float, tls: ssl.SSLContext | None) -> bytes:
    """Return the whole answer to a request; it ends with the connection.

    Raises:
        OSError: the connection failed.
        TimeoutError: the deadline passed.
    """
    peer = (address.host, address.port)
    with ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(peer, timeout=_seconds_until(deadline)))
        if tls is not None:
            sock = stack.enter_context(tls.wrap_socket(sock, server_hostname=address.host))
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
