"""Logs: events with fields, on standard error, as text on a terminal or as JSON lines."""

import logging
import sys

import structlog
from structlog.typing import Processor

from cortex_kit import settings


def setup(service: str, options: settings.Log) -> None:
    """Send everything, what libraries log too, to standard error in one format."""
    level = logging.getLevelNamesMapping()[options.level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    structlog.contextvars.bind_contextvars(service=service)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(options.format),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)


def _rendering(form: str) -> list[Processor]:
    """Text for people, with tracebacks drawn; else one JSON object a line."""
    if form == "text" or (form == "auto" and sys.stderr.isatty()):
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
