"""Spans to a collector, by OTLP over HTTP. The only importer of OpenTelemetry, of an extra.

    hub ► Traces.collect ► give ► the library's queue ► its thread ► HTTP ► collector
                            │                                  │
                     full: dropped                   taken or failed: counted

OpenTelemetry's own variables configure it: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
OTEL_EXPORTER_OTLP_HEADERS, …_TIMEOUT, …_CERTIFICATE, OTEL_BSP_SCHEDULE_DELAY. What is sampled was
decided by whoever published, so OTEL_TRACES_SAMPLER has no effect.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from trio_odin import __version__
from trio_odin.ledger.counters import TraceCounters
from trio_odin.telemetry.spans import Span

# Half a minute of spans at the default limit of traces.
QUEUE_MAX: Final = 2048
# While the thread encodes a batch it competes with the loop, for some 0.2 ms a span. Between two
# batches it waits for the collector.
_BATCH_MAX: Final = 32
_KINDS: Final[Mapping[str, SpanKind]] = {
    "consumer": SpanKind.CONSUMER,
    "producer": SpanKind.PRODUCER,
    "internal": SpanKind.INTERNAL,
}
_SCOPE: Final = InstrumentationScope("trio_odin", __version__)
_SERVICE: Final = "service.name"
_UNKNOWN_SERVICE: Final = "unknown_service"

_log = structlog.get_logger("traces")


class SpanExport:
    """Exports spans in a thread of the library. `give` does not wait, whatever the collector does.

    Resource handling: `shut_down` ends the thread. Without it, it ends with the process.

    Attributes:
        node: the name of this machine, as it is in each span.
    """

    def __init__(self, url: str, counters: TraceCounters, *, worker: int) -> None:
        """Start the thread.

        Args:
            url: where the collector takes spans.
            counters: counts what becomes of them.
            worker: number of this process; 0 if it is alone.

        Raises:
            ValueError, OSError: a variable of OpenTelemetry cannot be used.
        """
        self.node = node = platform.node()
        self._counters = counters
        self._given = 0
        self._attributes: dict[str, str | int] = {
            "trio_odin.worker": worker,
            "trio_odin.node": node,
        }
        resource = Resource.create({"service.version": __version__, "host.name": node})
        # The library's own default is not a name that anybody would look for.
        if str(resource.attributes.get(_SERVICE, "")).startswith(_UNKNOWN_SERVICE):
            resource = resource.merge(Resource({_SERVICE: "trio-odin"}))
        self._resource = resource
        exporter = _CountingExporter(OTLPSpanExporter(endpoint=url), counters)
        self._processor = BatchSpanProcessor(
            exporter, max_queue_size=QUEUE_MAX, max_export_batch_size=_BATCH_MAX
        )

    @property
    def waiting(self) -> int:
        """How many spans are neither exported nor given up yet."""
        return self._given - self._counters.spans_exported - self._counters.spans_failed

    def give(self, span: Span) -> None:
        """Take `span`, or drop and count it if too many others wait. Does not wait."""
        if self.waiting >= QUEUE_MAX:
            self._counters.spans_dropped += 1
            return
        self._given += 1
        trace_id = int(span.context.trace_id, 16)
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=_context(trace_id, span.context.span_id, is_remote=False),
                parent=_context(trace_id, span.parent_id, is_remote=span.kind == "consumer"),
                resource=self._resource,
                attributes={**span.attributes, **self._attributes},
                kind=_KINDS[span.kind],
                start_time=span.begin_ns,
                end_time=span.end_ns,
                instrumentation_scope=_SCOPE,
            )
        )

    def shut_down(self) -> None:
        """Export what waits, and end the thread. Waits as long as that takes: some 30 s at most."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


class _CountingExporter(SpanExporter):
    """Counts what another exporter exports, and logs when that begins to fail, or to work again."""

    def __init__(self, exporter: SpanExporter, counters: TraceCounters) -> None:
        self._exporter = exporter
        self._counters = counters
        self._words = _LastWords()
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        has_failed = result is not SpanExportResult.SUCCESS
        if has_failed:
            self._counters.spans_failed += len(spans)
        else:
            self._counters.spans_exported += len(spans)
        if has_failed != self._is_failing:
            self._is_failing = has_failed
            if has_failed:
                _log.warning("traces.failed", spans=len(spans), reason=self._words.text)
            else:
                _log.info("traces.recovered")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _LastWords(logging.Handler):
    """Keeps the last line that OpenTelemetry logs: it returns no reason, and logs one each time."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""
        logger = logging.getLogger("opentelemetry")
        logger.handlers = [self]
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def _context(trace_id: int, span_id: str, *, is_remote: bool) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(trace_id, int(span_id, 16), is_remote=is_remote, trace_flags=flags)
