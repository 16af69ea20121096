"""Asks an admin API, from threads: each request has its own connection and a deadline."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import attrs

from trio_odin.net.address import Address

_DEADLINE_SECONDS: Final = 5.0
# A trace ends by itself at the latest then; see TRACE_SECONDS_MAX of the API.
_TRACE_SECONDS: Final = 600.0
_ANSWER_MAX_BYTES: Final = 64 * 1024 * 1024
_EXAMPLE: Final = "http://127.0.0.1:3008"
# The host may have letters that are not ASCII; a path may not.
_URL: Final = re.compile(r"https?://[^/\s]+(/[!-~]*)?", re.IGNORECASE)


class SourceError(Exception):
    """The API cannot be asked, or refuses; the message is a sentence for a person."""


@attrs.frozen
class Reading:
    """What was read at one moment; each part as the API gives it.

    Attributes:
        at: monotonic seconds.
    """

    at: float
    overview: dict[str, Any]
    connections: dict[str, Any]
    channels: dict[str, Any]


class Source:
    """One admin API.

    Args:
        url: where it is, such as http://127.0.0.1:3008.
        token: the token that it asks for; empty: none.

    Raises:
        ValueError: nothing can be at this URL, or it is not one of http or https. The message says
            what is allowed.
    """

    def __init__(self, url: str, token: str = "") -> None:
        parts = _parts(url if "://" in url else f"http://{url}")
        self._is_secure = parts.scheme == "https"
        self._host = str(parts.hostname)
        self._port = parts.port
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.name = f"{self._host}:{self._port}" if self._port else self._host

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """Return what a page has.

        Raises:
            SourceError: there is no answer in time, or it is a refusal.
        """
        return self._content("GET", path, query)

    def close(self, connection_id: str) -> None:
        """Close a connection of the server.

        Raises:
            SourceError: as in `get`.
        """
        self._content("POST", f"/connections/{quote(connection_id)}/close", None)

    def _content(self, method: str, path: str, query: Mapping[str, Any] | None) -> Any:
        connection = self._connection(_DEADLINE_SECONDS)
        try:
            answer = self._ask(connection, method, path, query)
            return _decoded(answer.read(_ANSWER_MAX_BYTES), self.name)
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(self._unreachable(error)) from None
        finally:
            connection.close()

    def trace(self, query: Mapping[str, Any]) -> Trace:
        """Begin to follow frames.

        Raises:
            SourceError: as in `get`.
        """
        connection = self._connection(_TRACE_SECONDS)
        try:
            return Trace(connection, self._ask(connection, "GET", "/trace", query))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise SourceError(self._unreachable(error)) from None
        except SourceError:
            connection.close()
            raise

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=seconds)

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
    ) -> http.client.HTTPResponse:
        given = {name: value for name, value in (query or {}).items() if value not in {None, ""}}
        target = f"{self._prefix}{path}" + (f"?{urlencode(given)}" if given else "")
        connection.request(method, target, headers=self._headers)
        answer = connection.getresponse()
        if answer.status == http.client.OK:
            return answer
        body = answer.read(_ANSWER_MAX_BYTES)
        try:
            reason = str(json.loads(body)["error"])
        except (ValueError, TypeError, KeyError):
            reason = f"it answers {answer.status}: is there an admin API?"
        raise SourceError(f"{self.name}: {reason}")

    def _unreachable(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"{self.name}: no answer within {_DEADLINE_SECONDS:g} s"
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"{self.name} cannot be reached: {reason}"


class Trace:
    """The lines of a trace. `close` may be called by another thread, and ends them."""

    def __init__(
        self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse
    ) -> None:
        # The answer ends with the connection, so http.client has left the socket to it.
        self._socket = answer.fp.raw._sock  # type: ignore[attr-defined]  # noqa: SLF001
        self._connection = connection
        self._answer = answer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with suppress(OSError, ValueError, http.client.HTTPException, AttributeError):
            for line in self._answer:
                yield json.loads(line)
        self._connection.close()

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def _parts(url: str) -> SplitResult:
    """The parts of a URL that can be asked. Others would be errors of http.client, of many kinds.

    Raises:
        ValueError: it cannot; the message says what is allowed.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        Address.parse(f"[{host}]:1" if ":" in host else f"{host}:1")
        is_one = bool(host and _URL.fullmatch(url)) and not parts.query and not parts.fragment
    except ValueError:
        raise ValueError(f"a URL such as {_EXAMPLE}") from None
    if not is_one:
        raise ValueError(f"a URL such as {_EXAMPLE}")
    try:
        is_port = parts.port != 0
    except ValueError:
        is_port = False
    if not is_port:
        raise ValueError(f"a port from 1 to 65535, as in {_EXAMPLE}")
    return parts


def _decoded(body: bytes, name: str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise SourceError(f"{name}: what answers there is not an admin API") from None
