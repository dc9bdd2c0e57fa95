"""Programs of calls for the engine: a world to run them in, the calls, and Hypothesis's ways to make them.

Each call knows how to do the same in the plain model, and compares what the two answer.
"""

from __future__ import annotations

import itertools
import math
import uuid
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from hypothesis import strategies as st

from tests.database.engine import PROVIDER, Engine, call, digest, new_request_id
from tests.database.model import (
    Call,
    Customer,
    Decision,
    LanguageModel,
    Model,
    Receipt,
    Subject,
    read_prices,
    window_start,
)

if TYPE_CHECKING:
    from tests.database.engine import JSONObject
    from tests.fixtures.database import Connection, Database

T = TypeVar("T")

# A call of `echo` at its bound is 0.0063 USD: an account affords a few, and a limit bites soon.
PAID_IN = (Decimal("0.1"), Decimal("0.03"))
ZONES = ("UTC", "Asia/Kolkata")
CATALOGUE: dict[str, JSONObject] = {
    "echo": {"input": "2", "output": "8"},
    "dear": {
        "input": "10",
        "cached_input": "1",
        "cache_write": "12.5",
        "cache_write_1h": "20",
        "output": "40",
        "tiers": [
            {
                "above_input_tokens": 1000,
                "input": "15",
                "cached_input": "1.5",
                "cache_write": "18.75",
                "cache_write_1h": "30",
                "output": "50",
            }
        ],
    },
    # nothing of it comes out even at the tenth decimal
    "odd": {
        "input": "0.0003333333",
        "cached_input": "0.0000777777",
        "image_input": "3.3333333333",
        "output": "7.7777777777",
        "audio_output": "11.1111111111",
        "per_request": "0.0000123457",
        "per_image": "0.0000333333",
        # the second is the cheaper of the two
        "tiers": [
            {
                "above_input_tokens": above,
                "input": rate,
                "cached_input": "0.0001111111",
                "image_input": "4.4444444444",
                "output": "9.9999999999",
                "audio_output": "12.1212121212",
            }
            for above, rate in ((9, "0.0066666666"), (1776, "0.0003333334"))
        ],
    },
}
WINDOWS = ("minute", "hour", "day", "month")
PASSING = {
    "minute": (("minute",), timedelta(minutes=1)),
    "hour": (("minute", "hour"), timedelta(hours=1)),
    "day": (("minute", "hour", "day"), timedelta(days=1)),
    "month": (WINDOWS, timedelta(days=31)),
}
PATIENCE = 30.0
DAYS_AHEAD = itertools.count(1)  # no two prices may begin at the same moment


# The world


