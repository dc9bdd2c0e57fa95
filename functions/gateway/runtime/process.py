"""What a process holds from its first request to its last: settings and clients, made once and handed in.

Nothing of it depends on a request. The clients belong to the event loop that they are first used on.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from http.cookiejar import Cookie, CookieJar
from typing import Self

import httpx

from gateway.database.client import DatabaseClient, open_http
from gateway.database.rpc import Database
from gateway.metering import Meter
from gateway.observability import Logger, make_logger
from gateway.runtime.secrets import with_secret
from gateway.settings import Settings
from gateway.spool import FileSpool, QueueSpool, Spool


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
        database_http = open_http(settings)
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
            meter=Meter(database, spool, logger),
            providers_http=_open_providers_http(settings),
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


def _open_providers_http(settings: Settings) -> httpx.AsyncClient:
    # No read time-out: each call has its own deadline, and a model may think for minutes first.
    patience = settings.connect_timeout_seconds
    return httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=patience, pool=patience),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30),
        follow_redirects=False,
        trust_env=False,
        cookies=_NoCookies(),
    )
