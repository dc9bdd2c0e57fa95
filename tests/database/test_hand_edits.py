"""An operator who edits by hand in Studio can't break an invariant, and the audit log sees what was edited.

Tried as the superuser of the local stack and as an owner who is none, which Supabase's postgres is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.database.conftest import empty
from tests.database.engine import Engine, digest, usd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from infra.local.postgres import EmbeddedPostgres
    from tests.fixtures.database import Database

REFUSED = (psycopg.errors.RestrictViolation, psycopg.errors.InsufficientPrivilege)


OPERATORS = {"superuser": "new_database", "owner": "new_owned_database"}


@pytest.fixture(scope="module", params=OPERATORS)
def operated_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    make: Callable[[], AbstractContextManager[Database]] = request.getfixturevalue(OPERATORS[request.param])
    with make() as database:
        yield database


@pytest.fixture
def studio(operated_database: Database, postgres: EmbeddedPostgres) -> Iterator[Engine]:
    """The engine with one settled and one running request, on the connection of an operator."""
    empty(postgres.url(operated_database.name))
    with operated_database.connect() as connection:
        yield furnished(Engine(operated_database, connection))


@pytest.fixture(scope="module", params=OPERATORS)
def module_studio(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The same for a module: each of its tests is refused, so that none leaves a trace."""
    make: Callable[[], AbstractContextManager[Database]] = request.getfixturevalue(OPERATORS[request.param])
    with make() as database, database.connect() as connection:
        yield furnished(Engine(database, connection))


def furnished(engine: Engine) -> Engine:
    engine.model("echo")
    engine.service(["echo"])
    customer = engine.customer()
    engine.settle(engine.admitted(customer.key_hash, p_idempotency_key="k", p_body_hash=digest("b")))
    engine.admitted(customer.key_hash)
    return engine


@pytest.mark.parametrize(
    "statement",
    [
        "update gateway.accounts set balance_usd = balance_usd + 1000",
        "update gateway.accounts set held_usd = 0",
        "delete from gateway.accounts",
        "truncate gateway.accounts cascade",
        (
            "insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, actor)"
            " values (1, 'credit', 1, 1, 'me')"
        ),
        "update gateway.ledger_entries set amount_usd = 1",
        "delete from gateway.ledger_entries",
        "truncate gateway.ledger_entries",
        "update gateway.requests set charge_usd = 0",
        "delete from gateway.requests",
        "truncate gateway.requests",
        "update gateway.usage_rollups set requests = 0",
        "delete from gateway.usage_rollups",
        "update gateway.idempotency_keys set charged = false",
        "truncate gateway.idempotency_keys",
        "insert into gateway.audit_log (actor, action, entity, entity_id) values ('Ada', 'update', 'x', '1')",
        "update gateway.audit_log set actor = 'nobody'",
        "delete from gateway.audit_log",
        "truncate gateway.audit_log",
        "delete from gateway.customers",
        "delete from gateway.api_keys",
        "delete from gateway.services",
        "delete from gateway.models",
        "delete from gateway.offers",
        "delete from gateway.settings",
        "delete from gateway.prices",
        "insert into gateway.usage_periods select * from gateway.usage_periods",
        "update gateway.usage_periods set charge_usd = 0",
        "delete from gateway.usage_periods",
        "update gateway.key_days set requests = 0",
        "update gateway.usage_closing set closed_until = now()",
        "delete from gateway.usage_closing",
        "delete from gateway.ledger_checkpoints",
        "update gateway.ledger_checkpoints set balance_usd = 0",
        "truncate gateway.ledger_months",
        "insert into gateway.retired_secrets values (sha256('x'), 1, now() + interval '1 day')",
        "update gateway.retired_secrets set expires_at = now() + interval '1 year'",
        "update gateway.events set kind = 'x'",
        "truncate gateway.events cascade",
        "update gateway.limit_crossings set used = 0",
        "truncate gateway.limit_crossings",
        "insert into gateway.payments (payment_intent, livemode) values ('pi_9', true)",
        "update gateway.payments set credited_usd = 0",
        "delete from gateway.payment_events",
        "delete from gateway.payment_refunds",
        "update gateway.payment_disputes set returned_at = now()",
        "update gateway.statements set document = '{}'",
        "delete from gateway.statements",
        "truncate gateway.customers cascade",
        "truncate gateway.prices",
        "truncate gateway.limits",
        "truncate gateway.routes",
    ],
)
def test_books_and_what_they_refer_to_are_refused_to_a_hand(module_studio: Engine, statement: str) -> None:
    before = module_studio.dump()
    with pytest.raises(REFUSED):
        module_studio.run(statement)
    assert module_studio.dump() == before


