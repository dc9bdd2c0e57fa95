"""What a process holds from its first request to its last: settings and clients, made once and handed in.

Nothing of it depends on a request. The clients belong to the event loop that they are first used on.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from http.cookiejar import Cookie, CookieJar
from typing import TYPE_CHECKING, Literal, Self

import httpx

from gateway.auth_tokens import AuthTokens
from gateway.database.client import LIMITS, DatabaseClient, open_http
from gateway.database.rpc import Database
from gateway.http_client import DirectClient
from gateway.metering import Meter
from gateway.observability import Logger, make_logger, open_metrics
from gateway.runtime.secrets import with_secret
from gateway.settings import Settings
from gateway.spool import FileSpool, QueueSpool, Spool

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from gateway.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Process:
    """Settings and clients of one process."""

    settings: Settings
    logger: Logger
    database: Database
    spool: Spool
    meter: Meter
    auth_tokens: AuthTokens
    providers_http: httpx.AsyncClient
    database_http: httpx.AsyncClient
    open_webhooks_http: Callable[[], httpx.AsyncClient]
    """Makes a client for the operator's webhook; whoever calls it closes it."""
    open_stripe_http: Callable[[], httpx.AsyncClient]
    """Makes a client for Stripe's API; whoever calls it closes it."""
    telemetry: Telemetry | None = None

    @classmethod
    def start(cls, settings: Settings) -> Self:
        """Make the clients. Nothing is connected to yet."""
        logger = make_logger(level=settings.log_level)
        database_http = open_http(settings, _open_transport(settings, LIMITS, traced_as="function"))
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
            auth_tokens=AuthTokens(settings, functools.partial(_open_auth_http, settings)),
            providers_http=_open_providers_http(settings),
            database_http=database_http,
            open_webhooks_http=functools.partial(_open_webhooks_http, settings),
            open_stripe_http=functools.partial(_open_stripe_http, settings),
            telemetry=_open_telemetry(settings, logger),
        )

    async def aclose(self) -> None:
        """Wait for what is still being settled, and close the clients."""
        await self.meter.drain()
        await self.auth_tokens.aclose()
        await self.providers_http.aclose()
        await self.database_http.aclose()
        if self.telemetry is not None:
            await self.telemetry.aclose()


@functools.cache
def current_process() -> Process:
    """Return this process's settings and clients, made from the environment and the secret at the first call.

    That is in the first request and not at the start: until then Lambda's extension may serve no secret, and
    a snapshot holds none. Raises SettingsError.
    """
    return Process.start(Settings.from_environment(with_secret(os.environ)))


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return what a client checks servers' certificates by. Loading the authorities takes 20 to 40 ms."""
    return httpx.create_ssl_context(trust_env=False)


def warm_up() -> None:
    """Do what the first request would have to do and what depends on no setting: a snapshot may hold it."""
    # What it is made of is imported with it.
    _open_pool(httpx.Limits())


class _NoCookies(CookieJar):
    """Keeps no cookie: one tenant's must not reach another's request."""

    def set_cookie(self, cookie: Cookie) -> None:
        pass


def _open_transport(
    settings: Settings, limits: httpx.Limits, *, traced_as: Literal["function", "host"]
) -> httpx.AsyncBaseTransport:
    """Return a transport with kept connections and without a proxy, traced where there is a daemon."""
    transport = _open_pool(limits)
    if settings.xray_daemon_address is None:
        return transport
    from gateway.runtime.tracing import TracedTransport, Tracer, function_of, host_of  # noqa: PLC0415

    name = function_of if traced_as == "function" else host_of
    return TracedTransport(transport, Tracer(settings.xray_daemon_address), name)


def _open_pool(limits: httpx.Limits) -> httpx.AsyncBaseTransport:
    from gateway.http_transport import PooledTransport  # noqa: PLC0415 - httpcore takes 20 ms to import

    return PooledTransport(tls_context(), limits)


def _open_telemetry(settings: Settings, logger: Logger) -> Telemetry | None:
    if settings.otlp_traces_endpoint is None and settings.otlp_metrics_endpoint is None:
        return None
    try:
        from gateway.runtime.otlp import OpenTelemetry  # noqa: PLC0415 - 0.3 s where it is not asked for

        return OpenTelemetry(settings, logger)
    except Exception as error:  # noqa: BLE001 - a variable of the SDK's may be bad: no request is to fail for it
        logger.error("Telemetry could not be started.", extra={"reason": type(error).__name__})  # noqa: TRY400
        return None


def _open_auth_http(settings: Settings) -> httpx.AsyncClient:
    few = httpx.Limits(max_connections=4, max_keepalive_connections=1, keepalive_expiry=2)
    return httpx.AsyncClient(
        timeout=settings.connect_timeout_seconds,
        transport=_open_transport(settings, few, traced_as="host"),
        follow_redirects=False,
        trust_env=False,
        cookies=_NoCookies(),
    )


def _open_stripe_http(settings: Settings) -> httpx.AsyncClient:
    few = httpx.Limits(max_connections=4, max_keepalive_connections=1, keepalive_expiry=2)
    return httpx.AsyncClient(
        timeout=httpx.Timeout(10, connect=settings.connect_timeout_seconds),
        transport=_open_transport(settings, few, traced_as="host"),
        follow_redirects=False,
        trust_env=False,
        cookies=_NoCookies(),
    )


def _open_webhooks_http(settings: Settings) -> httpx.AsyncClient:
    # No connection is kept: they are opened to addresses, and one of them may serve several names.
    unkept = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=settings.connect_timeout_seconds),
        transport=_open_transport(settings, unkept, traced_as="host"),
        follow_redirects=False,
        trust_env=False,
        cookies=_NoCookies(),
    )


def _open_providers_http(settings: Settings) -> httpx.AsyncClient:
    # A call that is sent at the moment at which the provider closes an idle connection is lost, and can't be
    # sent again: it may have been taken. So we are to be the first. Hosted providers wait for a minute and
    # more; vLLM (uvicorn) and Node's servers for five seconds, but in their networks connecting is cheap.
    far = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30)
    near = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=2)
    # No read time-out: each call has its own deadline, and a model may think for minutes first.
    patience = settings.connect_timeout_seconds
    return DirectClient(
        _open_transport(settings, far, traced_as="host"),
        plain=_open_transport(settings, near, traced_as="host"),
        timeout=httpx.Timeout(None, connect=patience, pool=patience),
    )
