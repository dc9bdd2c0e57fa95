"""What the operator sees in Studio agrees with the log, to the last decimal, and can't be edited there."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.database.conftest import empty
from tests.database.engine import Customer, Engine, JSONObject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.local.postgres import EmbeddedPostgres
    from tests.database.conftest import NewOwnedDatabase
    from tests.fixtures.database import Database

# Summaries: they must not read the log, whose size is no bound.
SUMMARIES = (
    "customer_spend",
    "model_margin",
    "provider_margin",
    "limit_usage",
    "key_overview",
    "price_list",
    "price_tiers",
)
ZONES = ("UTC", "Asia/Kolkata", "America/New_York", "Pacific/Kiritimati")


@pytest.fixture(scope="module")
def owned_database(new_owned_database: NewOwnedDatabase) -> Iterator[Database]:
    with new_owned_database() as made:
        yield made


@pytest.fixture
def studio(owned_database: Database, postgres: EmbeddedPostgres) -> Iterator[Engine]:
    """As Studio is: the owner, who is no superuser."""
    empty(postgres.url(owned_database.name))
    with owned_database.connect() as connection:
        made = Engine(owned_database, connection)
        made.model("echo")
        made.model("large", {"input": "5", "cached_input": "1", "output": "25"})
        made.service(["echo", "large"])
        yield made


@pytest.fixture
def superuser(studio: Engine, postgres: EmbeddedPostgres) -> Iterator[Engine]:
    """The same database past its guards: to move what was done into the past."""
    with psycopg.connect(postgres.url(studio.database.name), autocommit=True) as connection:
        yield Engine(studio.database, connection)


def rows(engine: Engine, view: str, where: str = "true") -> list[dict[str, Any]]:
    return [row[0] for row in engine.query(f"select to_jsonb(v) from {view} as v where {where}")]


def row(engine: Engine, view: str, where: str = "true") -> dict[str, Any]:
    found = rows(engine, view, where)
    assert len(found) == 1, found
    return found[0]


def use(engine: Engine, customer: Customer, model: str = "echo", **changes: Any) -> JSONObject:
    """Settle one request."""
    admission = engine.admitted(customer.key_hash, p_models=[model])
    told = engine.settle(admission, **changes)
    assert told["status"] == "settled"
    return admission


def fail(engine: Engine, customer: Customer, fault: str = "transient") -> JSONObject:
    """Have the one route of a request fail."""
    admission = engine.admitted(customer.key_hash)
    candidate = admission["candidates"][0]
    failed = {
        "route_id": candidate["route_id"],
        "service_id": candidate["service_id"],
        "status": 503,
        "fault": fault,
    }
    engine.fail(admission, failed_routes=[failed], error_code="provider_unavailable")
    return admission


def into_the_past(superuser: Engine, days: int) -> None:
    """Move everything that was done so far, and what has been summed of it, back by whole days."""
    with superuser.by_engine():
        for statement in (
            "update gateway.requests set admitted_at = admitted_at - {0}, settled_at = settled_at - {0}",
            "update gateway.ledger_entries set created_at = created_at - {0}",
            "update gateway.usage_rollups set bucket = bucket - {0}, last_request_at = last_request_at - {0}",
            "update gateway.usage_closing set closed_until = closed_until - {0}",
        ):
            superuser.run(statement.format(f"interval '{days} days'"))


def close(engine: Engine) -> None:
    """Fold whatever is due into the sums by day and month, and leave the newest quarters of an hour open."""
    while engine.call("close_usage")["behind"]:
        pass


def spent_by_the_log(engine: Engine, customer_id: int) -> list[tuple[Any, ...]]:
    """Sum the log as customer_spend should: today, this month and ever, on the customer's calendar."""
    return engine.query(
        "select coalesce(sum(r.charge_usd) filter (where d.day = d.today), 0),"
        " coalesce(sum(r.charge_usd) filter (where date_trunc('month', d.day) = date_trunc('month',"
        " d.today)), 0), coalesce(sum(r.charge_usd), 0),"
        " count(*) filter (where d.day = d.today),"
        " count(*) filter (where date_trunc('month', d.day) = date_trunc('month', d.today)), count(*)"
        " from gateway.requests as r join gateway.customers as c on c.id = r.customer_id"
        " cross join lateral (select date_trunc('day', r.admitted_at at time zone c.time_zone) as day,"
        " date_trunc('day', now() at time zone c.time_zone) as today) as d"
        " where r.customer_id = %s and r.state = 'settled'",
        customer_id,
    )