@dataclass(slots=True, repr=False)
class World:
    """A database with two customers, three keys, three models and two services, as it is before a program."""

    database: Database
    engine: Engine
    second: Connection
    observer: Connection
    worker: ThreadPoolExecutor
    customer_ids: list[int]
    key_hashes: dict[int, str]
    key_owners: dict[int, int]
    models: dict[str, LanguageModel]
    service_ids: list[int]
    first_price: int
    """The first id of a price that is not of the catalogue."""
    admissions: list[JSONObject] = field(default_factory=list)
    model: Model = field(init=False)

    def begin(self) -> None:
        """Everything as it was at first, whatever a failed program has left."""
        for connection in (self.engine.connection, self.second):
            connection.execute("rollback")
        with self.engine.by_engine():
            for table in (
                "ledger_entries",
                "payment_events",
                "payment_refunds",
                "payment_disputes",
                "payments",
                "requests",
                "limit_counters",
                "idempotency_keys",
                "usage_rollups",
                "refusal_rollups",
                "limits",
            ):
                self.engine.run(f"delete from gateway.{table}")
            self.engine.run("delete from gateway.prices where id >= %s", self.first_price)
            self.engine.run("update gateway.accounts set balance_usd = 0, held_usd = 0, debt_usd = 0")
            self.engine.run("update gateway.customers set active = true")
            self.engine.run("delete from gateway.settings")
            self.engine.run("insert into gateway.settings default values")
        self.admissions = []
        self.model = Model(
            models=self.models,
            keys=self.key_owners,
            customers={
                customer_id: Customer(customer_id, zone)
                for customer_id, zone in zip(self.customer_ids, ZONES, strict=True)
            },
            prices={(name, None): read_prices(prices) for name, prices in CATALOGUE.items()},
        )
        for number, usd in enumerate(PAID_IN):
            self.step(Credit(number, usd))

    def step(self, operation: Operation) -> None:
        """Run one call on the first connection and hold it against the model."""
        ran = run(self, self.engine.connection, operation)
        operation.check(self, ran)

    def overlap(self, first: Operation, second: Operation, *, kept: bool) -> bool:
        """Run `second` on another connection while the transaction of `first` is open; keep or undo that.

        Whether the second had to wait for the first.
        """
        connection = self.engine.connection
        connection.execute("begin")
        try:
            ran_first = run(self, connection, first)
            passed_over = first.locks(self)
            pending = self.worker.submit(run, self, self.second, second)
            waited = self._waits(pending)
            self.look()
        finally:
            connection.execute("commit" if kept else "rollback")
        ran_second = pending.result(timeout=PATIENCE)
        # What did not wait saw nothing of the first: it is as if it had come before, where that makes no
        # difference to the first.
        came_before = (
            not waited
            and not first.only_reads(ran_first)
            and (second.only_reads(ran_second) or (first.of_the_operator and not second.of_the_operator))
        )
        if came_before:
            second.check(self, ran_second, passed_over)
        if kept:
            first.check(self, ran_first)
        if not came_before:
            second.check(self, ran_second, passed_over)
        return waited

    def _waits(self, pending: Future[Ran]) -> bool:
        """Whether it comes to wait for a lock of the first connection's transaction; else it has ended."""
        own, other = self.engine.connection.info.backend_pid, self.second.info.backend_pid
        while not wait([pending], timeout=0.001).done:
            row = self.observer.execute("select %s = any (pg_blocking_pids(%s))", [own, other]).fetchone()
            assert row is not None
            if row[0]:
                return True
        return False

    def chosen(self, number: int, *states: str) -> JSONObject | None:
        """One of the requests so far, the last first; in one of these states, where the model knows it."""
        known = self.model.requests
        found = [
            admission
            for admission in reversed(self.admissions)
            if admission["request_id"] not in known or known[admission["request_id"]].state in states
        ]
        return pick(found, number) if found else None

    def look(self) -> None:
        """What anybody may see at any moment."""
        row = self.observer.execute("select min(balance_usd - held_usd) from gateway.accounts").fetchone()
        assert row is not None
        assert row[0] >= 0
        assert call(self.observer, "check_ledger")["ok"]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a call answered, and between which moments it ran."""

    answer: Any
    began: datetime
    ended: datetime
    asked: JSONObject = field(default_factory=dict)


def run(world: World, connection: Connection, operation: Operation) -> Ran:
    asked = operation.asked(world)
    began = datetime.now(UTC)
    answer = operation.call(world, connection, asked)
    return Ran(answer, began, datetime.now(UTC), asked)


# What may be done


@dataclass(frozen=True, slots=True)
class Operation:
    """A call: `asked` names it in full, `call` makes it, `check` does the same in the model and compares.

    Numbers in operations are taken modulo what there is to choose from, so that any program makes sense.
    """

    @property
    def of_the_operator(self) -> bool:
        """Whether it changes what calls of clients go by, and nothing that they change."""
        return False

    def only_reads(self, ran: Ran) -> bool:
        del ran
        return False

    def asked(self, world: World) -> JSONObject:
        raise NotImplementedError

    def call(self, world: World, connection: Connection, asked: JSONObject) -> Any:
        raise NotImplementedError

    def check(self, world: World, ran: Ran, passed_over: frozenset[str] = frozenset()) -> None:
        """`passed_over` are the requests that somebody else held locked throughout."""
        raise NotImplementedError

    def locks(self, world: World) -> frozenset[str]:
        """The requests that it would lock if it were done now."""
        del world
        return frozenset()


@dataclass(frozen=True, slots=True)
class Admit(Operation):
    key: int
    models: tuple[str, ...] = ("echo",)
    input_bound: int | None = 1000
    max_output_tokens: int | None = 500
    choices: int = 1
    media_output: bool = False
    idempotency_key: str | None = None
    body: str = "body"

    def asked(self, world: World) -> JSONObject:
        del world
        return {
            "p_request_id": new_request_id(),
            "p_models": list(self.models),
            "p_input_tokens_bound": self.input_bound,
            "p_max_output_tokens": self.max_output_tokens,
            "p_choices": self.choices,
            "p_media_output": self.media_output,
            "p_idempotency_key": self.idempotency_key,
            "p_body_hash": digest(self.body),
        }

    def _key_id(self, world: World) -> int:
        return pick(list(world.key_hashes), self.key)

    def call(self, world: World, connection: Connection, asked: JSONObject) -> Any:
        return world.engine.admit(world.key_hashes[self._key_id(world)], connection=connection, **asked)

    def check(self, world: World, ran: Ran, passed_over: frozenset[str] = frozenset()) -> None:
        del passed_over
        asked = Call(
            self._key_id(world),
            self.models,
            self.input_bound,
            self.max_output_tokens,
            self.choices,
            self.media_output,
            self.idempotency_key,
            self.body,
        )
        if ran.answer["admitted"]:
            at = datetime.fromisoformat(ran.answer["admitted_at"])
            decision = world.model.decide(asked, at)
            assert told(ran.answer, decision) == expected(decision)
        else:
            # a refusal does not tell when it was decided: a window may have turned in the meantime
            at, decision = self._decided(world, asked, ran)
        if decision.excesses:
            self._check_excess(ran, decision)
        world.model.admit(asked, decision, ran.asked["p_request_id"], at)
        if ran.answer["admitted"]:
            world.admissions.append(ran.answer)

    def _decided(self, world: World, asked: Call, ran: Ran) -> tuple[datetime, Decision]:
        moments = [ran.began]
        while (turn := window_start("minute", moments[-1], "UTC") + timedelta(minutes=1)) <= ran.ended:
            moments.append(turn)
        for at in moments:
            decision = world.model.decide(asked, at)
            if told(ran.answer, decision) == expected(decision):
                return at, decision
        decision = world.model.decide(asked, ran.began)
        assert told(ran.answer, decision) == expected(decision)
        raise AssertionError

    def _check_excess(self, ran: Ran, decision: Decision) -> None:
        excess = next(
            excess
            for excess in decision.excesses
            if (excess.subject, excess.metric, excess.per, excess.limit)
            == (
                ran.answer["subject"],
                ran.answer["metric"],
                ran.answer["per"],
                Decimal(ran.answer["limit"]),
            )
        )
        assert ran.answer["never"] is excess.never
        soonest, latest = (
            max(math.ceil((excess.end - moment).total_seconds()), 1) for moment in (ran.ended, ran.began)
        )
        assert soonest <= ran.answer["retry_after_seconds"] <= latest


def told(answer: JSONObject, decision: Decision) -> JSONObject:
    """An admission's answer, as far as the contract lays it down."""
    if not answer["admitted"]:
        found = {
            name: answer.get(name)
            for name in (
                "refusal",
                "first_request_id",
                "needed_usd",
                "available_usd",
                "affordable_output_tokens",
            )
        }
        if decision.limits:
            found["tightest"] = shown_limits(answer)
        return found
    return {
        "refusal": None,
        "hold_usd": answer["hold_usd"],
        "max_output_tokens": answer["max_output_tokens"],
        "candidates": [
            (
                candidate["route_id"],
                candidate["service_id"],
                candidate["model"],
                candidate["max_output_tokens"],
            )
            for candidate in answer["candidates"]
        ],
        "tightest": shown_limits(answer),
        "warnings": sorted(answer["warnings"]),
    }