def test_partitions_are_no_way_round(module_studio: Engine) -> None:
    partitions = module_studio.query(
        "select inhrelid::regclass::text from pg_inherits where inhparent = 'gateway.requests'::regclass"
    )
    assert len(partitions) == 5
    for (partition,) in partitions:
        for statement in (
            f"update {partition} set charge_usd = 0",
            f"delete from {partition}",
            f"truncate {partition}",
        ):
            with pytest.raises(REFUSED):
                module_studio.run(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "update gateway.settings set commission_percent = -1",
        "update gateway.settings set billing_mode = 'free'",
        "update gateway.settings set credit_value_usd = 0",
        "update gateway.settings set credit_value_usd = 'NaN'",
        "update gateway.settings set commission_percent = 'NaN'",
        "update gateway.settings set flat_usd_per_1k_tokens = 'NaN'",
        "update gateway.settings set expired_hold_policy = null",
        "update gateway.settings set auth_sign_up = 'everybody'",
        "update gateway.settings set webhook_url = 'ftp://example.org'",
        "update gateway.settings set webhook_url = 'https://user:secret@example.org/hook'",
        "update gateway.settings set webhook_url = 'https://example.org/hook', webhook_secret = null",
        "update gateway.settings set webhook_secret = 'whsec_plain'",
        "update gateway.settings set log_retention_months = 1",
        "update gateway.settings set usage_detail_days = 7",
        "insert into gateway.settings default values",
        "insert into gateway.settings (singleton) values (false)",
        "update gateway.customers set email = 'none'",
        "update gateway.customers set time_zone = 'Moon'",
        "update gateway.customers set name = ''",
        "update gateway.api_keys set scopes = '{root}'",
        "update gateway.api_keys set scopes = '{}'",
        "update gateway.api_keys set scopes = '{chat,null}'",
        "update gateway.api_keys set allowed_models = '{null}'",
        "update gateway.api_keys set allowed_services = '{1,null}'",
        "update gateway.api_keys set customer_id = null",
        "update gateway.api_keys set revoked_at = now()",
        "update gateway.services set provider_key = 'sk-plain'",
        "update gateway.services set base_url = 'ftp://example.org'",
        "update gateway.services set base_url = 'https://user:secret@example.org/v1'",
        "update gateway.models set name = ''",
        "update gateway.models set context_length = 0",
        "update gateway.routes set weight = 0",
        "update gateway.routes set weight = 'NaN'",
        "update gateway.prices set input = -1",
        "update gateway.prices set input = 'NaN'",
        "update gateway.prices set per_request = 'NaN'",
        "update gateway.prices set output = null",
        "insert into gateway.prices (offer_id, input, output) values (1, 'NaN', 1)",
        "insert into gateway.prices (offer_id, input) values (1, 1)",
        "insert into gateway.limits (per, requests) values ('day', 1)",
        "insert into gateway.limits (customer_id, key_id, per, requests) values (1, 1, 'day', 1)",
        "insert into gateway.limits (customer_id, model_id, per, requests) values (1, 1, 'day', 1)",
        "insert into gateway.limits (customer_id, per, requests) values (1, 'year', 1)",
        "insert into gateway.limits (customer_id, per, requests) values (1, 'day', -1)",
        "insert into gateway.limits (customer_id, per, spend_usd) values (1, 'day', 'NaN')",
    ],
)
def test_values_that_make_no_sense_are_refused(module_studio: Engine, statement: str) -> None:
    with pytest.raises(psycopg.errors.IntegrityError):
        module_studio.run(statement)


def test_a_limit_is_there_once(studio: Engine) -> None:
    insert = "insert into gateway.limits (customer_id, per, requests) values (1, 'day', 1)"
    studio.run(insert)
    with pytest.raises(psycopg.errors.UniqueViolation):
        studio.run(insert)


def test_a_price_edit_makes_a_new_version(studio: Engine) -> None:
    running = studio.value("select id from gateway.requests where state = 'held'")
    first = studio.query("select id, input, effective_from from gateway.prices")[0]
    studio.run("update gateway.prices set input = 20, output = 80 where id = %s", first[0])
    rows = studio.query("select id, input, effective_from from gateway.prices order by id")
    assert rows[0] == first
    assert (len(rows), rows[1][1]) == (2, 20)
    assert rows[1][2] > first[2]
    admitted_at = studio.value("select admitted_at::text from gateway.requests where id = %s", running)
    told = studio.settle({"request_id": running, "admitted_at": admitted_at, "candidates": [{"route_id": 1}]})
    assert told["charge_usd"] == "0.00063"


