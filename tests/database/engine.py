"""The SQL functions as the tests of the engine call them, and a small world to call them in."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from decimal import Decimal
from threading import Barrier, Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg import sql
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from tests.fixtures.database import Connection, Database

JSONObject = dict[str, Any]
T = TypeVar("T")

PROVIDER = "openai-compatible"
# USD per million tokens: round figures, so that a bound can be worked out in the head.
PRICES = {"input": "2", "output": "8"}
MARKUP = Decimal("1.05")

BOOKS = ("accounts", "ledger_entries", "limit_counters", "idempotency_keys", "usage_rollups")


def usd(amount: str | int) -> Decimal:
    return Decimal(amount)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def new_request_id() -> str:
    """As the gateway makes them: milliseconds, then chance."""
    return f"req_{time.time_ns() // 1_000_000:012x}{uuid.uuid4().hex[:20]}"


def call(connection: Connection, function: str, **parameters: Any) -> Any:
    """Call `api.function` by named parameters, as PostgREST does."""
    adapted = {
        name: Jsonb(value) if isinstance(value, dict) or _holds_objects(value) else value
        for name, value in parameters.items()
    }
    query = sql.SQL("select api.{}({})").format(
        sql.Identifier(function),
        sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in adapted
        ),
    )
    row = connection.execute(query, adapted).fetchone()
    assert row is not None
    return row[0]


def _holds_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


@dataclass(frozen=True, slots=True)
class Customer:
    id: int
    key_id: int
    key_hash: str
    username: str


@dataclass(slots=True)
class Engine:
    """One database, one connection of the operator's, and calls with defaults that a test overrides."""

    database: Database
    connection: Connection
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def call(self, function: str, **parameters: Any) -> Any:
        return call(self.connection, function, **parameters)

    def query(self, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(text.encode(), parameters or None).fetchall()

    def value(self, text: str, *parameters: Any) -> Any:
        row = self.connection.execute(text.encode(), parameters or None).fetchone()
        assert row is not None
        return row[0]

    def run(self, text: str, *parameters: Any) -> int:
        """Run a statement as the operator in Studio would; how many rows it changed."""
        return self.connection.execute(text.encode(), parameters or None).rowcount

    # The world

    def customer(self, usd: str | None = "10", *, requests_per_minute: int | None = None) -> Customer:
        """A customer with money and a key of scope chat."""
        number = next(self._numbers)
        made = self.call("create_customer", p_name=f"Customer {number}", p_email=f"c{number}@example.org")
        if usd is not None:
            paid = self.call("add_credits", p_customer_id=made["id"], p_usd=Decimal(usd))
            assert "error" not in paid, paid
        key_id, key_hash = self.key(made["id"], p_rate_limit=requests_per_minute)
        return Customer(made["id"], key_id, key_hash, made["username"])

    def key(self, customer_id: int | None, **parameters: Any) -> tuple[int, str]:
        key_hash = digest(f"key {uuid.uuid4()}")
        told = self.call(
            "create_key",
            **{
                "p_customer_id": customer_id,
                "p_name": "key",
                "p_prefix": "sk_test",
                "p_secret_hash": key_hash,
                **parameters,
            },
        )
        return told["id"], key_hash

    def model(
        self,
        name: str,
        prices: Mapping[str, Any] | None = None,
        *,
        context_length: int | None = 128_000,
        max_output_tokens: int | None = 4096,
        provider: str = PROVIDER,
        upstream_model: str | None = None,
    ) -> int:
        told = self.call(
            "create_model",
            p_name=name,
            p_context_length=context_length,
            p_max_output_tokens=max_output_tokens,
            p_offers=[
                {
                    "provider": provider,
                    "upstream_model": upstream_model or name,
                    "prices": dict(PRICES if prices is None else prices) or None,
                }
            ],
        )
        return int(told["id"])

    def service(self, models: Sequence[str], *, provider: str = PROVIDER, priority: int = 100) -> int:
        service_id: int = self.call("reserve_service_id")
        told = self.call(
            "create_service",
            p_id=service_id,
            p_name=f"service {service_id}",
            p_provider=provider,
            p_enabled_models=list(models),
            p_priority=priority,
        )
        assert "error" not in told, told
        return service_id

    def settings(self, **changes: Any) -> None:
        self.call("change_settings", p_changes=changes)

    # The chat path

    def admit(self, key_hash: str, *, connection: Connection | None = None, **parameters: Any) -> JSONObject:
        """1,000 input tokens and 500 of output on `echo`, if not told otherwise: at PRICES 0.0063 USD."""
        answer: JSONObject = call(
            connection or self.connection,
            "admit_request",
            **{
                "p_key_hash": key_hash,
                "p_request_id": new_request_id(),
                "p_models": ["echo"],
                "p_endpoint": "chat.completions",
                "p_lease_seconds": 960,
                "p_input_tokens_bound": 1000,
                "p_max_output_tokens": 500,
                **parameters,
            },
        )
        return answer

    def admitted(self, key_hash: str, **parameters: Any) -> JSONObject:
        answer = self.admit(key_hash, **parameters)
        assert answer["admitted"], answer
        return answer

    def refused(self, key_hash: str, **parameters: Any) -> JSONObject:
        answer = self.admit(key_hash, **parameters)
        assert not answer["admitted"], answer
        return answer

    def settle(
        self, admission: JSONObject, *, connection: Connection | None = None, **changes: Any
    ) -> JSONObject:
        """100 tokens in and 50 out, succeeded by the first route, if not told otherwise."""
        settlement = {
            "request_id": admission["request_id"],
            "admitted_at": admission["admitted_at"],
            "outcome": "succeeded",
            "route_id": admission["candidates"][0]["route_id"],
            "usage": {"input": 100, "output": 50},
            "status": 200,
            "latency_ms": 5,
            **changes,
        }
        answer: JSONObject = call(connection or self.connection, "settle_request", p_settlement=settlement)
        return answer

    def fail(self, admission: JSONObject, **changes: Any) -> JSONObject:
        return self.settle(admission, outcome="failed", usage=None, route_id=None, status=502, **changes)

    def lapse(self, admission: JSONObject) -> None:
        """Let the lease of a hold run out: its function was killed some time ago."""
        with self.by_engine():
            changed = self.run(
                "update gateway.requests set lease_until = clock_timestamp() - interval '1 second'"
                " where id = %s",
                admission["request_id"],
            )
        assert changed == 1

    @contextlib.contextmanager
    def by_engine(self) -> Iterator[None]:
        """Past the guards: to plant what only time or a fault could."""
        self.run("set session_replication_role = replica")
        try:
            yield
        finally:
            self.run("set session_replication_role = origin")

    def into_a_fresh_minute(self, seconds: float = 6) -> None:
        """Wait for the next minute if this one ends within `seconds`: nothing but time turns a window."""
        self.run(
            "select pg_sleep(case when 60 - extract(second from clock_timestamp()) < %s"
            " then 60.05 - extract(second from clock_timestamp()) else 0 end)",
            seconds,
        )

    # What came of it

    def account(self, customer_id: int) -> tuple[Decimal | int, Decimal | int]:
        """(balance, held) in USD."""
        row = self.query(
            "select balance_usd, held_usd from gateway.accounts where customer_id = %s", customer_id
        )[0]
        return row[0], row[1]

    def ledger(self, customer_id: int) -> list[tuple[str, Decimal]]:
        rows = self.query(
            "select kind, amount_usd from gateway.ledger_entries where customer_id = %s order by id",
            customer_id,
        )
        return [(row[0], row[1]) for row in rows]

    def request(self, request_id: str) -> JSONObject:
        found: JSONObject = self.value(
            "select to_jsonb(r) || jsonb_build_object('charge', r.charge_usd::text, 'cost', r.cost_usd::text,"
            " 'hold', r.hold_usd::text, 'uncollected', r.uncollected_usd::text, 'collected',"
            " r.collected_usd::text)"
            " from gateway.requests as r where id = %s",
            request_id,
        )
        return found

    def counter(
        self, subject: str, subject_id: int, per: str, model_id: int = 0
    ) -> tuple[int, int, Decimal | int]:
        """(requests, tokens, USD) of a counter."""
        row = self.query(
            "select requests, tokens, spend_usd from gateway.limit_counters"
            " where (subject, subject_id, per, model_id) = (%s, %s, %s, %s)",
            subject,
            subject_id,
            per,
            model_id,
        )[0]
        return row[0], row[1], row[2]

    def debt(self, customer_id: int) -> Decimal | int:
        found: Decimal | int = self.value(
            "select debt_usd from gateway.accounts where customer_id = %s", customer_id
        )
        return found

    # Payments

    def payment_event(
        self, payment_intent: str, told: Mapping[str, Any], *, connection: Connection | None = None
    ) -> JSONObject:
        """An event of Stripe's as the gateway hands it in, with an id of its own unless `told` names one."""
        event = {
            "id": f"evt_{uuid.uuid4().hex}",
            "type": "test",
            "created": "2026-11-21T12:00:00+00:00",
            "livemode": False,
            "payment_intent": payment_intent,
            **told,
        }
        answer: JSONObject = call(connection or self.connection, "record_payment_event", p_event=event)
        return answer

    def paid(self, customer_id: int, cents: int, payment_intent: str = "pi_1") -> JSONObject:
        """A payment of so many cents is complete."""
        told = {"customer_id": customer_id, "currency": "usd", "paid_minor": cents}
        return self.payment_event(payment_intent, told)

    def refunded(self, cents: int, payment_intent: str = "pi_1") -> JSONObject:
        """So much of it is refunded in all."""
        return self.payment_event(payment_intent, {"refunded_minor": cents})

    def disputed(
        self, cents: int, payment_intent: str = "pi_1", *, withdrawn: bool = True, returned: bool = False
    ) -> JSONObject:
        dispute = {
            "id": f"dp_{payment_intent}",
            "amount_minor": cents,
            "withdrawn": withdrawn,
            "returned": returned,
        }
        return self.payment_event(payment_intent, {"dispute": dispute})

    def dump(self) -> dict[str, list[str]]:
        """Everything that a request may consume, row by row. Counters that count nothing are left out."""
        found = {
            table: [
                row[0] for row in self.query(f"select r::text from gateway.{table} as r order by r::text")
            ]
            for table in BOOKS
            if table not in {"accounts", "limit_counters"}
        }
        # but for the mark that the last admission found: it is no money
        found["accounts"] = [
            row[0]
            for row in self.query(
                "select (to_jsonb(r) - 'low_mark_usd')::text from gateway.accounts as r"
                " order by r.customer_id"
            )
        ]
        found["limit_counters"] = [
            row[0]
            for row in self.query(
                "select r::text from gateway.limit_counters as r where (requests, tokens, spend_usd)"
                " <> (0, 0, 0)"
                " order by r::text"
            )
        ]
        found["holds"] = [
            row[0] for row in self.query("select r::text from gateway.requests as r where state <> 'refused'")
        ]
        return found

    def check(self) -> JSONObject:
        found: JSONObject = self.call("check_ledger")
        return found

    def assert_books_agree(self) -> None:
        found = self.check()
        assert (found["ok"], found["mismatches"], found["misbooked_requests"]) == (True, [], 0)


def race(
    database: Database, workers: int, work: Callable[[Connection, int], T], *, as_role: str | None = None
) -> list[T]:
    """Run `work(connection, number)` at the same time on a connection each; what each returned, in order."""
    barrier = Barrier(workers)

    def run(number: int) -> T:
        with database.connect() as connection:
            if as_role:
                connection.execute(sql.SQL("set role {}").format(sql.Identifier(as_role)))
            barrier.wait(timeout=20)
            return work(connection, number)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, range(workers)))


def wait_until_all_wait(engine: Engine, futures: list[Future[Any]]) -> None:
    """Return when all of them wait for a lock; fail if one of them ends instead."""
    while not wait(futures, timeout=0.002).done:
        waiting = engine.value(
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
        )
        if waiting == len(futures):
            return
    raise AssertionError([future.result() for future in futures if future.done()])


@contextlib.contextmanager
def watched(database: Database) -> Iterator[list[Decimal]]:
    """Watch balance - held of every account from a connection of its own: the least of each look."""
    seen: list[Decimal] = []
    done = Event()

    def watch() -> None:
        with database.connect() as connection:
            while True:
                row = connection.execute(
                    "select min(balance_usd - held_usd) from gateway.accounts"
                ).fetchone()
                assert row is not None
                seen.append(row[0])
                if done.wait(0.002):
                    return

    thread = Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
    assert seen
    assert min(seen) >= 0