def shown_spend(engine: Engine) -> dict[int, tuple[Any, ...]]:
    found = engine.query(
        "select customer_id, spend_today_usd, spend_this_month_usd, spend_usd, requests_today,"
        " requests_this_month, requests from gateway.customer_spend"
    )
    return {each[0]: each[1:] for each in found}


def test_spending_agrees_with_the_log_before_and_after_it_is_closed(
    studio: Engine, superuser: Engine
) -> None:
    customers = []
    for zone in ZONES:
        customer = studio.customer("10")
        studio.run("update gateway.customers set time_zone = %s where id = %s", zone, customer.id)
        customers.append(customer)

    for days in (40, 1):
        for customer in customers:
            use(studio, customer)
            use(studio, customer, "large", usage={"input": 10, "cached_input": 7, "output": 3})
        into_the_past(superuser, days)
    close(studio)
    assert studio.value("select count(*) from gateway.usage_periods") > 0
    for customer in customers:
        use(studio, customer)
        fail(studio, customer)

    for closed in (False, True):
        if closed:  # what is of today as well
            with superuser.by_engine():
                superuser.run(
                    "update gateway.usage_rollups set bucket = bucket - interval '30 minutes'"
                    " where bucket >= (select closed_until from gateway.usage_closing) - interval '1 hour'"
                )
                superuser.run(
                    "update gateway.requests set admitted_at = admitted_at - interval '30 minutes'"
                    " where admitted_at > now() - interval '20 minutes'"
                )
                superuser.run(
                    "update gateway.usage_closing set closed_until = closed_until - interval '1 hour'"
                )
            close(studio)
            left = "select count(*) from gateway.usage_rollups where bucket >= (select closed_until from "
            assert studio.value(left + "gateway.usage_closing)") == 0
        shown = shown_spend(studio)
        for customer in customers:
            assert shown[customer.id] == spent_by_the_log(studio, customer.id)[0]
            # two requests each, 41 and 1 days ago, one today and one that failed
            assert shown[customer.id][-1] == 6
            assert shown[customer.id][2] == 3 * Decimal("0.00063") + 2 * Decimal("0.0001386")


def test_a_customer_that_did_nothing_is_there_with_zeros(studio: Engine) -> None:
    customer = studio.customer(None)
    found = row(studio, "gateway.customer_spend", f"customer_id = {customer.id}")
    assert (found["balance_usd"], found["spend_usd"], found["requests"]) == (0, 0, 0)
    assert found["last_request_at"] is None


def test_balance_held_and_free_are_the_accounts(studio: Engine) -> None:
    customer = studio.customer("10")
    studio.admitted(customer.key_hash)
    found = row(studio, "gateway.customer_spend")
    assert (found["balance_usd"], found["held_usd"], found["free_usd"]) == (10, 0.0063, 9.9937)
    assert found["credits"] == 500_000


def test_margin_by_model_and_by_provider_is_what_was_collected_less_the_cost(studio: Engine) -> None:
    customer = studio.customer("10")
    for _ in range(3):
        use(studio, customer)
    use(studio, customer, "large", usage={"input": 1000, "output": 400})
    fail(studio, customer)
    echo, large = sorted(rows(studio, "gateway.model_margin"), key=lambda each: str(each["model"]))
    # 100 at 2 and 50 at 8 USD per million, three times, and 5 % on top
    assert (echo["model"], echo["requests"], echo["errors"], echo["tokens"]) == ("echo", 4, 1, 450)
    assert (echo["input_tokens"], echo["output_tokens"]) == (300, 150)
    assert (echo["cost_usd"], echo["charge_usd"], echo["margin_usd"]) == (0.0018, 0.00189, 0.00009)
    assert echo["margin_percent"] == 5
    assert (large["cost_usd"], large["charge_usd"]) == (0.015, 0.01575)
    provider = row(studio, "gateway.provider_margin")
    assert (provider["requests"], provider["cost_usd"], provider["margin_usd"]) == (4, 0.0168, 0.00084)


def test_a_loss_shows_as_a_negative_margin(studio: Engine) -> None:
    customer = studio.customer("0.01")
    # the provider bills beyond the bound: the balance can't give it
    use(studio, customer, usage={"input": 1000, "output": 50_000})
    found = row(studio, "gateway.model_margin")
    assert found["uncollected_usd"] == pytest.approx(0.4121)
    assert found["margin_usd"] == pytest.approx(0.01 - 0.402)