def test_a_price_edit_never_reaches_into_the_past(studio: Engine) -> None:
    studio.run("update gateway.prices set input = 20, effective_from = '2020-01-01'")
    rows = studio.query("select input, effective_from < now() - interval '1 minute' from gateway.prices")
    assert rows == [(usd(2), False), (usd(20), False)]
    # nor does that of a price that is yet to come
    studio.run(
        "insert into gateway.prices (offer_id, effective_from, input, output) values (1, now() +"
        " interval '1 day', 5, 5)"
    )
    studio.run("update gateway.prices set effective_from = '2020-01-01' where input = 5")
    assert studio.value(
        "select effective_from > now() - interval '1 minute' from gateway.prices where input = 5"
    )


def test_a_price_to_come_can_be_changed_and_taken_back(studio: Engine) -> None:
    studio.run(
        "insert into gateway.prices (offer_id, effective_from, input, output) values (1, now() +"
        " interval '1 day', 5, 5)"
    )
    studio.run("update gateway.prices set input = 6 where input = 5")
    assert studio.value("select count(*) from gateway.prices") == 2
    assert studio.run("delete from gateway.prices where input = 6") == 1


def test_a_price_stays_with_its_offer(studio: Engine) -> None:
    studio.model("other")
    with pytest.raises(psycopg.errors.RestrictViolation):
        studio.run("update gateway.prices set offer_id = 2 where offer_id = 1")


def test_a_customer_added_by_hand_has_an_account(studio: Engine) -> None:
    customer_id = studio.value(
        "insert into gateway.customers (name, username) values ('Hand', 'hand') returning id"
    )
    assert studio.account(customer_id) == (0, 0)
    assert studio.call("add_credits", p_customer_id=customer_id, p_usd=usd(1))["balance_after_usd"] == "1"


@pytest.mark.parametrize(
    ("statement", "entity", "action", "before", "after"),
    [
        ("update gateway.settings set commission_percent = 7", "settings", "update",
         {"commission_percent": 5}, {"commission_percent": 7}),
        ("update gateway.customers set active = false", "customers", "update",
         {"active": True}, {"active": False}),
        ("update gateway.api_keys set name = 'x'", "api_keys", "update", {"name": "key"}, {"name": "x"}),
        ("update gateway.api_keys set secret_hash = sha256('x')", "api_keys", "update",
         {"secret_hash": "(not shown)"}, {"secret_hash": "(not shown)"}),
        ("update gateway.settings set webhook_secret = 'v1.secret'", "settings", "update",
         {"webhook_secret": None}, {"webhook_secret": "(not shown)"}),
        ("update gateway.settings set log_retention_months = 24", "settings", "update",
         {"log_retention_months": None}, {"log_retention_months": 24}),
        ("update gateway.customers set time_zone = 'Asia/Kolkata'", "customers", "update",
         {"time_zone": "UTC"}, {"time_zone": "Asia/Kolkata"}),
        ("update gateway.services set provider_key = 'v1.secret'", "services", "update",
         {"provider_key": None}, {"provider_key": "(not shown)"}),
        ("update gateway.models set context_length = 7", "models", "update",
         {"context_length": 128_000}, {"context_length": 7}),
        ("update gateway.routes set weight = 2", "routes", "update", {"weight": 1}, {"weight": 2}),
        ("update gateway.offers set upstream_model = 'x'", "offers", "update",
         {"upstream_model": "echo"}, {"upstream_model": "x"}),
    ],
)  # fmt: skip
def test_an_edit_by_hand_is_audited(  # noqa: PLR0917 - a row of the table
    studio: Engine, statement: str, entity: str, action: str, before: Any, after: Any
) -> None:
    who = studio.value("select session_user::text")
    count = studio.value("select count(*) from gateway.audit_log")
    assert studio.run(statement) == 1
    rows = studio.query("select actor, entity, action, before, after from gateway.audit_log order by id")
    assert len(rows) == count + 1
    assert rows[-1] == (who, entity, action, before, after)


def test_edits_of_limits_and_prices_are_audited(studio: Engine) -> None:
    studio.run("insert into gateway.limits (customer_id, per, requests) values (1, 'day', 5)")
    studio.run("update gateway.limits set requests = 6 where customer_id = 1")
    studio.run("delete from gateway.limits where customer_id = 1")
    studio.run("update gateway.prices set input = 20")
    rows = studio.query(
        "select entity, action, before ->> 'requests', after ->> 'requests', after ->> 'input'"
        " from gateway.audit_log order by id desc limit 4"
    )
    assert rows[::-1] == [
        ("limits", "insert", None, "5", None),
        ("limits", "update", "5", "6", None),
        ("limits", "delete", "6", None, None),
        ("prices", "insert", None, None, "20.0000000000"),
    ]


