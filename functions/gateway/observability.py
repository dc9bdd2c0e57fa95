"""Structured logs: JSON lines with the request's keys, and no secret in them. Metrics are log lines too.

Keys such as the request's id belong to the request and not to the logger: many requests run at once on one
event loop, and a warm function serves many tenants. They live in a context variable, so that a task sees
those of the request that it was started for.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter
from aws_lambda_powertools.metrics import EphemeralMetrics

from gateway.redaction import REDACTED, redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.settings import Settings

__all__ = ["Logger", "Metrics", "append_log_keys", "make_logger", "open_metrics", "request_log_keys"]

SERVICE = "sluice"
_SERVICE_NAME = "POWERTOOLS_SERVICE_NAME"

# A secret without a known shape is still known by its name.
_SECRET_NAMES = frozenset(
    {
        "authorization",
        "proxy_authorization",
        "cookie",
        "set_cookie",
        "key",
        "api_key",
        "apikey",
        "x_api_key",
        "provider_key",
        "supabase_key",
        "master_key",
        "master_keys",
        "password",
        "secret",
        "token",
        "access_token",
    }
)
_MAX_DEPTH = 16

_request_keys: ContextVar[dict[str, Any] | None] = ContextVar("request_log_keys", default=None)


@contextmanager
def request_log_keys(**keys: Any) -> Iterator[None]:
    """Give the log lines of one request their keys, until the block ends.

    Tasks that start inside the block share them.
    """
    token = _request_keys.set(dict(keys))
    try:
        yield
    finally:
        _request_keys.reset(token)


def append_log_keys(**keys: Any) -> None:
    """Add keys to the log lines of the current request, from any of its tasks. None removes a key."""
    current = _request_keys.get()
    if current is not None:
        current.update(keys)


def make_logger(*, service: str = SERVICE, level: str = "INFO", stream: IO[str] | None = None) -> Logger:
    """Return the process's logger for this service name; it writes JSON lines, by default to stdout."""
    return Logger(
        service=service,
        level=level,
        stream=stream,
        logger_formatter=RedactingFormatter(utc=True, use_rfc3339=True, serialize_stacktrace=False),
    )


class RedactingFormatter(LambdaPowertoolsFormatter):
    """Powertools' JSON, with the request's keys, and with secrets blanked wherever they stand.

    Every text is searched before it is serialised, where an escape could hide the start of a secret: message,
    extra values, exception text and names, in whatever they are nested.
    """

    def serialize(self, log: Any) -> str:
        keys = _request_keys.get() or {}
        merged = {
            **log,
            **{name: value for name, value in keys.items() if value is not None and name not in log},
        }
        return super().serialize(_clean(merged))


def _clean(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth == _MAX_DEPTH:
        return "…"
    if isinstance(value, dict):
        return {
            redact(str(name)): REDACTED if _is_secret(name, item) else _clean(item, depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item, depth + 1) for item in value]
    return redact(str(value))


def _is_secret(name: Any, value: Any) -> bool:
    return value is not None and str(name).lower().replace("-", "_") in _SECRET_NAMES


class Metrics:
    """CloudWatch metrics in the embedded metric format: each record is one line on stdout.

    A record has its own metric set and is written at once. Powertools' decorator would write before a
    streamed body has run, and its shared set would mix requests.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def record(self, values: Mapping[str, tuple[str, float]], **dimensions: str) -> None:
        """Write values by name, each with its CloudWatch unit: once for the service, once by `dimensions`."""
        metrics = EphemeralMetrics(
            namespace=self._namespace, service=os.environ.get(_SERVICE_NAME) or SERVICE
        )
        metrics.add_dimensions(**dimensions)
        for name, (unit, value) in values.items():
            metrics.add_metric(name=name, unit=unit, value=value)
        metrics.flush_metrics()


def open_metrics(settings: Settings) -> Metrics | None:
    """Return the process's metrics; None where none are wanted."""
    return Metrics(settings.metrics_namespace) if settings.metrics_namespace else None
