"""Checks what a server needs, without serving: `trio-odin serve --check`.

Nothing is changed. Ports are bound for a moment; NATS is logged in to and asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from enum import Enum

import attrs
import trio

from trio_odin.admin.access import is_loopback, read_token
from trio_odin.auth.authorize import verifier_of
from trio_odin.listener.tls import tls_identity_of
from trio_odin.net.address import Address
from trio_odin.net.listening import AddressUnavailable, open_listeners
from trio_odin.net.tls_files import TlsFileUnusable, expires_at
from trio_odin.overload.process import files_needed, raise_file_limit
from trio_odin.settings.dictionary_file import dictionary_of
from trio_odin.settings.reading import differing, warnings_about
from trio_odin.settings.setting_field import SettingError
from trio_odin.settings.settings import Settings
from trio_odin.telemetry.tracing import CannotExport, try_export
from trio_odin.upstream.access import NatsAccess, access_of
from trio_odin.upstream.probe import probe_nats

_DAY_SECONDS = 86_400
# As the alert CertificateExpires.
_CERTIFICATE_WARNING_SECONDS = 14 * _DAY_SECONDS
_NATS_SECONDS = 15.0


class Result(Enum):
    """How a check went. A warning does not keep the server from serving."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@attrs.frozen
class Finding:
    """The result of one check: what was checked, and a sentence about it."""

    what: str
    result: Result
    text: str

    @classmethod
    def of(cls, what: str, is_good: bool, text: str) -> Finding:
        """A finding that is good, or failed."""
        return cls(what, Result.OK if is_good else Result.FAILED, text)


async def check(
    settings: Settings, environment: Mapping[str, str], tell: Callable[[Finding], object]
) -> bool:
    """Carry out all checks; returns whether none has failed.

    Args:
        settings: the settings to check.
        environment: what they were read from.
        tell: called with each finding, as soon as it is there.

    Cancellation: nothing is left behind.
    """
    is_good = True

    def note(finding: Finding) -> None:
        nonlocal is_good
        is_good = is_good and finding.result is not Result.FAILED
        tell(finding)

    for finding in _of_files(settings, environment):
        note(finding)
    # Making the export loads its library.
    note(await trio.to_thread.run_sync(_of_traces, settings, abandon_on_cancel=True))
    for finding in await _of_ports(settings):
        note(finding)
    try:
        access = access_of(settings)
    except SettingError as error:
        note(Finding("NATS", Result.FAILED, str(error)))
        return is_good
    for finding in _of_client_certificate(settings):
        note(finding)
    for finding in await _of_nats(settings, access):
        note(finding)
    return is_good


def _of_files(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """What needs nobody else: the settings, the files that they name, and limits."""
    changed = differing(environment)
    yield Finding("settings", Result.OK, f"{len(changed)} differ from the defaults")
    for warning in warnings_about(settings, environment):
        yield Finding("settings", Result.WARNING, warning)
    yield _of_open_files(settings)
    yield _finding("tokens", lambda: _tokens(settings))
    yield _finding("dictionary", lambda: _dictionary(settings))
    yield _finding("admin token", lambda: _admin_token(settings))
    yield _of_certificate(settings)


def _finding(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, Result.OK, look())
    except SettingError as error:
        return Finding(what, Result.FAILED, str(error))


def _of_open_files(settings: Settings) -> Finding:
    files = raise_file_limit()
    needed = files_needed(settings.max_connections, settings.workers)
    if needed > files:
        return Finding(
            "open files",
            Result.FAILED,
            f"{files:,} are allowed, and a process needs {needed:,} for WS_MAX_CONNECTIONS: raise "
            "nofile",
        )
    return Finding("open files", Result.OK, f"{files:,} are allowed, {needed:,} needed")


def _tokens(settings: Settings) -> str:
    verifier = verifier_of(settings)
    if verifier is None:
        return "not needed: WS_JWT_KEYS is not set"
    return f"{len(verifier.keys)} keys in WS_JWT_KEYS"


def _dictionary(settings: Settings) -> str:
    dictionary = dictionary_of(settings)
    return "switched off" if dictionary is None else dictionary.id


def _admin_token(settings: Settings) -> str:
    if read_token(settings.admin_token_file):
        return "WS_ADMIN_TOKEN_FILE"
    address = settings.admin_address
    if address == "off":
        return "not needed: WS_ADMIN_ADDR is off"
    if address is None or is_loopback(address.host):
        return "not needed on loopback"
    # Many set the address for /metrics alone, so that is not worth a warning.
    return (
        "none: WS_ADMIN_ADDR is not loopback, so the admin API refuses all requests until "
        "WS_ADMIN_TOKEN_FILE is set; /metrics, /health and /ready need none"
    )


def _of_traces(settings: Settings) -> Finding:
    try:
        url = try_export(settings)
    except CannotExport as error:
        return Finding("traces", Result.WARNING, str(error))
    except SettingError as error:
        return Finding("traces", Result.FAILED, str(error))
    return Finding("traces", Result.OK, f"sent to {url}" if url else "none: no collector is set")


def _of_certificate(settings: Settings) -> Finding:
    try:
        identity = tls_identity_of(settings)
    except SettingError as error:
        return Finding("certificate", Result.FAILED, str(error))
    if identity is None:
        return Finding("certificate", Result.OK, "not needed: WS_TLS_CERT is not set")
    return _of_expiry("certificate", "WS_TLS_CERT", identity.expires_at)


def _of_client_certificate(settings: Settings) -> Iterator[Finding]:
    """Our certificate for NATS, which has been read with the login."""
    if settings.nats_tls_cert is not None:
        with suppress(TlsFileUnusable):  # it has changed since
            expiry = expires_at(settings.nats_tls_cert)
            yield _of_expiry("NATS certificate", "NATS_TLS_CERT", expiry)


def _of_expiry(what: str, name: str, unix_seconds: float) -> Finding:
    left = unix_seconds - time.time()
    at = f"{datetime.fromtimestamp(unix_seconds, UTC):%F %T} UTC"
    if left <= 0:
        return Finding(what, Result.FAILED, f"{name} has expired at {at}")
    result = Result.WARNING if left < _CERTIFICATE_WARNING_SECONDS else Result.OK
    days = math.floor(left / _DAY_SECONDS)
    return Finding(what, result, f"{name} is valid for {days} days, until {at}")


async def _of_ports(settings: Settings) -> list[Finding]:
    """Bind the ports, all at once: two settings may name the same one."""
    findings = []
    ours: set[int] = set()
    async with AsyncExitStack() as stack:
        for what, address in (("port", settings.address), ("admin port", settings.admin_address)):
            if not isinstance(address, Address):
                continue
            try:
                for listener in await open_listeners(address):
                    await stack.enter_async_context(listener)
            except AddressUnavailable as error:
                is_own = address.port in ours
                text = f"cannot listen on {address}: WS_ADDR has this port"
                findings.append(Finding(what, Result.FAILED, text if is_own else str(error)))
            else:
                ours.add(address.port)
                findings.append(Finding(what, Result.OK, f"{address} is free"))
    return findings


async def _of_nats(settings: Settings, access: NatsAccess) -> list[Finding]:
    with trio.move_on_after(_NATS_SECONDS * len(settings.nats_urls)):
        return [
            Finding.of("stream" if probe.is_of_stream else "NATS", probe.is_good, probe.text)
            for probe in await probe_nats(settings, access)
        ]
    return [Finding("NATS", Result.FAILED, "it takes too long to answer")]
