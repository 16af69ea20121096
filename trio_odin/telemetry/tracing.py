"""Whether spans are exported, and by what. The exporter is loaded only if it is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_odin.ledger.counters import TraceCounters
from trio_odin.settings.setting_field import SettingError
from trio_odin.settings.settings import Settings

if TYPE_CHECKING:
    from trio_odin.telemetry.otlp import SpanExport

_PATH = "v1/traces"


def url_of_traces(settings: Settings) -> str:
    """Where spans go, by OpenTelemetry's rules for the two variables; empty: nowhere."""
    if settings.is_tracing_disabled:
        return ""
    base = settings.traces_endpoint
    return settings.traces_url or (base and f"{base.removesuffix('/')}/{_PATH}")


def export_of(settings: Settings, counters: TraceCounters, *, worker: int) -> SpanExport | None:
    """Start to export spans, if the settings name a collector; None if they do not.

    Args:
        settings: the settings at the start: a reload does not change the collector.
        counters: counts spans.
        worker: number of this process; 0 if it is alone.

    Raises:
        SettingError: the extra `otel` is not installed, or a variable of OpenTelemetry is wrong.
    """
    url = url_of_traces(settings)
    if not url:
        return None
    name = "OTEL_EXPORTER_OTLP_" + ("TRACES_ENDPOINT" if settings.traces_url else "ENDPOINT")
    given = f"{name}={settings.traces_url or settings.traces_endpoint!r}"
    try:
        from trio_odin.telemetry.otlp import SpanExport  # noqa: PLC0415 - of an extra
    except ImportError:
        raise SettingError(
            f"{given}: traces need OpenTelemetry: pip install '.[otel]' (the extra otel)"
        ) from None
    try:
        return SpanExport(url, counters, worker=worker)
    except (ValueError, OSError) as error:
        raise SettingError(f"{given}: a variable OTEL_… is wrong: {error}") from None