def test_errors_are_counted_by_service_and_say_why(studio: Engine) -> None:
    customer = studio.customer("10")
    use(studio, customer)
    for fault in ("transient", "transient", "operator", "client"):
        fail(studio, customer, fault)
    found = row(studio, "gateway.provider_errors")
    # what the client got wrong is told, and held against nobody
    assert found["faults_7_days"] == {"client 503": 1, "operator 503": 1, "transient 503": 2}
    assert (found["attempts_today"], found["failures_today"], found["failed_percent_today"]) == (4, 3, 75)
    assert found["last_failure_at"] is not None


def test_a_limit_is_near_before_it_is_full(studio: Engine) -> None:
    studio.into_a_fresh_minute()
    customer = studio.customer("10")
    studio.call(
        "set_limits",
        p_customer_id=customer.id,
        p_rate_limits={"requests_per_day": 10},
        p_warn={"requests_per_day": 5},
    )
    states = []
    for _ in range(10):
        use(studio, customer)
        found = row(studio, "gateway.limit_usage", "subject = 'customer'")
        states.append((found["used"], found["percent"], found["state"]))
    assert states[0] == (1, 10, "fine")
    assert states[4] == (5, 50, "over the soft mark")
    assert states[9] == (10, 100, "full")
    near = row(studio, "gateway.near_limits", "subject = 'customer'")
    assert (near["soft"], near["hard"], near["metric"], near["per"]) == (5, 10, "requests", "day")
    assert near["name"] == near["customer"] == "Customer 1"
    assert studio.refused(customer.key_hash)["refusal"] == "rate_limit_exceeded"


def test_limits_of_a_key_show_as_admission_applies_them(studio: Engine) -> None:
    studio.into_a_fresh_minute()
    customer = studio.customer("10")
    use(studio, customer)
    # the system's default, for each model by itself
    found = row(studio, "gateway.limit_usage", "subject = 'key'")
    assert (found["model"], found["metric"], found["hard"], found["used"]) == ("echo", "requests", 60, 1)
    # gives way to what the key's own row says
    studio.run("insert into gateway.limits (key_id, per, requests) values (%s, 'minute', 7)", customer.key_id)
    use(studio, customer)
    found = row(studio, "gateway.limit_usage", "subject = 'key'")
    assert (found["model"], found["hard"]) == (None, 7)
    # and a model's own row stands beside it
    studio.run(
        "insert into gateway.limits (key_id, model_id, per, requests) values (%s, 1, 'minute', 5)",
        customer.key_id,
    )
    hard = {each["model"]: each["hard"] for each in rows(studio, "gateway.limit_usage", "subject = 'key'")}
    assert hard == {None: 7, "echo": 5}


def test_a_window_that_is_over_shows_no_more(studio: Engine, superuser: Engine) -> None:
    customer = studio.customer("10")
    use(studio, customer)
    with superuser.by_engine():
        superuser.run("update gateway.limit_counters set window_start = window_start - interval '1 hour'")
    assert rows(studio, "gateway.limit_usage") == []
    assert rows(studio, "legacy.rate_limit_usage") == []


def test_holds_show_and_orphans_are_told(studio: Engine, superuser: Engine) -> None:
    customer = studio.customer("10")
    running, orphan = studio.admitted(customer.key_hash), studio.admitted(customer.key_hash)
    use(studio, customer)
    superuser.lapse(orphan)
    found = rows(studio, "gateway.holds_outstanding")
    assert [(each["request_id"], each["orphaned"]) for each in found] == [
        (orphan["request_id"], True),
        (running["request_id"], False),
    ]
    assert {each["hold_usd"] for each in found} == {0.0063}


def test_the_log_reads_in_words_newest_first(studio: Engine) -> None:
    customer = studio.customer("10")
    use(studio, customer)
    fail(studio, customer)
    studio.admitted(customer.key_hash)
    found = rows(studio, "gateway.request_log")
    assert [each["status"] for each in found] == ["running", "failed", "succeeded"]
    done = found[2]
    assert (done["customer"], done["key_prefix"], done["model"]) == ("Customer 1", "sk_test", "echo")
    assert (done["input_tokens"], done["output_tokens"], done["charge_usd"]) == (100, 50, 0.00063)
    assert found[1]["failed_routes"] == 1


def test_the_log_is_read_from_its_newest_end(studio: Engine) -> None:
    # an empty log would be sorted: whether it has to be
    studio.run("set enable_sort = off")
    plan = json.dumps(studio.value("explain (format json) select * from gateway.request_log limit 50"))
    assert "Index Scan" in plan
    assert '"Node Type": "Sort"' not in plan


