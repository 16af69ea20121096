"""Whether spans are exported, and by what. The exporter is loaded only if it is wanted.

OpenTelemetry's variables are shared by all programs of a machine, and platforms inject them. So
what other programs can use and this one cannot is a warning, and the server serves without traces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from trio_odin.ledger.counters import TraceCounters
from trio_odin.settings import values
from trio_odin.settings.extras import install_hint
from trio_odin.settings.setting_field import SettingError, shown_collector
from trio_odin.settings.settings import Settings

if TYPE_CHECKING:
    from trio_odin.telemetry.otlp import SpanExport

_PATH = "v1/traces"
_PROTOCOL = "http/protobuf"
_EXPORTER = "otlp"

_log = structlog.get_logger("traces")


class CannotExport(Exception):
    """Traces are wanted, and this process cannot send them. The message is the reason."""


def url_of_traces(settings: Settings) -> str:
    """Where spans go, by OpenTelemetry's rules for its variables; empty: nowhere.

    Raises:
        CannotExport: the collector speaks a protocol that is not supported here.
        SettingError: the URL is wrong.
    """
    exporters = values.words(settings.traces_exporter.lower())
    given = settings.traces_url or settings.traces_endpoint
    if settings.is_tracing_disabled or "none" in exporters or not given:
        return ""
    if _EXPORTER not in exporters:
        raise CannotExport(
            f"OTEL_TRACES_EXPORTER={settings.traces_exporter!r}: "
            f"traces are sent by {_EXPORTER} only"
        )
    name = "OTEL_EXPORTER_OTLP_" + ("TRACES_PROTOCOL" if settings.traces_protocol else "PROTOCOL")
    protocol = settings.traces_protocol or settings.otlp_protocol
    if protocol.lower() != _PROTOCOL:
        raise CannotExport(f"{name}={protocol!r}: traces are sent by {_PROTOCOL} only")
    try:
        url = values.collector_url(given)
    except values.Unacceptable as error:
        raise SettingError(f"{_shown(settings)}: allowed is {error}") from None
    return url if settings.traces_url else f"{url.removesuffix('/')}/{_PATH}"


def _shown(settings: Settings) -> str:
    """The variable that names the collector, with its value, without what is secret in it."""
    name = "OTEL_EXPORTER_OTLP_" + ("TRACES_ENDPOINT" if settings.traces_url else "ENDPOINT")
    return f"{name}={shown_collector(settings.traces_url or settings.traces_endpoint)!r}"


def export_of(settings: Settings, counters: TraceCounters, *, worker: int) -> SpanExport | None:
    """Start to export spans, if the settings name a collector; None if none are exported.

    Where they do and this process cannot, a line in the log gives the reason.

    Args:
        settings: the settings at the start: a reload does not change the collector.
        counters: counts spans.
        worker: number of this process; 0 if it is alone.

    Raises:
        SettingError: the URL or a variable of OpenTelemetry is wrong.
    """
    try:
        url = url_of_traces(settings)
        if not url:
            return None
        export = _made(url, settings, counters, worker=worker)
    except CannotExport as error:
        _log.warning("traces.off", reason=str(error))
        return None
    _log.info("traces.on", url=url, worker=worker, node=export.node)
    return export


def try_export(settings: Settings) -> str:
    """Make the export as at a start, and end it; returns the URL, empty if none is wanted.

    Nothing is sent. It takes as long as loading the library does.

    Raises:
        CannotExport: traces are wanted, and this process cannot send them.
        SettingError: the URL or a variable of OpenTelemetry is wrong.
    """
    if url := url_of_traces(settings):
        _made(url, settings, TraceCounters(), worker=0).shut_down()
    return url


def _made(url: str, settings: Settings, counters: TraceCounters, *, worker: int) -> SpanExport:
    try:
        from trio_odin.telemetry.otlp import SpanExport  # noqa: PLC0415 - of an extra
    except ImportError:
        raise CannotExport(
            f"{_shown(settings)}: traces need OpenTelemetry: {install_hint('otel')}"
        ) from None
    try:
        return SpanExport(url, counters, worker=worker)
    except (ValueError, OSError) as error:
        raise SettingError(f"{_shown(settings)}: a variable OTEL_… is wrong: {error}") from None