def shown_limits(answer: JSONObject) -> JSONObject:
    limits = answer["rate_limits"]
    return {metric: limits[metric] and limits[metric]["remaining"] for metric in ("requests", "tokens")}


def expected(decision: Decision) -> JSONObject:
    """The same as `told`, by the model."""
    if decision.refusal is not None:
        found: JSONObject = {
            "refusal": decision.refusal,
            "first_request_id": decision.first_request_id,
            "needed_usd": shown(decision.needed_usd),
            "available_usd": shown(decision.available_usd),
            "affordable_output_tokens": decision.affordable_output_tokens,
        }
        if decision.limits:
            found["tightest"] = decision.tightest
        return found
    return {
        "refusal": None,
        "hold_usd": shown(decision.hold_usd),
        "max_output_tokens": decision.candidates[0].output_bound,
        "candidates": [
            (candidate.route_id, candidate.service_id, candidate.model_name, candidate.output_bound)
            for candidate in decision.candidates
        ],
        "tightest": decision.tightest,
        "warnings": decision.warnings,
    }


def shown(usd: Decimal | None) -> str | None:
    """Exact decimal text without zeros at its end."""
    if usd is None:
        return None
    text = f"{usd:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def pick(things: list[T], number: int) -> T:
    return things[number % len(things)]