def test_the_books_read_in_words(studio: Engine) -> None:
    customer = studio.customer("10")
    use(studio, customer)
    charge, credit = rows(studio, "gateway.ledger_readable")
    assert (charge["kind"], charge["amount_usd"], charge["customer"]) == ("charge", -0.00063, "Customer 1")
    assert (credit["kind"], credit["balance_after_usd"]) == ("credit", 10)


def test_long_prompts_have_a_line_for_each_tier_in_force(studio: Engine) -> None:
    tiers = [
        {"above_input_tokens": 1000, "input": "4", "output": "9"},
        {"above_input_tokens": 2000, "input": "5", "output": "20"},
    ]
    studio.model("tiered", {"input": "2", "output": "8", "tiers": tiers})
    studio.run("update gateway.prices set tiers = jsonb_set(tiers, '{0,input}', '3') where tiers is not null")
    found = rows(studio, "gateway.price_tiers", "model = 'tiered'")
    assert [
        (line["above_input_tokens"], line["input_per_million_usd"], line["output_per_million_usd"])
        for line in found
    ] == [(1000, 3, 9), (2000, 5, 20)]
    assert found[0]["cached_input_per_million_usd"] is None
    # what a token costs at most, whatever the length
    assert row(studio, "legacy.pricing", "model = 'tiered'")["price_per_token"] == 0.00002
    assert rows(studio, "gateway.price_tiers", "model = 'echo'") == []


def test_the_price_list_has_the_price_in_force_and_tells_of_the_next(studio: Engine) -> None:
    studio.run("update gateway.prices set input = 4 where offer_id = 1")
    studio.run(
        "insert into gateway.prices (offer_id, effective_from, input, output)"
        " values (1, now() + interval '1 day', 9, 9)"
    )
    studio.run("insert into gateway.prices (offer_id, service_id, input, output) values (1, 1, 3, 7)")
    general, own = rows(studio, "gateway.price_list", "model = 'echo'")
    if general["service"]:
        general, own = own, general
    assert (general["input_per_million_usd"], general["output_per_million_usd"]) == (4, 8)
    assert (general["input_per_token_usd"], general["output_per_token_usd"]) == (0.000004, 0.000008)
    assert general["next_price_from"] is not None
    assert (own["service"], own["input_per_million_usd"]) == ("service 1", 3)
    priced = row(studio, "legacy.pricing", "model = 'echo'")
    assert (priced["provider"], priced["price_per_token"]) == ("openai-compatible", 0.000008)


def test_keys_show_whether_they_work_and_what_they_may(studio: Engine) -> None:
    customer = studio.customer("10")
    use(studio, customer)
    studio.run(
        "update gateway.api_keys set allowed_models = array[2, 1], expires_at = now() + interval '1 day'"
    )
    studio.run("insert into gateway.limits (key_id, per, requests, spend_usd) values (1, 'day', 9, 2.50)")
    found = row(studio, "gateway.key_overview")
    assert (found["state"], found["allowed_models"], found["allowed_services"]) == (
        "works",
        ["echo", "large"],
        None,
    )
    assert (found["limits"], found["requests_this_month"], found["tokens_this_month"]) == (
        "9 requests, 2.5 USD a day",
        1,
        150,
    )
    assert found["last_used_at"] is not None
    for edit, state in (
        ("update gateway.customers set active = false", "customer suspended"),
        ("update gateway.api_keys set expires_at = now()", "expired"),
        ("update gateway.api_keys set active = false", "switched off"),
        ("update gateway.api_keys set revoked_at = now()", "revoked"),
    ):
        studio.run(edit)
        assert row(studio, "gateway.key_overview")["state"] == state


