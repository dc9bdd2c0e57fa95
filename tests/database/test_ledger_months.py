"""Months of the books are closed once they agree, and of the log dropped once nothing can be missed."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.database.engine import Engine, call, race, usd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.database.engine import Customer
    from tests.fixtures.database import Connection, NewDatabase

MONTH = (
    "select to_char(date_trunc('month', now() at time zone 'UTC') - make_interval(months => %s), 'YYYY-MM')"
)
NOT_CLOSED = {"closed": None, "disagree": False}
NOT_DROPPED = {"dropped": None, "waits": None}


def month(engine: Engine, ago: int) -> str:
    return str(engine.value(MONTH, ago))


def pass_months(engine: Engine, months: int) -> None:
    """Let months go by: everything that was written was written so much earlier."""
    earlier = "make_interval(months => %s)"
    with engine.by_engine():
        engine.run(
            f"update gateway.requests set admitted_at = admitted_at - {earlier},"
            f" lease_until = lease_until - {earlier}, settled_at = settled_at - {earlier}",
            *[months] * 3,
        )
        engine.run(f"update gateway.ledger_entries set created_at = created_at - {earlier}", months)
    engine.call("create_request_partitions")


def close_all(engine: Engine) -> list[str]:
    closed = []
    while (told := engine.call("close_ledger"))["closed"]:
        closed.append(told["closed"])
    assert told == NOT_CLOSED
    return closed


def again(engine: Engine, admission: dict[str, Any]) -> dict[str, Any]:
    """The admission as its settlement names it, after months went by."""
    at = engine.value("select admitted_at::text from gateway.requests where id = %s", admission["request_id"])
    return {**admission, "admitted_at": at}


def checkpoints(engine: Engine, customer_id: int) -> list[tuple[Any, ...]]:
    return engine.query(
        "select to_char(month, 'YYYY-MM'), entries, balance_usd from gateway.ledger_checkpoints"
        " where customer_id = %s order by month",
        customer_id,
    )


@pytest.fixture
def aged(own_engine: Engine) -> tuple[Engine, Customer]:
    """A customer who paid in and made a call each four, three and two months ago, and one this month."""
    engine = own_engine
    customer = engine.customer("10")
    engine.settle(engine.admitted(customer.key_hash))
    pass_months(engine, 1)
    engine.settle(engine.admitted(customer.key_hash))
    pass_months(engine, 1)
    engine.call("add_credits", p_customer_id=customer.id, p_usd=usd(1))
    engine.settle(engine.admitted(customer.key_hash))
    pass_months(engine, 2)
    engine.settle(engine.admitted(customer.key_hash))
    return engine, customer


def test_a_month_that_is_not_over_stays_open(own_engine: Engine) -> None:
    assert own_engine.call("close_ledger") == NOT_CLOSED
    own_engine.customer()
    assert own_engine.call("close_ledger") == NOT_CLOSED
    assert own_engine.check()["closed_through"] is None


def test_each_month_is_closed_once_in_order_with_the_balance_at_its_end(
    aged: tuple[Engine, Customer],
) -> None:
    engine, customer = aged
    idle = engine.customer(None)
    assert close_all(engine) == [month(engine, ago) for ago in (4, 3, 2, 1)]
    charge = usd("0.00063")
    assert checkpoints(engine, customer.id) == [
        (month(engine, 4), 2, 10 - charge),
        (month(engine, 3), 1, 10 - 2 * charge),
        (month(engine, 2), 2, 11 - 3 * charge),
    ]
    assert checkpoints(engine, idle.id) == []
    assert close_all(engine) == []
    for full in (False, True):
        told = engine.call("check_ledger", p_full=full)
        assert told == {
            "ok": True,
            "full": full,
            "accounts": 2,
            "closed_through": month(engine, 1),
            "mismatches": [],
            "misbooked_requests": 0,
            "misbooked_payments": 0,
            "wrong_checkpoints": 0 if full else None,
            "orphan_holds": 0,
        }


@pytest.mark.parametrize(
    "plant",
    [
        "update gateway.accounts set balance_usd = balance_usd + 1",
        "delete from gateway.ledger_entries where id = (select max(id) from gateway.ledger_entries)",
        "update gateway.requests set charge_usd = 1, collected_usd = 1 where collected_usd <> 0",
        "update gateway.ledger_entries set request_id = 'req_of nobody' where id = 2",
    ],
)
def test_books_that_disagree_are_not_closed(aged: tuple[Engine, Customer], plant: str) -> None:
    engine, _ = aged
    with engine.by_engine():
        assert engine.run(plant) >= 1
    assert engine.call("close_ledger") == {"closed": None, "disagree": True}
    assert engine.value("select count(*) from gateway.ledger_months") == 0


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (
            "update gateway.ledger_entries set amount_usd = amount_usd + 1 where id in (1, 4)",
            {"wrong_checkpoints": 2},
        ),
        (
            "update gateway.ledger_entries set request_id = 'req_of nobody' where id = 2",
            {"misbooked_requests": 2},
        ),
        (
            "delete from gateway.ledger_entries where id = 3",
            {"wrong_checkpoints": 1, "misbooked_requests": 1},
        ),
        (
            "update gateway.requests set charge_usd = 1, collected_usd = 1 where id = %s",
            {"misbooked_requests": 1},
        ),
    ],
)
def test_what_was_changed_before_the_last_checkpoint_is_found_by_the_full_check(
    aged: tuple[Engine, Customer], plant: str, found: dict[str, int]
) -> None:
    engine, _ = aged
    close_all(engine)
    oldest = engine.value("select id from gateway.requests order by admitted_at limit 1")
    with engine.by_engine():
        assert engine.run(plant, *([oldest] if "%s" in plant else [])) >= 1
    assert engine.check()["ok"] is True
    told = engine.call("check_ledger", p_full=True)
    assert told["ok"] is False
    assert {name: told[name] for name in found} == found


@pytest.mark.parametrize(
    "plant",
    [
        "update gateway.accounts set balance_usd = balance_usd + 0.0000000001",
        (
            "update gateway.ledger_checkpoints set balance_usd = balance_usd + 1"
            " where month = (select max(month) from gateway.ledger_checkpoints)"
        ),
        (
            "update gateway.ledger_checkpoints set through_entry_id = through_entry_id - 1"
            " where month = (select max(month) from gateway.ledger_checkpoints)"
        ),
        "update gateway.ledger_entries set amount_usd = amount_usd - 1 where id = 6",
        "delete from gateway.ledger_entries where id = 6",
        (
            "update gateway.requests set charge_usd = 1, collected_usd = 1"
            " where admitted_at > now() - interval '1 hour'"
        ),
    ],
    ids=["balance", "checkpoint", "entry", "amount", "no entry", "request"],
)
def test_what_is_wrong_since_the_last_checkpoint_is_found(aged: tuple[Engine, Customer], plant: str) -> None:
    engine, _ = aged
    close_all(engine)
    assert engine.value("select max(id) from gateway.ledger_entries") == 6
    with engine.by_engine():
        assert engine.run(plant) >= 1
    assert engine.check()["ok"] is False


def test_a_late_settlement_of_a_closed_month_is_booked_and_checked(own_engine: Engine) -> None:
    engine = own_engine
    customer = engine.customer()
    expired = engine.admitted(customer.key_hash)
    engine.lapse(expired)
    engine.call("expire_holds")
    pass_months(engine, 2)
    close_all(engine)
    assert engine.settle(again(engine, expired))["charge_usd"] == "0.00063"
    for full in (False, True):
        assert engine.call("check_ledger", p_full=full)["ok"] is True
    with engine.by_engine():
        engine.run("update gateway.requests set charge_usd = 1, collected_usd = 1")
    told = engine.check()
    assert (told["ok"], told["misbooked_requests"]) == (False, 1)


def test_of_two_who_close_one_does_and_nobody_waits(aged: tuple[Engine, Customer]) -> None:
    engine, _ = aged
    told = race(engine.database, 4, lambda connection, _: call(connection, "close_ledger"))
    closed = [answer["closed"] for answer in told if answer["closed"]]
    assert closed
    assert len(closed) == len(set(closed))
    assert engine.call("check_ledger", p_full=True)["ok"] is True


def test_closing_while_money_is_taken_misses_nothing(aged: tuple[Engine, Customer]) -> None:
    engine, customer = aged
    engine.settings(default_requests_per_minute=None)

    def work(connection: Connection, number: int) -> int:
        if number == 0:
            return sum(bool(call(connection, "close_ledger")["closed"]) for _ in range(8))
        for _ in range(10):
            admission = engine.admit(customer.key_hash, connection=connection)
            assert admission["admitted"], admission
            engine.settle(admission, connection=connection)
            assert call(connection, "check_ledger")["ok"] is True
        return 0

    assert race(engine.database, 4, work)[0] == 4
    assert engine.call("check_ledger", p_full=True)["ok"] is True


@pytest.mark.parametrize(
    "statement",
    [
        "update gateway.ledger_months set closed_at = now()",
        "delete from gateway.ledger_months",
        "truncate gateway.ledger_months",
        "insert into gateway.ledger_months (month) values ('2000-01-01')",
        "update gateway.ledger_checkpoints set balance_usd = 0",
        "delete from gateway.ledger_checkpoints",
        "truncate gateway.ledger_checkpoints",
    ],
)
def test_checkpoints_are_not_for_hands(aged: tuple[Engine, Customer], statement: str) -> None:
    engine, _ = aged
    close_all(engine)
    with pytest.raises(psycopg.errors.RestrictViolation):
        engine.run(statement)


# The cost of a check


def rows_read(engine: Engine, work: Callable[[], object]) -> dict[str, int]:
    """How many rows of each table `work` read, by scans and by index, as the server counts them."""
    counts = (
        "select relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_xact_user_tables"
        " where schemaname = 'gateway'"
    )
    with engine.connection.transaction():
        before = dict(engine.query(counts))
        work()
        after = dict(engine.query(counts))
    return {table: read - before.get(table, 0) for table, read in after.items()}


def with_old_books(engine: Engine, count: int) -> None:
    """Books of two customers: as many charged requests of last month, closed, and twenty of this one."""
    customer, _ = engine.customer(), engine.customer()
    pass_months(engine, 2)
    with engine.by_engine():
        engine.run(
            "with made as (insert into gateway.requests (id, admitted_at, customer_id, key_id,"
            " requested_model, endpoint, streamed, state, outcome, hold_usd, charge_usd, collected_usd,"
            " lease_until, input_tokens_bound, output_tokens_bound, billing_mode, commission_percent,"
            " flat_usd_per_1k_tokens, routes, counted) select 'req_old' || gen_random_uuid(),"
            " date_trunc('month', now(), 'UTC') - interval '9 days', 1, 1, 'm', 'e', false, 'settled',"
            " 'succeeded', 0, 0.000001, 0.000001, now(), 0, 0, 'markup', 5, 0, '[]', '{}'"
            " from generate_series(1, %s) returning id, admitted_at)"
            " insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd,"
            " request_id, actor, created_at) select 1, 'charge', -0.000001, 0, id, 'gateway', admitted_at"
            " from made",
            count,
        )
        engine.run(
            "update gateway.accounts set balance_usd = balance_usd - 0.000001 * %s where customer_id = 1",
            count,
        )
    engine.call("create_request_partitions")
    assert close_all(engine) == [month(engine, 2), month(engine, 1)]
    for _ in range(20):
        engine.settle(engine.admitted(customer.key_hash))
    engine.run("analyze")


def test_a_check_reads_no_more_however_long_the_books_are(new_database: NewDatabase) -> None:
    costs = []
    for count in (500, 5000):
        with new_database() as database, database.connect() as connection:
            engine = Engine(database, connection)
            engine.model("echo")
            engine.service(["echo"])
            with_old_books(engine, count)
            assert engine.check()["ok"] is True
            costs.append(rows_read(engine, engine.check))
            whole = rows_read(engine, lambda engine=engine: engine.call("check_ledger", p_full=True))  # type: ignore[misc]
            assert whole["ledger_entries"] >= count
            assert engine.call("check_ledger", p_full=True)["ok"] is True
    assert costs[0]["ledger_entries"] <= 100
    assert costs[1] == costs[0]


# Dropping


def parts(engine: Engine) -> list[str]:
    return [
        row[0].removeprefix("requests_").replace("_", "-")
        for row in engine.query(
            "select c.relname from pg_inherits as i join pg_class as c on c.oid = i.inhrelid"
            " where i.inhparent = 'gateway.requests'::regclass and c.relname <> 'requests_default' order by 1"
        )
    ]


def drop_all(engine: Engine) -> list[str]:
    dropped = []
    while (told := engine.call("drop_request_partitions"))["dropped"]:
        dropped.append(told["dropped"])
    assert told == NOT_DROPPED
    return dropped


def test_without_a_retention_nothing_is_dropped(aged: tuple[Engine, Customer]) -> None:
    engine, _ = aged
    close_all(engine)
    before = parts(engine)
    assert before[0] == month(engine, 4)
    assert drop_all(engine) == []
    assert parts(engine) == before


def test_what_is_older_than_the_retention_is_dropped_and_the_books_stay(
    aged: tuple[Engine, Customer],
) -> None:
    engine, customer = aged
    close_all(engine)
    before = engine.query("select * from gateway.ledger_entries order by id")
    sums = engine.query("select * from gateway.usage_rollups")
    old = engine.value("select id from gateway.requests order by admitted_at limit 1")
    engine.settings(log_retention_months=2)
    assert drop_all(engine) == [month(engine, 4), month(engine, 3)]
    assert parts(engine)[0] == month(engine, 2)
    assert engine.call("read_request", p_request_id=old) is None
    assert engine.query("select * from gateway.ledger_entries order by id") == before
    assert engine.query("select * from gateway.usage_rollups") == sums
    months = engine.query(
        "select to_char(month, 'YYYY-MM'), log_dropped_at is not null, booked_requests, collected_usd"
        " from gateway.ledger_months order by month limit 3"
    )
    charge = usd("0.00063")
    assert months == [
        (month(engine, 4), True, 1, charge),
        (month(engine, 3), True, 1, charge),
        (month(engine, 2), False, None, None),
    ]
    for full in (False, True):
        assert engine.call("check_ledger", p_full=full)["ok"] is True
    assert engine.account(customer.id) == (11 - 4 * charge, 0)
    # nor are their partitions made again
    assert engine.call("create_request_partitions") == []


@pytest.mark.parametrize(
    "plant",
    [
        "update gateway.ledger_entries set amount_usd = amount_usd * 2 where id = 2",
        "delete from gateway.ledger_entries where id = 2",
        "update gateway.ledger_months set collected_usd = collected_usd + 1 where log_dropped_at is not null",
        "update gateway.ledger_months set booked_requests = 5 where log_dropped_at is not null",
    ],
)
def test_the_full_check_holds_the_dropped_to_their_sums(aged: tuple[Engine, Customer], plant: str) -> None:
    engine, _ = aged
    close_all(engine)
    engine.settings(log_retention_months=2)
    drop_all(engine)
    with engine.by_engine():
        assert engine.run(plant) >= 1
    told = engine.call("check_ledger", p_full=True)
    assert (told["ok"], told["misbooked_requests"] >= 1) == (False, True)


def test_a_settlement_for_a_dropped_request_finds_none(own_engine: Engine) -> None:
    engine = own_engine
    customer = engine.customer()
    expired = engine.admitted(customer.key_hash)
    engine.lapse(expired)
    engine.call("expire_holds")
    pass_months(engine, 3)
    late = again(engine, expired)
    close_all(engine)
    engine.settings(log_retention_months=2)
    assert drop_all(engine) == [month(engine, 3)]
    assert engine.settle(late) == {"status": "unknown_request"}
    assert engine.account(customer.id) == (10, 0)
    assert engine.call("check_ledger", p_full=True)["ok"] is True


def waits(engine: Engine) -> str:
    before = parts(engine)
    told = engine.call("drop_request_partitions")
    assert told["dropped"] is None
    assert parts(engine) == before
    return str(told["waits"])


def test_a_drop_waits_for_the_books(aged: tuple[Engine, Customer]) -> None:
    engine, customer = aged
    engine.settings(log_retention_months=2)
    assert waits(engine) == "not_closed"
    held = engine.admitted(customer.key_hash)
    pass_held = (
        "update gateway.requests set admitted_at = admitted_at - interval '4 months' where state = 'held'"
    )
    with engine.by_engine():
        engine.run(pass_held)
    close_all(engine)
    assert waits(engine) == "holds"
    # it is settled after all, after its month was closed: that entry is not in a checkpoint yet
    assert engine.settle(again(engine, held))["charge_usd"] == "0.00063"
    assert waits(engine) == "late_entries"
    with engine.by_engine():
        engine.run(
            "update gateway.requests set charge_usd = 1, collected_usd = 1 where id = %s", held["request_id"]
        )
        engine.run("delete from gateway.ledger_entries where request_id = %s", held["request_id"])
    assert waits(engine) == "misbooked"


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[None]:
    """Somebody reads the log in a transaction that stays open."""
    with engine.database.connect(autocommit=False) as connection:
        connection.execute("select count(*) from gateway.requests")
        yield


def test_a_drop_does_not_hold_everybody_up_behind_a_long_reader(aged: tuple[Engine, Customer]) -> None:
    engine, customer = aged
    close_all(engine)
    engine.settings(log_retention_months=2)
    with reading(engine):
        assert waits(engine) == "busy"
        engine.settle(engine.admitted(customer.key_hash))
    assert drop_all(engine) == [month(engine, 4), month(engine, 3)]


def test_of_a_drop_and_a_late_settlement_one_is_first(own_engine: Engine) -> None:
    engine = own_engine
    outcomes = set()
    for _ in range(6):
        customer = engine.customer()
        expired = engine.admitted(customer.key_hash)
        engine.lapse(expired)
        engine.call("expire_holds")
        engine.settings(log_retention_months=None)
        pass_months(engine, 3)
        late = again(engine, expired)
        close_all(engine)
        engine.settings(log_retention_months=2)
        start = threading.Barrier(2)

        def work(
            connection: Connection, number: int, late: Any = late, start: threading.Barrier = start
        ) -> Any:
            start.wait(10)
            if number:
                return engine.settle(late, connection=connection)["status"]
            return call(connection, "drop_request_partitions")

        dropped, settled = race(engine.database, 2, work)
        outcomes.add((dropped["dropped"] is not None, settled))
        assert (dropped["dropped"] is not None, settled) in {(True, "unknown_request"), (False, "settled")}
        assert engine.call("check_ledger", p_full=True)["ok"] is True
        if settled == "settled":
            break  # its entry keeps the month from being dropped until the next is closed
    assert outcomes