@dataclass(frozen=True, slots=True)
class Settle(Operation):
    """The end of one of the requests so far, if there is any; `again`, of one that was settled before."""

    request: int
    usage: tuple[tuple[str, int], ...] | None = (("input", 100), ("output", 50))
    outcome: str = "succeeded"
    route: int = 0
    again: bool = False

    def asked(self, world: World) -> JSONObject:
        admission = (
            world.chosen(self.request, "settled")
            if self.again
            else world.chosen(self.request, "held", "expired")
        )
        if admission is None:
            return {}
        routes = [candidate["route_id"] for candidate in admission["candidates"]]
        usage = None if self.usage is None or self.outcome == "failed" else dict(self.usage)
        return {
            "admission": admission,
            "outcome": self.outcome,
            "route_id": None if usage is None else pick(routes, self.route),
            "usage": usage,
            "usage_estimated": self.outcome in {"cancelled", "cut"},
        }

    def call(self, world: World, connection: Connection, asked: JSONObject) -> Any:
        return world.engine.settle(connection=connection, **asked) if asked else None

    def check(self, world: World, ran: Ran, passed_over: frozenset[str] = frozenset()) -> None:
        del passed_over
        if not ran.asked:
            return
        admission = ran.asked["admission"]
        receipt = world.model.settle(
            admission["request_id"],
            self.outcome,
            self.route % len(admission["candidates"]),
            ran.asked["usage"],
        )
        assert {name: ran.answer[name] for name in ("status", *expected_receipt(receipt))} == {
            "status": "settled",
            **expected_receipt(receipt),
        }

    def only_reads(self, ran: Ran) -> bool:
        return not ran.asked or ran.answer["already"]

    def locks(self, world: World) -> frozenset[str]:
        asked = self.asked(world)
        return frozenset({asked["admission"]["request_id"]} if asked else ())


def expected_receipt(receipt: Receipt) -> JSONObject:
    credit = Decimal("0.00002")
    return {
        "already": receipt.already,
        "tokens_charged": receipt.tokens,
        "cost_usd": shown(receipt.cost),
        "charge_usd": shown(receipt.charge),
        "uncollected_usd": shown(receipt.uncollected),
        "credits_charged": math.floor(receipt.charge / credit * 10**4) / Decimal(10**4),
        "balance_after_usd": shown(receipt.balance_after),
        "credits_after": math.floor(receipt.balance_after / credit * 10**4) / Decimal(10**4),
    }


@dataclass(frozen=True, slots=True)
class Expire(Operation):
    limit: int = 500

    def asked(self, world: World) -> JSONObject:
        del world
        return {"p_limit": self.limit}

    def call(self, world: World, connection: Connection, asked: JSONObject) -> Any:
        del world
        return call(connection, "expire_holds", **asked)

    def check(self, world: World, ran: Ran, passed_over: frozenset[str] = frozenset()) -> None:
        ended = world.model.expire(self.limit, passed_over)
        requests = [world.model.requests[request_id] for request_id in ended]
        assert ran.answer == {
            "expired": len(requests),
            "charged_usd": shown(sum((request.charge for request in requests), Decimal(0))),
            "released_usd": shown(sum((request.hold - request.charge for request in requests), Decimal(0))),
        }

    def locks(self, world: World) -> frozenset[str]:
        return frozenset(world.model.trial(lambda model: model.expire(self.limit)))