def test_the_names_of_other_gateways_show_the_same_things(studio: Engine) -> None:
    customer = studio.customer("10")
    request = use(studio, customer)
    studio.run("insert into gateway.limits (key_id, per, tokens) values (1, 'day', 100000)")
    use(studio, customer)
    user = row(studio, "legacy.users")
    assert (user["id"], user["api_key"], user["credits"]) == (customer.id, "sk_test…", 499937)
    used = row(studio, "legacy.usage_records", f"id = '{request['request_id']}'")
    assert (used["user_id"], used["model"], used["tokens_used"], used["cost"]) == (
        customer.id,
        "echo",
        150,
        0.00063,
    )
    limits = row(studio, "legacy.rate_limits")
    assert (limits["requests_per_minute"], limits["tokens_per_day"], limits["tokens_per_hour"]) == (
        60,
        100_000,
        None,
    )
    counted = row(studio, "legacy.rate_limit_usage", "window_type = 'day'")
    assert (counted["user_id"], counted["requests_count"], counted["tokens_count"]) == (customer.id, 1, 150)
    assert row(studio, 'legacy."Users"')["User_name"] == customer.username
    key = row(studio, 'legacy."API_Keys"')
    assert (key["API_key"], key["User_name"]) == ("sk_test…", customer.username)
    usage = row(studio, "legacy.api_usage", f"id = '{request['request_id']}'")
    assert (usage["api_key"], usage["provider"], usage["model"]) == ("sk_test…", "openai-compatible", "echo")
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (100, 50, 150)
    # the provider's part; the commission comes on top
    assert usage["price"] == 0.0006


def test_every_setting_shows_with_what_it_does_and_no_secret(studio: Engine) -> None:
    studio.run("update gateway.settings set webhook_secret = 'v1.sealed', commission_percent = 7.5")
    found = {each["key"]: each for each in rows(studio, "legacy.system_settings")}
    columns = {
        name
        for (name,) in studio.query(
            "select attname from pg_attribute where attrelid = 'gateway.settings'::regclass and attnum > 0"
        )
    }
    assert set(found) == columns - {"singleton"}
    assert found["commission_percent"]["value"] == "7.500000"
    assert found["webhook_secret"]["value"] == "(not shown)"
    assert all(each["description"] for each in found.values())


def test_no_view_shows_a_secret(studio: Engine) -> None:
    customer = studio.customer("10")
    use(studio, customer)
    studio.run("update gateway.services set provider_key = 'v1.sealed-provider-key'")
    studio.run("update gateway.settings set webhook_secret = 'v1.sealed-webhook-secret'")
    for view in views(studio):
        shown = studio.value(f"select coalesce(string_agg(v::text, ' '), '') from {view} as v")
        assert "sealed" not in shown, view
        assert customer.key_hash not in shown, view


def views(engine: Engine) -> list[str]:
    found = engine.query(
        "select oid::regclass::text from pg_class where relkind in ('v', 'm')"
        " and relnamespace in ('gateway'::regnamespace, 'legacy'::regnamespace) order by 1"
    )
    assert len(found) > 15
    return [name for (name,) in found]


def test_no_view_can_be_edited(studio: Engine) -> None:
    customer = studio.customer("10")
    studio.call("set_limits", p_customer_id=customer.id, p_rate_limits={"requests_per_day": 1})
    use(studio, customer)
    studio.model(
        "tiered",
        {"input": "2", "output": "8", "tiers": [{"above_input_tokens": 9, "input": "4", "output": "9"}]},
    )
    studio.run("insert into gateway.limits (key_id, per, requests) values (1, 'day', 9)")
    other = studio.customer("10")
    fail(studio, other)
    studio.admitted(other.key_hash)
    studio.run(
        "insert into gateway.provider_costs (day, service_id, requests, cost_usd, provider_cost_usd)"
        " values ('2026-11-20', 1, 1, 0, 0)"
    )
    for view in views(studio):
        column = studio.value(
            "select quote_ident(attname) from pg_attribute where attrelid = %s::regclass and attnum = 1", view
        )
        for statement in (
            f"insert into {view} ({column}) values (null)",
            f"update {view} set {column} = null",
            f"delete from {view}",
        ):
            with pytest.raises(psycopg.errors.RestrictViolation, match="is a view") as refusal:
                studio.run(statement)
            assert refusal.value.diag.message_hint, statement


def test_views_have_the_rights_of_whoever_asks(studio: Engine) -> None:
    assert [
        each
        for each in studio.query(
            "select oid::regclass::text, reloptions from pg_class where relkind in ('v', 'm')"
            " and relnamespace in ('gateway'::regnamespace, 'legacy'::regnamespace)"
        )
        if each[1] != ["security_invoker=true"]
    ] == []


@pytest.mark.parametrize("view", SUMMARIES)
def test_a_summary_does_not_read_the_log(studio: Engine, view: str) -> None:
    read = studio.query(
        "select distinct d.refobjid::regclass::text from pg_rewrite as r join pg_depend as d"
        " on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass"
        " where r.ev_class = %s::regclass",
        f"gateway.{view}",
    )
    assert len(read) > 1
    assert ("gateway.requests",) not in read
    assert ("gateway.ledger_entries",) not in read
