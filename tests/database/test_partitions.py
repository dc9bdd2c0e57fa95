"""The log is in monthly partitions made ahead; a missed job refuses nobody, a month's turn loses nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.database.engine import new_request_id, usd

if TYPE_CHECKING:
    from tests.database.engine import Engine


def partitions(engine: Engine) -> list[str]:
    return [
        row[0]
        for row in engine.query(
            "select c.relname from pg_inherits as i join pg_class as c on c.oid = i.inhrelid"
            " where i.inhparent = 'gateway.requests'::regclass order by 1"
        )
    ]


def months_ahead(engine: Engine, count: int) -> list[str]:
    return [
        engine.value(
            "select 'requests_' || to_char(date_trunc('month', now() at time zone 'UTC')"
            " + make_interval(months => %s), 'YYYY_MM')",
            months,
        )
        for months in range(count)
    ]


def test_this_month_and_three_more_are_there(own_engine: Engine) -> None:
    engine = own_engine
    assert partitions(engine) == [*months_ahead(engine, 4), "requests_default"]
    assert engine.call("create_request_partitions") == []


def test_more_are_made_ahead_and_are_like_the_others(own_engine: Engine) -> None:
    engine = own_engine
    made = engine.call("create_request_partitions", p_months=14)
    assert made == months_ahead(engine, 15)[4:]
    assert partitions(engine) == [*sorted(months_ahead(engine, 15)), "requests_default"]
    shapes = engine.query(
        "select c.relrowsecurity, (select count(*) from pg_index as x where x.indrelid = c.oid),"
        " (select count(*) from pg_trigger as t where t.tgrelid = c.oid),"
        " (select count(*) from pg_constraint as k where k.conrelid = c.oid and k.contype in ('c', 'p'))"
        " from pg_inherits as i join pg_class as c on c.oid = i.inhrelid"
        " where i.inhparent = 'gateway.requests'::regclass"
    )
    assert len(set(shapes)) == 1, shapes
    assert shapes[0][0] is True


def test_requests_that_fell_into_the_default_move_out(own_engine: Engine) -> None:
    engine = own_engine
    customer = engine.customer()
    current = months_ahead(engine, 1)[0]
    settled, running = engine.admitted(customer.key_hash), engine.admitted(customer.key_hash)
    engine.settle(settled)
    # as if the job had been missed: this month has no partition, its rows are in the default one
    engine.run(f"alter table gateway.requests detach partition gateway.{current}")
    with engine.by_engine():
        engine.run(f"insert into gateway.requests select * from gateway.{current}")
    engine.run(f"drop table gateway.{current}")
    assert engine.value("select count(*) from gateway.requests_default") == 2
    late = engine.admitted(customer.key_hash)
    assert engine.value("select count(*) from gateway.requests_default") == 3
    assert engine.call("create_request_partitions") == [current]
    assert engine.value("select count(*) from gateway.requests_default") == 0
    assert engine.value(f"select count(*) from gateway.{current}") == 3
    for admission in (running, late):
        assert engine.settle(admission)["charge_usd"] == "0.00063"
    assert engine.account(customer.id) == (10 - 3 * usd("0.00063"), 0)
    engine.assert_books_agree()


def test_a_request_of_last_month_settles_and_expires_this_month(own_engine: Engine) -> None:
    engine = own_engine
    customer = engine.customer()
    settled, expired = engine.admitted(customer.key_hash), engine.admitted(customer.key_hash)
    with engine.by_engine():  # a month goes by
        engine.run("update gateway.requests set admitted_at = admitted_at - interval '1 month',"
                   " lease_until = clock_timestamp() - interval '1 second'")  # fmt: skip
    for admission in (settled, expired):
        admission["admitted_at"] = engine.value(
            "select admitted_at::text from gateway.requests where id = %s", admission["request_id"]
        )
    assert engine.value("select count(*) from gateway.requests_default") == 2
    assert engine.settle(settled)["charge_usd"] == "0.00063"
    assert engine.call("expire_holds")["expired"] == 1
    assert engine.settle(expired)["charge_usd"] == "0.00063"
    assert engine.account(customer.id) == (10 - 2 * usd("0.00063"), 0)
    engine.assert_books_agree()


def test_a_record_is_found_by_its_id_alone(own_engine: Engine) -> None:
    engine = own_engine
    customer = engine.customer()
    request_id = new_request_id()
    engine.settle(engine.admitted(customer.key_hash, p_request_id=request_id))
    found = engine.call("read_request", p_request_id=request_id, p_customer_id=customer.id)
    assert (found["charge_usd"], found["cost_usd"], found["state"]) == ("0.00063", "0.0006", "settled")
    assert engine.call("read_request", p_request_id=request_id, p_customer_id=customer.id + 1) is None
    assert engine.call("read_request", p_request_id=request_id, p_key_id=customer.key_id + 1) is None
    for nonsense in (
        "",
        "req_",
        "req_" + "z" * 32,
        "nonsense",
        "req_" + "f" * 32,
        "req_" + "0" * 32,
        "é" * 36,
    ):
        assert engine.call("read_request", p_request_id=nonsense) is None
