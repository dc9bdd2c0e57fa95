"""Admission reads by index, however many keys and models there are: counted by the server itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.database.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.database.engine import Customer

MANY = 5000


@pytest.fixture(scope="module")
def crowded(module_engine: Engine) -> tuple[Engine, Customer]:
    """The world among thousands of customers, keys, models, offers of one provider, prices and limits."""
    engine = module_engine
    customer = engine.customer("1000", requests_per_minute=10**6)
    for statement in (
        (
            "insert into gateway.customers (name, username) select 'c', 'many ' || n from"
            " generate_series(1, %s) as n"
        ),
        (
            "insert into gateway.api_keys (customer_id, name, prefix, secret_hash)"
            " select id, 'k', 'sk_many', sha256(convert_to(username, 'UTF8')) from gateway.customers"
            " where id > %s * 0 + 1"
        ),
        (
            "insert into gateway.models (name, context_length) select 'many-' || n, 1000 from"
            " generate_series(1, %s) as n"
        ),
        (
            "insert into gateway.offers (model_id, provider, upstream_model)"
            " select id, 'openai-compatible', name from gateway.models where name like 'many-%%' and %s > 0"
        ),
        (
            "insert into gateway.routes (service_id, offer_id)"
            " select s.id, o.id from gateway.services as s, gateway.offers as o where %s > 0 on conflict"
            " do nothing"
        ),
        (
            "insert into gateway.prices (offer_id, input, output) select id, 1, 1 from gateway.offers"
            " where %s > 0"
        ),
        (
            "insert into gateway.limits (key_id, per, requests) select id, 'day', 100000 from"
            " gateway.api_keys where %s > 0"
        ),
        (
            "insert into gateway.limit_counters (subject, subject_id, per, window_start)"
            " select 'key', id, 'day', date_trunc('day', now(), 'UTC') from gateway.api_keys where %s > 0"
        ),
    ):
        engine.run(statement, MANY)
    with engine.by_engine():
        engine.run(
            "insert into gateway.requests (id, admitted_at, customer_id, key_id, requested_model,"
            " endpoint, streamed, state,"
            " outcome, hold_usd, lease_until, input_tokens_bound, output_tokens_bound, billing_mode,"
            " commission_percent,"
            " flat_usd_per_1k_tokens, routes, counted) select 'req_many' || n, now(), 1, 1, 'm',"
            " 'e', false, 'settled',"
            " 'failed', 0, now(), 0, 0, 'markup', 5, 0, '[]', '{}' from generate_series(1, %s) as n",
            MANY,
        )
        engine.run(
            "insert into gateway.idempotency_keys (key_id, idempotency_key, body_hash, request_id)"
            " select id, 'k', sha256('x'), 'req_' from gateway.api_keys where %s > 0",
            MANY,
        )
    engine.run("analyze")
    return engine, customer


def rows_read(engine: Engine, work: Callable[[], object]) -> dict[str, int]:
    """Rows of each table that `work` read, as the server counts them: an index can be read whole, too."""
    with engine.connection.transaction():
        before = counted(engine)
        work()
        after = counted(engine)
    assert sum(by_index for _, by_index in after.values()) > sum(by_index for _, by_index in before.values())
    return {table: read - before.get(table, (0, 0))[0] for table, (read, _) in after.items()}


def counted(engine: Engine) -> dict[str, tuple[int, int]]:
    """(rows read, reads by index) of each table, what earlier transactions did included."""
    rows = engine.query(
        "select relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0), coalesce(idx_scan, 0)"
        " from pg_stat_xact_user_tables where schemaname = 'gateway'"
    )
    return {row[0]: (row[1], row[2]) for row in rows}


def assert_by_index(engine: Engine, work: Callable[[], object]) -> None:
    # settings has one row, services two
    assert {table: rows for table, rows in rows_read(engine, work).items() if rows > 50} == {}


def test_a_scan_would_be_seen(crowded: tuple[Engine, Customer]) -> None:
    engine, _ = crowded

    def work() -> None:
        engine.query("select count(*) from gateway.models where display_name = 'none'")
        engine.query("select * from gateway.accounts where customer_id = 1")

    assert rows_read(engine, work)["models"] > MANY


def test_an_index_that_is_read_whole_would_be_seen(crowded: tuple[Engine, Customer]) -> None:
    engine, _ = crowded

    def work() -> None:
        engine.query(
            "select max(upstream_model || provider) from (select * from gateway.offers order by id) as o"
        )

    engine.run("set enable_seqscan = off")
    assert rows_read(engine, work)["offers"] > MANY
    engine.run("reset enable_seqscan")


@pytest.mark.parametrize(
    "parameters",
    [
        {"p_models": ["echo"]},
        {"p_models": ["many-77", "many-78"]},
        {"p_models": ["openai-compatible/many-77"]},
        {"p_models": ["many-77"], "p_provider": "openai-compatible"},
        {"p_models": [], "p_model_id": 5},
        {"p_models": ["echo"], "p_idempotency_key": "k7", "p_body_hash": "00" * 32},
    ],
)
def test_admission_and_settlement_scan_no_table(
    crowded: tuple[Engine, Customer], parameters: dict[str, Any]
) -> None:
    engine, customer = crowded
    # the first calls of a connection plan for their very parameters, later ones may take a general plan:
    # both are looked at
    for mode in ("force_custom_plan", "force_generic_plan"):
        engine.run(f"set plan_cache_mode = {mode}")
        keyed = dict(parameters)
        if "p_idempotency_key" in keyed:
            keyed["p_idempotency_key"] = mode

        def work(keyed: dict[str, Any] = keyed) -> None:
            engine.settle(engine.admitted(customer.key_hash, **keyed))

        assert_by_index(engine, work)
    engine.run("reset plan_cache_mode")


def test_a_refusal_scans_no_table(crowded: tuple[Engine, Customer]) -> None:
    engine, customer = crowded
    assert_by_index(engine, lambda: engine.refused(customer.key_hash, p_max_output_tokens=10**9))


def test_the_sweeper_the_record_and_the_key_are_read_by_index(crowded: tuple[Engine, Customer]) -> None:
    engine, customer = crowded
    admission = engine.admitted(customer.key_hash)
    engine.lapse(admission)

    def work() -> None:
        assert engine.call("expire_holds")["expired"] == 1
        assert engine.call("read_request", p_request_id=admission["request_id"])["state"] == "expired"
        engine.call("authenticate_key", p_key_hash=customer.key_hash)
        engine.call("add_credits", p_customer_id=customer.id, p_usd=1, p_reference="r")
        engine.call("forget_idempotency_keys")

    assert_by_index(engine, work)


def test_what_is_left_of_limits_and_credits_is_read_by_index(crowded: tuple[Engine, Customer]) -> None:
    engine, customer = crowded
    engine.settle(engine.admitted(customer.key_hash))

    def work() -> None:
        asked = {"p_customer_id": customer.id, "p_key_id": customer.key_id}
        assert engine.call("read_limits", **asked)["limits"]
        assert engine.call("read_limits", **asked, p_model="many-77")["limits"]
        assert engine.call("read_key", **asked)["usage"]["total_usd"] != "0"
        assert engine.call("read_credits", p_customer_id=customer.id)["total_usage_usd"] != "0"

    assert_by_index(engine, work)


def test_the_end_of_a_request_near_a_mark_is_looked_at_by_index(crowded: tuple[Engine, Customer]) -> None:
    engine, _ = crowded
    customer = engine.customer("1000", requests_per_minute=10**6)
    service = engine.value("select min(id) from gateway.services")
    warn = {"tokens_per_day": 1000, "requests_per_day": 1}
    for subject in ({"p_customer_id": customer.id}, {"p_service_id": service}):
        engine.call("set_limits", **subject, p_rate_limits={}, p_warn=warn)
    engine.admitted(customer.key_hash)
    for mode in ("force_custom_plan", "force_generic_plan"):
        engine.run(f"set plan_cache_mode = {mode}")
        # its bound is beyond the mark, then what is used: looked at, and recorded
        for used in (5, 2000):

            def work(used: int = used) -> None:
                engine.settle(engine.admitted(customer.key_hash), usage={"input": used})

            assert_by_index(engine, work)
    engine.run("reset plan_cache_mode")
    assert (
        engine.value("select count(*) from gateway.limit_crossings where customer_id = %s", customer.id) == 2
    )


def fill(engine: Engine, customer: Customer) -> None:
    """A log, counters and limits for a world that was nearly empty, and nobody analyzes them."""
    with engine.by_engine():
        engine.run(
            "insert into gateway.requests (id, admitted_at, customer_id, key_id, requested_model,"
            " endpoint, streamed, state, outcome, hold_usd, lease_until, input_tokens_bound,"
            " output_tokens_bound, billing_mode, commission_percent, flat_usd_per_1k_tokens,"
            " routes, counted) select 'req_many' || n, now(), %s, %s, 'm', 'e', false, 'settled',"
            " 'failed', 0, now(), 0, 0, 'markup', 5, 0, '[]', '{}' from generate_series(1, %s) as n",
            customer.id,
            customer.key_id,
            MANY,
        )
        for statement in (
            (
                "insert into gateway.limit_counters (subject, subject_id, per, window_start)"
                " select 'key', 1000 + n, 'day', now() from generate_series(1, %s) as n"
            ),
            (
                "insert into gateway.limits (key_id, per, requests) select 1000 + n, 'day', 1 from"
                " generate_series(1, %s) as n"
            ),
        ):
            engine.run(statement, MANY)


@pytest.mark.parametrize("first", ["chat", "others"])
def test_what_was_planned_over_empty_tables_reads_full_ones_by_index(own_engine: Engine, first: str) -> None:
    """Plans are a connection's, whoever makes them: chat's functions share theirs with what others call."""
    engine = own_engine
    customer = engine.customer("1000", requests_per_minute=10**6)
    asked = {"p_customer_id": customer.id, "p_key_id": customer.key_id}

    def chat() -> None:
        engine.settle(engine.admitted(customer.key_hash))

    def others() -> None:
        assert engine.call("expire_holds")["expired"] == 1
        assert engine.call("read_limits", **asked)["limits"]
        assert engine.call("read_limits", **asked, p_model="echo")["limits"]
        assert engine.call("read_key", **asked)["prefix"]

    # by another connection what is not to plan here: the guards' switch makes one forget its plans
    with engine.database.connect() as other:
        elsewhere = Engine(engine.database, other)
        # what is known to be empty is best read whole; after five calls a plan is kept for any parameters
        engine.run("vacuum analyze")
        for _ in range(7):
            if first == "chat":
                chat()
            else:
                elsewhere.lapse(elsewhere.admitted(customer.key_hash))
                others()
        fill(elsewhere, customer)

    assert_by_index(engine, chat)