@dataclass(frozen=True, slots=True)
class Credit(Operation):
    """Money paid in, or taken back by a negative amount."""

    customer: int
    usd: Decimal
    reference: str | None = None

    def asked(self, world: World) -> JSONObject:
        return {
            "p_customer_id": pick(world.customer_ids, self.customer),
            "p_usd": self.usd,
            "p_reference": self.reference,
        }

    def call(self, world: World, connection: Connection, asked: JSONObject) -> Any:
        del world
        return call(connection, "add_credits", **asked)

    def check(self, world: World, ran: Ran, passed_over: frozenset[str] = frozenset()) -> None:
        del passed_over
        customer_id = ran.asked["p_customer_id"]
        came_to = world.model.add_credits(customer_id, self.usd, self.reference)
        customer = world.model.customers[customer_id]
        if came_to == "more_than_free":
            assert ran.answer == {"error": "more_than_free", "free_usd": shown(customer.free)}
        elif came_to == "reference_conflict":
            assert ran.answer == {"error": "reference_conflict"}
        else:
            assert ran.answer["duplicate"] is (came_to == "duplicate")
            assert ran.answer["balance_after_usd"] == shown(customer.balance)


@dataclass(frozen=True, slots=True)
class Pay(Operation):
    """An event of Stripe's about one of a few payments; those with one number are one event."""

    payment: int
    event: int | None
    told: tuple[str, int, bool, bool]
    """What it tells of (paid, refunded, refund or dispute), how many cents, and two facts of it."""

    def asked(self, world: World) -> JSONObject:
        what, cents, first, second = self.told
        intent = f"pi_{self.payment}"
        asked: JSONObject = {
            "id": f"evt_{uuid.uuid4()}" if self.event is None else f"evt_{intent}_{self.event}",
            "type": what,
            "created": datetime.now(UTC).isoformat(),
            "livemode": False,
            "payment_intent": intent,
        }
        match what:
            case "paid":
                customer_id = pick(world.customer_ids, self.payment)
                asked |= {"customer_id": customer_id, "currency": "usd", "paid_minor": cents}
            case "refunded":
                asked |= {"refunded_minor": cents}
            case "refund":
                asked |= {"refund": {"id": f"re_{intent}_{second}", "amount_minor": cents, "failed": first}}
            case _:
                dispute = {
                    "id": f"dp_{intent}",
                    "amount_minor": cents,
                    "withdrawn": first,
                    "returned": second,
                }
                asked |= {"dispute": dispute}
        return asked

    def call(self, world: World, connection: Connection, asked: JSONObject) -> Any:
        del world
        return call(connection, "record_payment_event", p_event=asked)

    def check(self, world: World, ran: Ran, passed_over: frozenset[str] = frozenset()) -> None:
        del passed_over
        came_to = world.model.pay(ran.asked["id"], ran.asked["payment_intent"], ran.asked)
        assert ran.answer["outcome"] == came_to
        assert ran.answer["unexpected"] is None


