"""Log lines: JSON for machines, text for a terminal. One line per event, never one per message."""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import Any, TextIO

import structlog

from trio_odin.telemetry.log_lines import LineHandler

# Without the values of local variables: they may be secrets, and there are many.
_TRACEBACKS = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


def configure_logs(
    level: str, style: str, *, worker: int | None = None, file: TextIO | None = None
) -> None:
    """Set up structlog, and give lines that libraries log through `logging` the same form.

    Args:
        level: lowest level that is logged: debug, info, warning or error.
        style: form of a line: json (a JSON object), text (key=value) or pretty (aligned, coloured).
        worker: number that every line carries; None if this process is not a worker.
        file: destination; standard error by default, as standard output belongs to the programs.

    Logging never waits: a thread writes the lines, and those it cannot write are counted.
    """
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        shared.append(partial(_add_worker, worker))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,  # so that `set_log_level` can change it
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = LineHandler(file or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(allow=["count"]),
                *shared,
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(style),
            ],
        )
    )
    root = logging.getLogger()
    for earlier in root.handlers:
        if isinstance(earlier, LineHandler):
            earlier.close()
    root.handlers = [handler]
    set_log_level(level)
    # It logs a line per frame, which would be one per message.
    logging.getLogger("trio-websocket").setLevel(logging.WARNING)
    # It logs a line per setting at each reload.
    logging.getLogger("environ_config").setLevel(logging.WARNING)
    # The bridge reports the errors of nats-py, whose default handler would print tracebacks.
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_for_us)


def set_log_level(level: str) -> None:
    """Log lines of this level or above from now on: debug, info, warning or error."""
    logging.getLogger().setLevel(level.upper())


def _is_for_us(record: logging.LogRecord) -> bool:
    """Whether a line of asyncio is not about how nats-py reads from TLS.

    asyncio warns at the end of each such connection, which nobody here can do anything about.
    """
    return not str(record.msg).startswith("returning true from eof_received()")


def _add_worker(
    worker: int, _: Any, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    event["worker"] = worker
    return event


def _renderers(style: str) -> list[structlog.types.Processor]:
    if style == "json":
        return [
            structlog.processors.ExceptionRenderer(_TRACEBACKS),
            structlog.processors.JSONRenderer(),
        ]
    if style == "text":
        return [
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ]
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
