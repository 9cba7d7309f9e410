"""Structured logs: one line an event, to standard error, as logfmt or JSON. Within a traced call each names its trace."""

from __future__ import annotations

import faulthandler
import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict

from stream.settings import Settings
from stream.urls import without_userinfo


def configure(settings: Settings) -> None:
    """Route structlog and the standard library's loggers through one format at the configured level. A process that ends in
    native code (RocksDB's, onnxruntime's) says where its threads were."""
    if sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)
    level = logging.getLevelNamesMapping()[settings.log_level]
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _with_trace,
        _without_userinfo,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    line: Any = (structlog.processors.JSONRenderer(ensure_ascii=False) if settings.log_format == "json"
                 else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]))  # fmt: skip
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=line))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("aiokafka", "kafka", "faust", "mode", "httpx"):  # the last one would log ids of users
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


def _without_userinfo(logger: Any, method: str, event: EventDict) -> EventDict:
    """A registry's URL may hold a password, and so may what its client raises."""
    return {name: without_userinfo(value) if isinstance(value, str) else value for name, value in event.items()}


def _with_trace(logger: Any, method: str, event: EventDict) -> EventDict:
    """The span that is current, if this process traces: without it the library was never loaded."""
    if (tracing := sys.modules.get("opentelemetry.trace")) is not None:
        context = tracing.get_current_span().get_span_context()
        if context.is_valid:
            event["trace_id"], event["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return event