def test_a_secret_that_a_hand_ends_is_audited_and_one_that_is_forgotten_is_not(studio: Engine) -> None:
    def rotate(name: str, grace_seconds: int) -> None:
        told = studio.call(
            "rotate_key",
            p_key_id=1,
            p_customer_id=None,
            p_prefix="sk_again",
            p_secret_hash=digest(name),
            p_grace_seconds=grace_seconds,
        )
        assert "error" not in told

    def audited() -> list[tuple[Any, ...]]:
        return studio.query(
            "select entity_id, action, before ->> 'secret_hash', before ? 'expires_at'"
            " from gateway.audit_log where entity = 'retired_secrets'"
        )

    for name in ("first", "second", "third"):
        rotate(name, 3600)
    oldest = "(select secret_hash from gateway.retired_secrets order by expires_at limit 1)"
    assert studio.run(f"delete from gateway.retired_secrets where secret_hash = {oldest}") == 1
    assert audited() == [("1", "delete", "(not shown)", True)]
    # its time is over
    studio.run("set gateway.engine = 'on'")
    studio.run(f"update gateway.retired_secrets set expires_at = now() where secret_hash = {oldest}")
    studio.run("set gateway.engine = 'off'")
    assert studio.call("forget_retired_secrets") == 1
    # and a rotation without a grace ends all the others: the key's own row says so
    rotate("fourth", 0)
    assert studio.value("select count(*) from gateway.retired_secrets") == 0
    assert len(audited()) == 1


# What a hand may do without a trace, and why.
OPEN = {
    # counters: an operator may set a window back, and a settlement bears it
    "limit_counters": {"insert", "update", "delete", "truncate"},
    "turned_windows": {"insert", "update", "delete", "truncate"},
    # no money hangs on them
    "refusal_rollups": {"insert", "update", "delete", "truncate"},
    "provider_costs": {"insert", "update", "delete", "truncate"},
    # an operator may take a service back at once; the next calls say how it is
    "service_health": {"insert", "update", "delete", "truncate"},
    # an event can be sent again, and what is old forgotten
    "event_deliveries": {"insert", "update", "delete", "truncate"},
    "topic_deliveries": {"insert", "update", "delete", "truncate"},
    "events": {"insert", "delete"},
    "limit_crossings": {"insert", "delete"},
    "idempotency_keys": {"delete"},
}
EVENTS = {"insert": 4, "delete": 8, "update": 16, "truncate": 32}
REFUSING = {
    "refuse_hand_edit",
    "refuse_change",
    "refuse_delete",
    "refuse_price_delete",
    "guard_audit_log",
    "guard_ledger",
}


def test_every_table_refuses_a_hand_or_audits_it(module_studio: Engine) -> None:
    triggers = module_studio.query(
        "select c.relname, p.proname, t.tgtype from pg_class as c"
        " left join pg_trigger as t on t.tgrelid = c.oid and not t.tgisinternal"
        " left join pg_proc as p on p.oid = t.tgfoid"
        " where c.relnamespace = 'gateway'::regnamespace and c.relkind in ('r', 'p')"
        " and not c.relispartition"
    )
    tables = {table for table, *_ in triggers}
    assert len(tables) > 20
    covered = {
        (table, event)
        for table, function, kind in triggers
        for event, bit in EVENTS.items()
        if kind is not None and kind & bit and function in REFUSING | {"record_audit"}
    }
    found = {table: {event for event in EVENTS if (table, event) not in covered} for table in sorted(tables)}
    assert {table: events for table, events in found.items() if events} == OPEN


def test_a_call_says_who_made_it(studio: Engine) -> None:
    studio.call("change_settings", p_changes={"commission_percent": 6}, p_actor="key 7")
    assert studio.value("select actor from gateway.audit_log order by id desc limit 1") == "key 7"
    studio.run("update gateway.settings set commission_percent = 8")
    assert studio.value("select actor from gateway.audit_log order by id desc limit 1") != "key 7"


def test_no_secret_is_in_the_audit_log(studio: Engine) -> None:
    secret_hash = digest("a secret")
    studio.key(1, p_secret_hash=secret_hash)
    service = studio.call("reserve_service_id")
    studio.call(
        "create_service", p_id=service, p_name="s", p_provider="openai", p_provider_key="v1.sealed-secret",
        p_provider_key_last4="cret",
    )  # fmt: skip
    studio.call("update_service", p_id=service, p_changes={"provider_key": "v1.sealed-anew"})
    studio.call("delete_service", p_id=service)
    text = studio.value("select string_agg(a::text, '') from gateway.audit_log as a")
    assert "sealed" not in text
    assert secret_hash not in text
    assert "(not shown)" in text