class OfTheOperator(Operation):
    __slots__ = ()

    @property
    def of_the_operator(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class SetLimit(OfTheOperator):
    """A limit of a key, of a key and one model or each, of a customer or of a service; soft: only a mark."""

    kind: str
    number: int
    metric: str
    per: str
    calls: int | None
    """How many calls of `echo` at its bound it is for."""
    soft: bool = False

    def _most(self) -> Decimal | int | None:
        if self.calls is None:
            return None
        if self.metric == "spend_usd":
            return self.calls * Decimal("0.0063")
        return self.calls * (1500 if self.metric == "tokens" else 1)

    def _subject(self, world: World) -> Subject:
        if self.kind == "customer":
            return Subject("customer", pick(world.customer_ids, self.number))
        if self.kind == "service":
            return Subject("service", pick(world.service_ids, self.number))
        key_id = pick(list(world.key_hashes), self.number)
        model_id = {"key": 0, "each model": -1}.get(self.kind)
        return Subject("key", key_id, world.models[self.kind].id if model_id is None else model_id)

    def asked(self, world: World) -> JSONObject:
        subject = self._subject(world)
        most = self._most()
        asked: JSONObject = {
            f"p_{subject.kind}_id": subject.id,
            "p_warn" if self.soft else "p_rate_limits": {
                f"{self.metric}_per_{self.per}": most if not isinstance(most, Decimal) else str(most)
            },
        }
        if subject.model_id:
            asked |= {"p_each_model": True} if subject.model_id == -1 else {"p_model": self.kind}
        return asked

    def call(self, world: World, connection: Connection, asked: JSONObject) -> Any:
        del world
        return call(connection, "set_limits", **asked)

    def check(self, world: World, ran: Ran, passed_over: frozenset[str] = frozenset()) -> None:
        del passed_over
        subject = self._subject(world)
        change = world.model.set_mark if self.soft else world.model.set_limit
        change(subject, self.metric, self.per, self._most())
        found = ran.answer["warn" if self.soft else "rate_limits"].get(f"{self.metric}_per_{self.per}")
        assert (found if found is None else Decimal(found)) == self._most()


@dataclass(frozen=True, slots=True)
class SetPrice(OfTheOperator):
    """A new price of a model: so many halves of the catalogue's, from now or from some day on."""

    name: str
    halves: int
    service: int | None = None
    ahead: bool = False
    further: int | None = 0
    """By how many tokens its tiers begin later; None: it has none any more."""

    def _prices(self) -> JSONObject:
        """All rates of it and of its tiers."""
        return {
            name: [
                {**self._times(tier), "above_input_tokens": tier["above_input_tokens"] + self.further}
                for tier in price
            ]
            if name == "tiers"
            else self._times({name: price})[name]
            for name, price in CATALOGUE[self.name].items()
            if name != "tiers" or self.further is not None
        }

    def _times(self, rates: JSONObject) -> dict[str, str]:
        # what the table rounds is no price that the model could know
        return {
            name: str(round(Decimal(rate) * self.halves / 2, 10))
            for name, rate in rates.items()
            if name != "above_input_tokens"
        }

    def asked(self, world: World) -> JSONObject:
        return {
            "p_model": self.name,
            "p_provider": PROVIDER,
            "p_prices": self._prices(),
            "p_service_id": None if self.service is None else pick(world.service_ids, self.service),
            "p_effective_from": datetime.now(UTC) + timedelta(days=next(DAYS_AHEAD)) if self.ahead else None,
        }

    def call(self, world: World, connection: Connection, asked: JSONObject) -> Any:
        del world
        return call(connection, "create_price", **asked)

    def check(self, world: World, ran: Ran, passed_over: frozenset[str] = frozenset()) -> None:
        del passed_over
        assert "error" not in ran.answer, ran.answer
        if not self.ahead:
            world.model.prices[self.name, ran.asked["p_service_id"]] = read_prices(ran.asked["p_prices"])


@dataclass(frozen=True, slots=True)
class Change(OfTheOperator):
    """A change of one of the settings."""

    name: str
    value: str | int | None

    def asked(self, world: World) -> JSONObject:
        del world
        return {"p_changes": {self.name: self.value}}

    def call(self, world: World, connection: Connection, asked: JSONObject) -> Any:
        del world
        return call(connection, "change_settings", **asked)

    def check(self, world: World, ran: Ran, passed_over: frozenset[str] = frozenset()) -> None:
        del passed_over, ran
        is_number = self.name in {"commission_percent", "flat_usd_per_1k_tokens"}
        setattr(world.model.settings, self.name, Decimal(str(self.value)) if is_number else self.value)


@dataclass(frozen=True, slots=True)
class Suspend(OfTheOperator):
    """By hand, as in Studio."""

    customer: int
    active: bool

    def asked(self, world: World) -> JSONObject:
        return {"customer_id": pick(world.customer_ids, self.customer)}

    def call(self, world: World, connection: Connection, asked: JSONObject) -> Any:
        del world
        return connection.execute(
            "update gateway.customers set active = %s where id = %s", [self.active, asked["customer_id"]]
        ).rowcount

    def check(self, world: World, ran: Ran, passed_over: frozenset[str] = frozenset()) -> None:
        del passed_over
        assert ran.answer == 1
        world.model.customers[ran.asked["customer_id"]].active = self.active


# What only time does, or the housekeeping: never beside a call that is under way


@dataclass(frozen=True, slots=True)
class Lapse:
    """The lease of one of the running requests runs out, and this follows before anybody else can end it."""

    request: int
    then: Step | Overlap | None

    def run(self, world: World) -> None:
        admission = world.chosen(self.request, "held")
        if admission is not None:
            world.engine.lapse(admission)
            world.model.lapse(admission["request_id"])
        if self.then is not None:
            self.then.run(world)


@dataclass(frozen=True, slots=True)
class Pass:
    """So much time passes that windows of this length, and of shorter ones, are over."""

    per: str

    def run(self, world: World) -> None:
        windows, by = PASSING[self.per]
        with world.engine.by_engine():
            world.engine.run(
                "update gateway.limit_counters set window_start = window_start - %s where per = any (%s)",
                by,
                list(windows),
            )
            world.engine.run(
                "update gateway.requests as r set counted = array("
                "select (c.subject, c.subject_id, c.model_id, c.per,"
                " case when c.per = any (%s) then c.window_start - %s else c.window_start end,"
                " c.requests, c.tokens, c.spend_usd)::gateway.counted from unnest(r.counted) as c)",
                list(windows),
                by,
            )
            if "day" in windows:
                world.engine.run("update gateway.idempotency_keys set created_at = created_at - %s", by)
        world.model.pass_time(windows, by)


@dataclass(frozen=True, slots=True)
class Forget:
    """Old Idempotency-Keys are swept out."""

    def run(self, world: World) -> None:
        assert world.engine.call("forget_idempotency_keys") == world.model.forget_keys()


@dataclass(frozen=True, slots=True)
class Overlap:
    first: Operation
    second: Operation
    kept: bool

    def run(self, world: World) -> None:
        world.overlap(self.first, self.second, kept=self.kept)


@dataclass(frozen=True, slots=True)
class Step:
    operation: Operation

    def run(self, world: World) -> None:
        world.step(self.operation)


# Programs

counts = st.integers(0, 7)
usages = st.one_of(
    st.none(),
    st.tuples(st.just(("input", 1000)), st.just(("output", 500))),
    # at the edge of a tier, where a cached token counts as any other
    st.tuples(
        st.tuples(st.just("input"), st.sampled_from([500, 501, 1000])),
        st.tuples(st.sampled_from(["cached_input", "cache_write"]), st.sampled_from([0, 500, 501])),
        st.just(("output", 500)),
    ),
    st.lists(
        st.tuples(
            st.sampled_from([
                "input", "cached_input", "cache_write", "audio_input", "image_input",
                "output", "reasoning", "audio_output", "image_output", "images", "cache_write_1h",
            ]),
            st.one_of(st.integers(0, 3), st.integers(0, 900), st.integers(2_000, 20_000)),
        ),
        max_size=4,
        unique_by=lambda pair: pair[0],
    ).map(tuple),
)  # fmt: skip
outcomes = st.sampled_from(["succeeded", "succeeded", "failed", "cancelled", "cut"])
admits = st.builds(
    Admit,
    key=st.integers(0, 2),
    models=st.sampled_from(
        [("echo",), ("echo",), ("echo", "dear"), ("dear", "echo"), ("odd", "echo"), ("odd",)]
    ),
    input_bound=st.sampled_from([0, 10, 1000, 1000, 1000, 1001, 1777, None]),
    max_output_tokens=st.sampled_from([None, None, 0, 1, 500, 500, 500, 500, 3000]),
    choices=st.sampled_from([1, 1, 1, 3]),
    media_output=st.sampled_from([False, False, True]),
    idempotency_key=st.sampled_from([None, None, "a", "a", "b"]),
    body=st.sampled_from(["body", "body", "body", "other"]),
)
# the plain call, again and again: what brings limits and balances to their ends
plain_admits = st.builds(Admit, key=st.integers(0, 2), idempotency_key=st.sampled_from([None, "a"]))
settles = st.builds(
    Settle,
    request=counts,
    usage=usages,
    outcome=outcomes,
    route=counts,
    again=st.sampled_from([False, False, False, False, True]),
)
expiries = st.builds(Expire, limit=st.sampled_from([500, 500, 1, 2]))
top_ups = st.builds(
    Credit,
    customer=st.integers(0, 1),
    usd=st.sampled_from(
        [
            Decimal("0.05"),
            Decimal("0.0063"),
            Decimal("0.0000000001"),
            Decimal("-0.0063"),
            Decimal("-0.02"),
            Decimal("-0.0000000001"),
        ]
    ),
    reference=st.sampled_from([None, None, "payment 1", "payment 2"]),
)
payments = st.builds(
    Pay,
    payment=st.integers(0, 2),
    event=st.sampled_from([None, None, None, 0, 1]),
    told=st.one_of(
        st.tuples(st.just("paid"), st.integers(1, 6), st.just(False), st.just(False)),
        st.tuples(
            st.sampled_from(["refunded", "refund", "dispute"]),
            st.integers(0, 7),
            st.booleans(),
            st.booleans(),
        ),
    ),
)
limits = st.builds(
    SetLimit,
    kind=st.sampled_from(["key", "each model", "echo", "odd", "customer", "service"]),
    number=counts,
    metric=st.sampled_from(["requests", "tokens", "spend_usd"]),
    per=st.sampled_from(WINDOWS),
    calls=st.sampled_from([None, 0, 1, 2, 2, 3, 5]),
    soft=st.sampled_from([False, False, False, True]),
)
prices = st.builds(
    SetPrice,
    name=st.sampled_from(["echo", "echo", "echo", "dear", "odd"]),
    halves=st.integers(0, 4),
    service=st.one_of(st.none(), st.integers(0, 1)),
    ahead=st.sampled_from([False, False, False, True]),
    further=st.sampled_from([0, 0, 1, 500, None]),
)
settings_of_terms: list[tuple[str, str | int | None]] = [
    ("commission_percent", "0"), ("commission_percent", "12.345678"), ("commission_percent", "50"),
    ("billing_mode", "flat"), ("billing_mode", "markup"),
    ("flat_usd_per_1k_tokens", "0.0033333333"), ("flat_usd_per_1k_tokens", "0"),
    ("default_max_output_tokens", 16), ("default_max_output_tokens", 100),
    ("expired_hold_policy", "charge"), ("expired_hold_policy", "charge"), ("expired_hold_policy", "release"),
]  # fmt: skip
changes_of_terms = st.sampled_from(settings_of_terms).map(lambda change: Change(*change))
settings_of_limits: list[tuple[str, str | int | None]] = [
    ("default_requests_per_minute", None), ("default_requests_per_minute", 2),
    ("default_requests_per_minute", 60),
    ("default_tokens_per_minute", None), ("default_tokens_per_minute", 4000),
]  # fmt: skip
changes_of_limits = st.sampled_from(settings_of_limits).map(lambda change: Change(*change))
suspensions = st.builds(Suspend, customer=st.integers(0, 1), active=st.sampled_from([True, True, False]))


def weighed(*choices: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """One of these, each as often as its weight says: `one_of` would give every leaf of a tree the same."""
    drawn = [strategy for weight, strategy in choices for _ in range(weight)]
    return st.sampled_from(range(len(drawn))).flatmap(drawn.__getitem__)


calls_of_clients = weighed(
    (2, admits), (3, plain_admits), (4, settles), (2, expiries), (1, top_ups), (2, payments)
)
calls_of_operators = weighed(
    (4, limits), (2, prices), (2, changes_of_terms), (1, changes_of_limits), (1, suspensions)
)
operations = weighed((3, calls_of_clients), (1, calls_of_operators))
last_ones = st.integers(0, 2)
ends = st.one_of(expiries, st.builds(Settle, last_ones, usages, outcomes))
follow_ups = st.one_of(
    st.none(), st.builds(Step, expiries), st.builds(Overlap, ends, st.one_of(ends, operations), st.booleans())
)
steps = weighed(
    (6, st.builds(Step, operations)),
    (5, st.builds(Overlap, operations, operations, st.sampled_from([True, True, False]))),
    (3, st.builds(Lapse, last_ones, follow_ups)),
    (1, st.builds(Pass, st.sampled_from(WINDOWS))),
    (1, st.just(Forget())),
)
