"""Fetches the dictionary of trio-odin.z1, once in the life of a fleet."""

from __future__ import annotations

import http.client
import socket
import ssl

from trio_odin.lab.fleet.encodings import has_id
from trio_odin.lab.fleet.plan import FleetPlan

_SECONDS = 5.0
_MAX_BYTES = 1024 * 1024


class DictionaryUnavailable(Exception):
    """The server does not give the announced dictionary; the message gives the reason."""


def fetch(plan: FleetPlan, path: str, identity: str) -> bytes:
    """Fetch the dictionary from the server of `plan`. It blocks, for some seconds at most.

    Raises:
        DictionaryUnavailable: there is none, or another one.
    """
    # To the address of the other connections, whatever the name resolves to now.
    connection = http.client.HTTPConnection(plan.name or plan.host, plan.port)
    try:
        connection.sock = _connected(plan)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(_MAX_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DictionaryUnavailable(f"no dictionary: {error!r}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise DictionaryUnavailable(f"no dictionary: {path!r} answers {answer.status}")
    if not has_id(body, identity):
        raise DictionaryUnavailable(f"the dictionary is not the announced one, {identity!r}")
    return body


def _connected(plan: FleetPlan) -> socket.socket:
    plain = socket.create_connection((plan.host, plan.port), _SECONDS)
    if not plan.is_tls:
        return plain
    try:
        context = ssl.create_default_context()
        return context.wrap_socket(plain, server_hostname=plan.name or plan.host)
    except OSError:
        plain.close()
        raise
