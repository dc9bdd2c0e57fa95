"""What a process holds from its first request to its last: settings and clients, made once and handed in.

Nothing of it depends on a request. The clients belong to the event loop that they are first used on.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from http.cookiejar import Cookie, CookieJar
from typing import Self

import httpx

from gateway.database.client import DatabaseClient, open_http
from gateway.database.rpc import Database
from gateway.metering import Meter
from gateway.observability import Logger, make_logger, open_metrics
from gateway.runtime.secrets import with_secret
from gateway.settings import Settings
from gateway.spool import FileSpool, QueueSpool, Spool

Wrap = Callable[[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport]


@dataclass(frozen=True, slots=True)
class Process:
    """Settings and clients of one process."""

    settings: Settings
    logger: Logger
    database: Database
    spool: Spool
    meter: Meter
    providers_http: httpx.AsyncClient
    database_http: httpx.AsyncClient

    @classmethod
    def start(cls, settings: Settings) -> Self:
        """Make the clients. Nothing is connected to yet."""
        logger = make_logger(level=settings.log_level)
        wraps = _traces(settings)
        database_http = open_http(settings, wraps.get("database"))
        database = Database(
            DatabaseClient(settings.rest_url, settings.supabase_key.get_secret_value(), database_http)
        )
        queue_url = settings.spool_queue_url
        spool: Spool = QueueSpool(queue_url) if queue_url else FileSpool(settings.spool_dir, logger)
        return cls(
            settings=settings,
            logger=logger,
            database=database,
            spool=spool,
            meter=Meter(database, spool, logger, open_metrics(settings)),
            providers_http=_open_providers_http(settings, wraps.get("providers")),
            database_http=database_http,
        )

    async def aclose(self) -> None:
        """Wait for what is still being settled, and close the clients."""
        await self.meter.drain()
        await self.providers_http.aclose()
        await self.database_http.aclose()


@functools.cache
def current_process() -> Process:
    """Return this process's settings and clients, made from the environment and the secret at the first call.

    That is in the first request and not at the start: until then Lambda's extension may serve no secret, and
    a snapshot holds none. Raises SettingsError.
    """
    return Process.start(Settings.from_environment(with_secret(os.environ)))


class _NoCookies(CookieJar):
    """Keeps no cookie: one tenant's must not reach another's request."""

    def set_cookie(self, cookie: Cookie) -> None:
        pass


def _traces(settings: Settings) -> dict[str, Wrap]:
    """Return what puts the trace round the clients' transports, by client; nothing where traces are off."""
    address = settings.xray_daemon_address
    if address is None:
        return {}
    from gateway.runtime.tracing import TracedTransport, Tracer, function_of, host_of  # noqa: PLC0415

    return {
        "database": lambda transport: TracedTransport(transport, Tracer(address), function_of),
        "providers": lambda transport: TracedTransport(transport, Tracer(address), host_of),
    }


def _open_providers_http(settings: Settings, wrap: Wrap | None) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30),
        trust_env=False,
    )
    # No read time-out: each call has its own deadline, and a model may think for minutes first.
    patience = settings.connect_timeout_seconds
    return httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=patience, pool=patience),
        transport=wrap(transport) if wrap else transport,
        follow_redirects=False,
        trust_env=False,
        cookies=_NoCookies(),
    )
