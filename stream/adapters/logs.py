"""Structured logs: one line an event, to standard error."""

from __future__ import annotations

import logging
from typing import Any

import structlog

from stream.settings import Settings


def configure(settings: Settings) -> None:
    """Route structlog and the standard library's loggers through one format at the configured level."""
    level = logging.getLevelNamesMapping()[settings.log_level]
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    line = structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"])
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=line))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("aiokafka", "kafka", "faust", "mode", "httpx"):  # the last one would log ids of users
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
