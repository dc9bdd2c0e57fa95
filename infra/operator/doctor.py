"""`sluice doctor`: looks for what is wrong, and says how to mend each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import typer
from rich.console import Console
from rich.text import Text

from gateway import __version__
from gateway.settings import Settings, SettingsError
from infra.local.database import migrations
from infra.local.processes import HOST, StackError
from infra.local.stack import database_url, local_state
from infra.operator.api import Api, Connection, OperatorError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LEAST_VERSION = 150000
MOST_SKEW_SECONDS = 5.0
OVERDUE_MINUTES = 10
ROLES = ("anon", "authenticated", "service_role", "authenticator")
_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("·", "dim")}

Database = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check. `good` None: it could not be made. `remedy` is what to do about it."""

    subject: str
    good: bool | None
    message: str
    remedy: str = ""


def doctor() -> None:
    """Look for what is wrong with settings, database, roles, provider keys and clocks; say how to mend it."""
    console = Console(highlight=False)
    wrong = 0
    for finding in examine(os.environ):
        mark, colour = _MARKS[finding.good]
        console.print(Text.assemble((f"{mark} ", colour), (f"{finding.subject}: ", "bold"), finding.message))
        if finding.remedy:
            console.print(Text(f"  → {finding.remedy}", "yellow"))
        wrong += finding.good is False
    if wrong:
        print(f"\n{wrong} to mend")
        raise typer.Exit(1)


def examine(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Make every check that can be made from here, the cheap ones first."""
    yield from _settings(environ)
    yield from _with_database(environ)
    yield from _exposed_schemas(environ)
    yield from _with_gateway(environ)


def _settings(environ: Mapping[str, str]) -> Iterator[Finding]:
    if not environ.get("SUPABASE_URL") and not environ.get("SLUICE_REST_URL"):
        yield Finding("settings", None, "SUPABASE_URL is not set: looking at the local stack")
        return
    try:
        settings = Settings.from_environment(environ)
    except SettingsError as error:
        yield Finding(
            "settings", False, str(error), "infra/docs/setup.md lists the variables and what each may hold"
        )
        return
    yield Finding("settings", True, f"the REST API is {settings.rest_url}")
    yield _stripe(settings)
    if not settings.master_keys:
        yield Finding(
            "master keys",
            False,
            "SLUICE_MASTER_KEYS is not set, so no provider's key can be read",
            "set it to what the deployed gateway has (its secret in AWS Secrets Manager)",
        )


def _stripe(settings: Settings) -> Finding:
    needed = {
        "SLUICE_STRIPE_SECRET_KEY": settings.stripe_secret_key is not None,
        "SLUICE_STRIPE_WEBHOOK_SECRET": bool(settings.stripe_webhook_secrets),
        "SLUICE_PUBLIC_URL": settings.public_url is not None,
    }
    missing = [name for name, there in needed.items() if not there]
    if settings.stripe_secret_key is None and not settings.stripe_webhook_secrets:
        return Finding("Stripe", None, "not configured: customers can't top up by themselves")
    if missing:
        return Finding("Stripe", False, f"{' and '.join(missing)} is missing", "set it, or unset the others")
    key = settings.stripe_secret_key.get_secret_value() if settings.stripe_secret_key else ""
    return Finding("Stripe", True, f"configured, in {'live' if '_live_' in key else 'test'} mode")


def _with_database(environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        url = database_url(environ)
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            for check in _DATABASE_CHECKS:
                yield from check(connection)
    except StackError as error:
        yield Finding("database", None, str(error))
    except psycopg.OperationalError as error:
        yield Finding(
            "database",
            False,
            str(error).strip().splitlines()[0],
            "check DATABASE_URL; a paused Supabase project has to be resumed in its dashboard",
        )


def _server(connection: Database) -> Iterator[Finding]:
    version = connection.info.server_version
    name = ".".join(map(str, divmod(version, 10000)))
    if version < LEAST_VERSION:
        yield Finding("database", False, f"PostgreSQL {name} is too old", "upgrade it to 15 or later")
    else:
        yield Finding("database", True, f"PostgreSQL {name}")
    row = connection.execute("select clock_timestamp()").fetchone()
    assert row
    yield _skew("database's clock", row[0])


def _skew(subject: str, theirs: datetime) -> Finding:
    skew = (theirs - datetime.now(UTC)).total_seconds()
    if abs(skew) <= MOST_SKEW_SECONDS:
        return Finding(subject, True, "agrees with this machine's")
    return Finding(
        subject,
        False,
        f"{abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's",
        "synchronise the clocks (NTP): tokens, leases and webhook signatures depend on them",
    )


def _migrations(connection: Database) -> Iterator[Finding]:
    there = connection.execute("select to_regclass('supabase_migrations.schema_migrations')").fetchone()
    assert there
    recorded = set()
    if there[0] is not None:
        rows = connection.execute("select version from supabase_migrations.schema_migrations")
        recorded = {row[0] for row in rows}
    ours = {migration.version: migration.name for migration in migrations()}
    if missing := sorted(ours.keys() - recorded):
        names = ", ".join(ours[version] for version in missing)
        yield Finding(
            "schema", False, f"these migrations are not applied: {names}", "`sluice migrate` applies them"
        )
    elif unknown := sorted(recorded - ours.keys()):
        yield Finding(
            "schema",
            False,
            f"the database is newer than this checkout: it has {', '.join(unknown)}",
            "update the checkout",
        )
    else:
        yield Finding("schema", True, f"up to date ({len(ours)} migrations)")


def _roles(connection: Database) -> Iterator[Finding]:
    rows = connection.execute("select rolname from pg_roles where rolname = any (%s)", [list(ROLES)])
    if missing := sorted(set(ROLES) - {row[0] for row in rows}):
        yield Finding(
            "roles",
            False,
            f"{', '.join(missing)} missing: this is no Supabase project",
            "on a PostgreSQL of your own run infra/local/roles.sql",
        )
        return
    row = connection.execute(
        "select count(*) from pg_proc as p"
        " cross join unnest(array['anon', 'authenticated']) as r (name)"
        " where p.pronamespace = to_regnamespace('api') and has_function_privilege(r.name, p.oid, 'execute')"
    ).fetchone()
    assert row
    open_tables = connection.execute(
        "select count(*) from pg_class as c"
        " cross join unnest(array['anon', 'authenticated', 'service_role']) as r (name)"
        " where c.relnamespace = to_regnamespace('gateway') and c.relkind in ('r', 'p', 'v')"
        " and has_table_privilege(r.name, c.oid, 'select, insert, update, delete')"
    ).fetchone()
    assert open_tables
    if row[0] or open_tables[0]:
        yield Finding(
            "roles",
            False,
            f"{row[0]} functions and {open_tables[0]} tables are open to roles that nothing was granted to",
            "somebody has granted more by hand: `revoke all on … from anon, authenticated, service_role`",
        )
    else:
        yield Finding("roles", True, "anon and authenticated can do nothing in our schemas")


def _maintenance(connection: Database) -> Iterator[Finding]:
    if connection.execute("select to_regclass('gateway.requests')").fetchone() == (None,):
        return
    row = connection.execute(
        "select count(*) from gateway.requests"
        " where state = 'held' and lease_until < now() - make_interval(mins => %s)",
        [OVERDUE_MINUTES],
    ).fetchone()
    next_month = connection.execute(
        "select to_regclass('gateway.requests_'"
        " || to_char((now() at time zone 'UTC') + interval '1 month', 'YYYY_MM'))"
    ).fetchone()
    assert row
    assert next_month
    if row[0] or next_month[0] is None:
        what = f"{row[0]} holds are overdue" if row[0] else "next month has no partition"
        yield Finding(
            "maintenance",
            False,
            f"{what}: nobody does the maintenance",
            "look at the maintenance function's schedule and its log; `make dev` does it by itself",
        )
    else:
        yield Finding("maintenance", True, "no hold is overdue, next month has its partition")


def _events(connection: Database) -> Iterator[Finding]:
    if connection.execute("select to_regclass('gateway.topic_deliveries')").fetchone() == (None,):
        return
    row = connection.execute("select api.read_deliveries(1)").fetchone()
    assert row
    channels = {
        "webhook": (row[0]["webhook_set"], row[0]),
        "SNS topic": (row[0]["topic"]["topic_set"], row[0]["topic"]),
    }
    if not any(is_set for is_set, _ in channels.values()):
        yield Finding("alerts", None, "no webhook and no SNS topic is set: nobody is told of events")
        return
    for name, (is_set, told) in channels.items():
        if told["given_up"]:
            yield Finding(
                "alerts",
                False,
                f"{told['given_up']} events were given up that the {name} did not take",
                "GET /admin/monitor says what it answered; POST /admin/events/{id}/resend tries again"
                if name == "webhook"
                else "may the maintenance function publish to it? GET /admin/monitor says what it answered",
            )
        elif is_set:
            yield Finding("alerts", True, f"the {name} has taken all but {told['waiting']} that wait")


_DATABASE_CHECKS: tuple[Callable[[Database], Iterator[Finding]], ...] = (
    _server,
    _migrations,
    _roles,
    _maintenance,
    _events,
)


def _exposed_schemas(environ: Mapping[str, str]) -> Iterator[Finding]:
    key: str | None
    try:
        settings = Settings.from_environment(environ)
        rest_url, key = settings.rest_url, settings.supabase_key.get_secret_value()
    except SettingsError:
        state = None if environ.get("SUPABASE_URL") else local_state(environ)
        if state is None:
            return
        rest_url, key = f"http://{HOST}:{state.postgrest_port}", state.service_key
    headers = {"apikey": key}
    if key.count(".") == 2:  # noqa: PLR2004 - a JWT, and no sb_secret_ key
        headers["authorization"] = f"Bearer {key}"
    try:
        with httpx.Client(headers=headers, timeout=10) as client:
            health = client.post(f"{rest_url}/rpc/check_health", json={}, headers={"content-profile": "api"})
            tables = client.get(
                f"{rest_url}/settings", params={"limit": 0}, headers={"accept-profile": "gateway"}
            )
    except httpx.TransportError as error:
        yield Finding(
            "REST API",
            False,
            f"{rest_url} does not answer: {error}",
            "is the project running and the URL right?",
        )
        return
    if health.status_code in {401, 403}:
        yield Finding(
            "REST API",
            False,
            "SUPABASE_KEY is refused",
            "take an sb_secret_ key (or the service_role token) from the project's API settings",
        )
    elif not health.is_success:
        yield Finding(
            "exposed schemas",
            False,
            f"schema api can't be called ({health.status_code})",
            "expose it: `supabase config push`, or Settings → API → Exposed schemas: api",
        )
    else:
        yield Finding("REST API", True, "the key opens schema api")
    if tables.is_success:
        yield Finding(
            "exposed schemas",
            False,
            "schema gateway is exposed: the tables lie open to the key",
            "take it out of Settings → API → Exposed schemas; only api belongs there",
        )


def _with_gateway(environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        connection = Connection.from_environment(environ)
    except (OperatorError, StackError) as error:
        yield Finding("gateway", None, str(error))
        return
    with Api(connection) as api:
        try:
            yield from _health(api)
            yield from _services(api)
            yield from _ledger(api)
        except RefusedError as error:
            yield Finding("gateway", False, str(error), "is SLUICE_ADMIN_KEY an admin key of this gateway?")
        except OperatorError as error:
            yield Finding("gateway", False, str(error), "start it, or set SLUICE_URL to where it is")


def _health(api: Api) -> Iterator[Finding]:
    response = api.send("GET", "/health")
    told = response.json()
    if told["version"] == __version__:
        yield Finding("gateway", True, f"{api.url} runs version {__version__}")
    else:
        yield Finding(
            "gateway",
            False,
            f"{api.url} runs version {told['version']}, this checkout is {__version__}",
            "deploy this one, or check out that one",
        )
    if date := response.headers.get("date"):
        yield _skew("gateway's clock", parsedate_to_datetime(date))


def _services(api: Api) -> Iterator[Finding]:
    services = [service for service in api.rows("/admin/services") if service["active"]]
    if not services:
        yield Finding(
            "services",
            False,
            "no provider is configured",
            "POST /admin/services, as infra/docs/services-and-keys.md shows",
        )
    for service in services:
        told = api.post(f"/admin/services/{service['id']}/test", {})
        subject = f"service {service['name']}"
        if told["ok"]:
            yield Finding(subject, True, f"answers in {told['latency_ms']} ms")
        else:
            yield Finding(subject, False, str(told["problem"]), told["message"])


def _ledger(api: Api) -> Iterator[Finding]:
    told = api.get("/admin/ledger/check")
    if told["ok"]:
        yield Finding("books", True, f"{told['accounts']:,} accounts add up")
    else:
        customers = ", ".join(str(row["customer_id"]) for row in told["mismatches"][:10])
        yield Finding(
            "books",
            False,
            f"balances differ from their ledgers: customers {customers or 'none'}",
            "stop nothing, keep the database as it is, and look at gateway.ledger_entries of these",
        )
