"""Services that fail are set aside: tried last, never dropped, and back by the first answer.

The two services of `echo` here: the first by its priority, and the one that stands in for it.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from tests.database.conftest import empty
from tests.database.engine import Engine, call, race

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.database.engine import Customer, JSONObject
    from tests.fixtures.database import Connection

TRANSIENT = {"fault": "transient", "status": 503}
REFUSED = {"fault": "operator", "status": 401}


@dataclass(slots=True)
class Pair:
    """A customer, and two services that sell it `echo`."""

    engine: Engine
    customer: Customer
    first: int
    second: int

    def order(self, *models: str) -> list[int]:
        """The services in the order in which a request would try them. It is ended without a word of them."""
        admission = self.admitted(*models)
        self.engine.fail(admission)
        return services(admission)

    def admitted(self, *models: str) -> JSONObject:
        return self.engine.admitted(self.customer.key_hash, p_models=list(models or ("echo",)))

    def failed(self, admission: JSONObject, service: int, failure: JSONObject) -> None:
        """The service failed, and so did the request."""
        self.engine.fail(admission, failed_routes=[failed(admission, service, failure)])

    def fail(self, failure: JSONObject, *, times: int = 1, service: int | None = None) -> None:
        for _ in range(times):
            self.failed(self.admitted(), service or self.first, failure)

    def succeed(self, service: int) -> None:
        admission = self.admitted()
        self.engine.settle(admission, route_id=route(admission, service))

    def wait(self, seconds: float) -> None:
        pass_time(self.engine, seconds)

    def health(self, service: int | None = None) -> list[JSONObject]:
        told: list[JSONObject] = self.engine.value(
            "select gateway.describe_health(%s)", service or self.first
        )
        return told

    def aside_for(self) -> float | None:
        """For how many seconds after its last failure the first service is set aside."""
        seconds = self.engine.value(
            "select round(extract(epoch from set_aside_until - last_failure_at), 3)::float8"
            " from gateway.service_health where service_id = %s",
            self.first,
        )
        return None if seconds is None else float(seconds)

    def events(self) -> list[tuple[str, JSONObject]]:
        rows = self.engine.query("select kind, data from gateway.events order by at")
        return [(row[0], row[1]) for row in rows]


def services(admission: JSONObject) -> list[int]:
    return [candidate["service_id"] for candidate in admission["candidates"]]


def route(admission: JSONObject, service: int) -> int:
    return int(next(one["route_id"] for one in admission["candidates"] if one["service_id"] == service))


def failed(admission: JSONObject, service: int, failure: JSONObject) -> JSONObject:
    return {"route_id": route(admission, service), "service_id": service, "after_ms": 0, **failure}


def pass_time(engine: Engine, seconds: float) -> None:
    """What failed is so much longer ago."""
    columns = ("failing_since", "last_failure_at", "set_aside_until", "probing_until")
    earlier = ", ".join(f"{column} = {column} - interval '{seconds} seconds'" for column in columns)
    engine.run(f"update gateway.service_health set {earlier}")


@pytest.fixture
def pair(engine: Engine) -> Pair:
    engine.run("update gateway.services set active = false")
    first = engine.service(["echo"], priority=10)
    second = engine.service(["echo"], priority=20)
    return Pair(engine, engine.customer("1000", requests_per_minute=100_000), first, second)


def test_what_answers_leaves_no_trace(pair: Pair) -> None:
    for _ in range(3):
        pair.succeed(pair.first)
    assert pair.engine.value("select count(*) from gateway.service_health") == 0
    assert pair.order() == [pair.first, pair.second]


def test_three_failures_in_a_row_set_a_service_aside(pair: Pair) -> None:
    pair.fail(TRANSIENT, times=2)
    assert pair.order() == [pair.first, pair.second]
    pair.fail(TRANSIENT)
    assert pair.order() == [pair.second, pair.first]
    assert pair.aside_for() == 30
    (told,) = pair.health()
    assert (told["failures"], told["last_status"], told["last_fault"], told["model"]) == (
        3,
        503,
        "transient",
        None,
    )


def test_a_success_in_between_begins_the_count_anew(pair: Pair) -> None:
    pair.fail(TRANSIENT, times=2)
    pair.succeed(pair.first)
    assert pair.health() == []
    pair.fail(TRANSIENT, times=2)
    assert pair.order() == [pair.first, pair.second]


def test_failures_a_minute_apart_are_not_in_a_row(pair: Pair) -> None:
    for _ in range(4):
        pair.fail(TRANSIENT, times=2)
        pair.wait(61)
    assert pair.order() == [pair.first, pair.second]


def test_an_answer_that_is_none_counts_as_a_failure(pair: Pair) -> None:
    pair.fail({"fault": "protocol", "status": None}, times=3)
    assert pair.order() == [pair.second, pair.first]


def test_what_the_client_got_wrong_says_nothing_of_the_service(pair: Pair) -> None:
    pair.fail({"fault": "client", "status": 400}, times=5)
    assert pair.health() == []


def test_a_refused_key_sets_the_service_aside_at_once(pair: Pair) -> None:
    pair.fail(REFUSED)
    assert pair.order() == [pair.second, pair.first]
    assert pair.aside_for() == 60


def test_the_only_service_is_never_dropped(pair: Pair) -> None:
    pair.engine.run("update gateway.services set active = false where id = %s", pair.second)
    for _ in range(5):
        admission = pair.admitted()
        pair.engine.fail(admission, failed_routes=[failed(admission, pair.first, TRANSIENT)])
    assert pair.order() == [pair.first]


def test_where_all_are_set_aside_the_one_that_failed_longest_ago_is_tried_first(pair: Pair) -> None:
    pair.fail(REFUSED, service=pair.second)
    pair.wait(5)
    pair.fail(REFUSED)
    assert pair.order() == [pair.second, pair.first]
    pair.wait(200)
    pair.fail(REFUSED)
    pair.wait(5)
    pair.fail(REFUSED, service=pair.second)
    assert pair.order() == [pair.first, pair.second]
    assert len(pair.health()) == len(pair.health(pair.second)) == 1


def test_a_service_aside_comes_after_the_clients_other_models(pair: Pair) -> None:
    pair.engine.model("other")
    third = pair.engine.service(["other"], priority=99)
    pair.fail(REFUSED)
    pair.wait(1)
    pair.fail(REFUSED, service=pair.second)
    assert pair.order("echo", "other") == [third, pair.first, pair.second]


def test_each_time_it_is_for_twice_as_long_up_to_ten_minutes(pair: Pair) -> None:
    pair.fail(TRANSIENT, times=3)
    for seconds in (60, 120, 240, 480, 600, 600):
        aside = pair.aside_for()
        assert aside is not None
        pair.wait(aside + 1)
        pair.fail(TRANSIENT)
        assert pair.aside_for() == seconds


def test_the_provider_says_for_how_long(pair: Pair) -> None:
    pair.fail({"fault": "transient", "status": 429, "retry_after": 30})
    assert pair.order() == [pair.second, pair.first]
    assert pair.aside_for() == 30
    pair.wait(31)
    assert pair.order() == [pair.first, pair.second]
    # a rate limit is no failure, and nobody is called for it
    assert pair.health()[0]["failures"] == 0
    assert pair.events() == []


def test_a_longer_wait_that_is_told_later_holds(pair: Pair) -> None:
    for seconds, holds in ((10, 10), (40, 40), (20, 40), (4000, 3600)):
        pair.fail({"fault": "transient", "status": 503, "retry_after": seconds})
        assert pair.aside_for() == pytest.approx(holds, abs=1)


@pytest.mark.parametrize(
    "failure", [{"fault": "operator", "status": 404}, {**TRANSIENT, "status": 429, "retry_after": 9}]
)
def test_what_concerns_one_model_leaves_the_service_to_the_others(pair: Pair, failure: JSONObject) -> None:
    pair.engine.model("other")
    for service in (pair.first, pair.second):
        told = pair.engine.call(
            "update_service", p_id=service, p_changes={"enabled_models": ["echo", "other"]}
        )
        assert "error" not in told
    pair.fail(failure)
    assert pair.order("echo") == [pair.second, pair.first]
    assert pair.order("other") == [pair.first, pair.second]
    assert [told["model"] for told in pair.health()] == ["echo"]


# Coming back


def test_one_request_probes_and_the_others_go_elsewhere(pair: Pair) -> None:
    pair.fail(TRANSIENT, times=3)
    pair.wait(31)
    admissions = race(
        pair.engine.database,
        8,
        lambda connection, _: pair.engine.admitted(pair.customer.key_hash, connection=connection),
    )
    tried_first = sorted(services(admission)[0] for admission in admissions)
    assert tried_first == sorted([pair.first] + [pair.second] * 7)
    # one that tells nothing, because its function was killed, keeps nobody from probing for long
    pair.wait(31)
    assert services(pair.admitted())[0] == pair.first


def test_a_probe_that_succeeds_brings_the_service_back(pair: Pair) -> None:
    pair.fail(TRANSIENT, times=3)
    pair.wait(31)
    pair.succeed(pair.first)
    assert pair.health() == []
    assert pair.order() == [pair.first, pair.second]
    assert [kind for kind, _ in pair.events()] == ["provider.failing", "provider.recovered"]


def test_a_probe_that_fails_keeps_it_away(pair: Pair) -> None:
    pair.fail(TRANSIENT, times=3)
    pair.wait(31)
    pair.fail(TRANSIENT)
    assert pair.order() == [pair.second, pair.first]
    assert pair.aside_for() == 60


def test_an_old_stream_that_ends_well_does_not_bring_a_service_back(pair: Pair) -> None:
    old = pair.admitted()
    pair.fail(TRANSIENT, times=3)
    pair.engine.settle(old, route_id=route(old, pair.first), latency_ms=60_000, time_to_first_token_ms=0)
    assert pair.order() == [pair.second, pair.first]


def test_an_answer_to_a_later_call_brings_it_back_whoever_sent_it(pair: Pair) -> None:
    pair.fail(TRANSIENT, times=3)
    pair.succeed(pair.first)  # the second had failed within that request, say
    assert pair.health() == []


def test_failures_of_calls_that_were_under_way_do_not_add_to_it(pair: Pair) -> None:
    under_way = [pair.admitted() for _ in range(5)]
    pair.fail(TRANSIENT, times=3)
    for admission in under_way:
        pair.failed(admission, pair.first, TRANSIENT)
    assert pair.aside_for() == 30
    assert pair.health()[0]["failures"] == 3


def test_a_settlement_that_comes_late_says_nothing_of_now(pair: Pair) -> None:
    admission = pair.admitted()
    with pair.engine.by_engine():
        pair.engine.run(
            "update gateway.requests set admitted_at = admitted_at - interval '11 minutes' where id = %s",
            admission["request_id"],
        )
    admission["admitted_at"] = pair.engine.request(admission["request_id"])["admitted_at"]
    pair.failed(admission, pair.first, REFUSED)
    assert pair.health() == []


def test_a_stand_in_that_answers_is_not_held_responsible(pair: Pair) -> None:
    for _ in range(4):
        admission = pair.admitted()
        told = [failed(admission, pair.first, TRANSIENT)]
        pair.engine.settle(admission, route_id=route(admission, pair.second), failed_routes=told)
    assert (len(pair.health()), pair.health(pair.second)) == (1, [])
    assert pair.order() == [pair.second, pair.first]


def test_a_failure_counts_from_when_it_happened(pair: Pair) -> None:
    admission = pair.admitted()
    with pair.engine.by_engine():
        pair.engine.run(
            "update gateway.requests set admitted_at = admitted_at - interval '40 seconds' where id = %s",
            admission["request_id"],
        )
    admission["admitted_at"] = pair.engine.request(admission["request_id"])["admitted_at"]
    # it failed 20 s ago; the stand-in's answer has taken until now
    pair.failed(admission, pair.first, {**REFUSED, "after_ms": 20_000})
    left = pair.engine.value(
        "select extract(epoch from set_aside_until - clock_timestamp())::float8 from gateway.service_health"
    )
    assert 39 < left < 40.5


def test_a_service_that_answers_in_the_end_has_not_failed(pair: Pair) -> None:
    """It was tried again in the same request, as it had said."""
    pair.fail(TRANSIENT, times=2)
    for _ in range(4):
        admission = pair.admitted()
        pair.engine.settle(admission, failed_routes=[failed(admission, pair.first, TRANSIENT)])
    assert pair.health() == []
    assert pair.events() == []


def test_several_tries_of_one_request_are_one_failure(pair: Pair) -> None:
    admission = pair.admitted()
    tries = [failed(admission, pair.first, TRANSIENT)] * 4
    pair.engine.settle(admission, route_id=route(admission, pair.second), failed_routes=tries)
    assert pair.health()[0]["failures"] == 1


@pytest.mark.parametrize(
    "told",
    [
        {"status": "503", "after_ms": "soon", "retry_after": {}},
        {"status": 10**30, "after_ms": -5, "retry_after": -1},
        {"status": None, "after_ms": 10**30, "retry_after": 10**30},
        {"fault": 7},
        {"fault": None},
        {"fault": "unheard of"},
    ],
)
def test_no_settlement_fails_for_what_is_told_of_a_failure(pair: Pair, told: JSONObject) -> None:
    admission = pair.admitted()
    settled = pair.engine.settle(
        admission,
        route_id=route(admission, pair.second),
        failed_routes=[{**failed(admission, pair.first, TRANSIENT), **told}],
    )
    assert settled["status"] == "settled"


# The operator


def test_the_operator_is_told_once_for_each_time(pair: Pair) -> None:
    pair.engine.settings(webhook_url="https://hooks.example.com/", webhook_secret="v1.sealed")
    pair.fail(REFUSED, times=3)
    ((kind, told),) = pair.events()
    assert kind == "provider.failing"
    assert told | {"failing_since": None, "set_aside_until": None} == {
        "service_id": pair.first,
        "service": f"service {pair.first}",
        "provider": "openai-compatible",
        "model": None,
        "fault": "operator",
        "status": 401,
        "failures": 1,
        "failing_since": None,
        "set_aside_until": None,
    }
    assert pair.engine.value("select count(*) from gateway.event_deliveries") == 1
    pair.wait(61)
    pair.fail(REFUSED)
    assert [kind for kind, _ in pair.events()] == ["provider.failing"] * 2


@pytest.mark.parametrize(
    "change", [{"provider_key": "v1.new"}, {"active": True}, {"base_url": "https://x.example/v1"}]
)
def test_mending_a_service_takes_it_back_at_once(pair: Pair, change: JSONObject) -> None:
    pair.fail(REFUSED)
    told = pair.engine.call("update_service", p_id=pair.first, p_changes=change)
    assert told["health"] == []
    assert pair.order() == [pair.first, pair.second]


def test_renaming_a_service_does_not(pair: Pair) -> None:
    pair.fail(REFUSED)
    told = pair.engine.call("update_service", p_id=pair.first, p_changes={"name": "other"})
    assert told["health"][0]["last_status"] == 401


def test_the_monitor_is_told_what_is_set_aside(pair: Pair) -> None:
    pair.fail(REFUSED)
    shown = {each["service_id"]: each for each in pair.engine.call("read_service_health")}
    assert shown[pair.first]["failing_since"]
    assert shown[pair.first]["set_aside_until"]
    assert (shown[pair.second]["failing_since"], shown[pair.second]["set_aside_until"]) == (None, None)
    pair.wait(61)
    assert pair.engine.call("read_service_health")[1]["set_aside_until"] is None


# Side by side


def test_failures_that_end_at_once_are_counted_and_told_once(pair: Pair) -> None:
    admissions = [pair.admitted() for _ in range(12)]

    def end(connection: Connection, number: int) -> None:
        admission = admissions[number]
        pair.engine.settle(
            admission,
            connection=connection,
            route_id=route(admission, pair.second),
            failed_routes=[failed(admission, pair.first, TRANSIENT)],
        )

    race(pair.engine.database, 12, end)
    assert pair.health()[0]["failures"] == 3
    assert [kind for kind, _ in pair.events()] == ["provider.failing"]
    pair.engine.assert_books_agree()


def test_failures_of_two_services_in_either_order_do_not_block_each_other(pair: Pair) -> None:
    for _ in range(4):
        pair.engine.run("delete from gateway.service_health")
        customers = [pair.engine.customer("1000") for _ in range(8)]  # no account puts them in a row

        def end(connection: Connection, number: int, customers: Sequence[Customer] = customers) -> None:
            admission = pair.engine.admitted(customers[number].key_hash, connection=connection)
            both = [failed(admission, one, TRANSIENT) for one in (pair.first, pair.second)]
            pair.engine.fail(
                admission, connection=connection, failed_routes=both if number % 2 else both[::-1]
            )

        race(pair.engine.database, 8, end)
        assert [pair.health(one)[0]["failures"] for one in (pair.first, pair.second)] == [3, 3]
    pair.engine.assert_books_agree()


def test_an_answer_waits_for_nobody_who_counts_a_failure(pair: Pair) -> None:
    pair.fail(TRANSIENT)
    admission = pair.admitted()
    with pair.engine.database.connect(autocommit=False) as other:
        other.execute("select from gateway.service_health for update")
        pair.engine.run("set lock_timeout = '2s'")
        assert pair.engine.settle(admission)["status"] == "settled"
        # nor does an admission, though it would probe
        other.execute(
            "update gateway.service_health set set_asides = 1, set_aside_until = now() - interval '1 second'"
        )
        other.commit()
        other.execute("select from gateway.service_health for update")
        assert services(pair.admitted()) == [pair.second, pair.first]
    assert services(pair.admitted()) == [pair.first, pair.second]


def test_in_an_outage_nobody_waits_once_the_service_is_aside(pair: Pair) -> None:
    pair.fail(REFUSED)
    admission = pair.admitted()
    with pair.engine.database.connect(autocommit=False) as other:
        other.execute("select from gateway.service_health for update")
        pair.engine.run("set lock_timeout = '2s'")
        pair.failed(admission, pair.first, REFUSED)


# Order


def test_traffic_follows_the_weights(pair: Pair) -> None:
    third = pair.engine.service(["echo"], priority=10)
    pair.engine.run("update gateway.services set priority = 10 where id = %s", pair.second)
    weights = {pair.first: 1, pair.second: 2, third: 5}
    for service, weight in weights.items():
        told = pair.engine.call(
            "update_service",
            p_id=service,
            p_changes={"enabled_models": [{"model": "echo", "weight": weight}]},
        )
        assert told["routes"][0]["weight"] == weight
    draws = 6000
    rows = pair.engine.query(
        "select o.services, count(*) from generate_series(1, %s) as n cross join lateral (select"
        " array_agg(c.service_id order by c.ordinality) as services from unnest(gateway.resolve_candidates("
        " case when n > 0 then array['echo'] end, null, null, null, false, false))"
        " with ordinality as c) as o group by 1",
        draws,
    )
    found = {tuple(row[0]): row[1] for row in rows}
    assert sum(found.values()) == draws
    squares = 0.0
    for order in itertools.permutations(weights):
        # each place is drawn by weight from those that are left
        one, two, last = (weights[service] for service in order)
        expected = draws * (one / 8) * (two / (two + last))
        squares += (found.get(order, 0) - expected) ** 2 / expected
    assert squares < 30  # chi-square of 5 degrees of freedom: exceeded once in 70,000 runs


def test_a_routes_own_priority_goes_before_the_services(pair: Pair) -> None:
    told = pair.engine.call(
        "update_service", p_id=pair.second, p_changes={"enabled_models": [{"model": "echo", "priority": 1}]}
    )
    assert told["routes"][0]["priority"] == 1
    assert pair.order() == [pair.second, pair.first]
    # a name alone leaves it as it is; null gives it back to the service
    pair.engine.call("update_service", p_id=pair.second, p_changes={"enabled_models": ["echo"]})
    assert pair.order() == [pair.second, pair.first]
    pair.engine.call(
        "update_service",
        p_id=pair.second,
        p_changes={"enabled_models": [{"model": "echo", "priority": None}]},
    )
    assert pair.order() == [pair.first, pair.second]


def test_a_route_can_be_off_and_keep_its_place(pair: Pair) -> None:
    off = [{"model": "echo", "priority": 1, "weight": 3, "active": False}]
    told = pair.engine.call("update_service", p_id=pair.second, p_changes={"enabled_models": off})
    assert told["enabled_models"] == []
    assert pair.order() == [pair.first]
    told = pair.engine.call("update_service", p_id=pair.second, p_changes={"enabled_models": ["echo"]})
    (shown,) = told["routes"]
    assert (shown["priority"], shown["weight"], shown["active"]) == (1, 3, True)


# Against a model of it, in any order of events

WAITS = (7, 28, 35, 63, 126, 602)
"""Multiples of seven: no sum of them is within a second of 30, 60, … 600 s, or of what is below."""
LONGEST = 0.9
"""Seconds that one course of events may take of its own."""
FAILURES: tuple[JSONObject, ...] = (
    TRANSIENT,
    TRANSIENT,
    {"fault": "protocol", "status": None},
    REFUSED,
    {"fault": "operator", "status": 404},
    {"fault": "client", "status": 400},
    {"fault": "operator", "status": 429, "retry_after": 12},
    {"fault": "transient", "status": 429, "retry_after": 12},
    {"fault": "transient", "status": 429},
    {"fault": "transient", "status": 503, "retry_after": 40},
)
Moment = tuple[int, int]
"""Seconds, and the number of the admission: what happens in one second has its order, too."""


@dataclass(slots=True)
class Row:
    failures: int
    last: Moment
    asides: int = 0
    until: Moment | None = None
    """Of the admission that failed, so many seconds on: of two that failed in one second, the later one's."""
    probing: int | None = None

    def is_aside(self, now: int) -> bool:
        ends = (self.until and self.until[0], self.probing)
        return any(end is not None and end > now for end in ends)


@dataclass(slots=True)
class Expected:
    """What the comment in record_health.sql says, in plain Python."""

    services: Sequence[int]
    """In the order of their priorities. One model, so a route is a service's."""
    rows: dict[tuple[int, bool], Row] = field(default_factory=dict)
    now: int = 0
    events: list[str] = field(default_factory=list)

    def of(self, service: int) -> list[Row]:
        return [self.rows[key] for key in ((service, False), (service, True)) if key in self.rows]

    def order(self) -> list[int]:
        aside = [one for one in self.services if any(row.is_aside(self.now) for row in self.of(one))]
        order = [one for one in self.services if one not in aside]
        order += sorted(aside, key=lambda one: max(row.last for row in self.of(one)))
        first = self.of(order[0])
        if order[0] not in aside and any(row.asides for row in first):
            for row in first:
                if row.asides:
                    row.probing = self.now + 30
        return order

    def fail(self, service: int, failure: JSONObject, at: Moment) -> None:
        if failure["fault"] == "client" or self.now - at[0] > 600:
            return
        is_rate_limit = (failure["status"], failure["fault"]) == (429, "transient")
        key = (service, is_rate_limit or failure["status"] == 404)
        wait = failure.get("retry_after")
        told = None if wait is None else (at[0] + wait, at[1])
        row = self.rows.get(key)
        # aside until after this failure, and for as long as the provider now says
        if row and row.until is not None and row.until >= max(at, told or at):
            return
        row = row or Row(0, at)
        self.rows[key] = row
        counts = not is_rate_limit or wait is None
        if counts and not row.asides and at[0] - row.last[0] > 60:
            row.failures = 0
        row.failures += counts
        row.last = max(row.last, at)
        row.until = max((end for end in (row.until, told) if end is not None), default=None)
        row.probing = None
        if counts and (failure["fault"] == "operator" or row.asides or row.failures >= 3):
            row.asides += 1
            pause = (60 if failure["fault"] == "operator" else 30) * 2 ** (row.asides - 1)
            end = (at[0] + min(pause, 600), at[1])
            row.until = max(row.until or end, end)
            self.events.append("provider.failing")

    def succeed(self, service: int, at: Moment) -> None:
        for key in ((service, False), (service, True)):
            row = self.rows.get(key)
            if row and (row.until is None or row.last < at):
                del self.rows[key]
                if row.asides:
                    self.events.append("provider.recovered")


calls = st.tuples(st.just("admit"), st.just(0), st.just(()))
ends = st.tuples(
    st.just("end"), st.integers(0, 3), st.lists(st.sampled_from(FAILURES), max_size=3).map(tuple)
)
waits = st.tuples(st.just("wait"), st.sampled_from(WAITS), st.just(()))


@pytest.fixture(scope="module")
def trio(engine_database: Any) -> Iterator[tuple[Engine, Customer, list[int]]]:
    empty(engine_database.url)
    with engine_database.connect() as connection:
        engine = Engine(engine_database, connection)
        engine.model("echo")
        made = [engine.service(["echo"], priority=priority) for priority in (1, 2, 3)]
        yield engine, engine.customer("10000000", requests_per_minute=1_000_000), made


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.lists(st.one_of(calls, ends, ends, waits), min_size=4, max_size=30))
def test_any_course_of_events_comes_to_what_is_written(
    trio: tuple[Engine, Customer, list[int]], events: list[tuple[str, int, tuple[JSONObject, ...]]]
) -> None:
    began = time.monotonic()
    try:
        follow(*trio, events)
    except AssertionError:
        if time.monotonic() - began > LONGEST:
            reject()  # the machine stood still meanwhile, and time has run on
        raise


def follow(
    engine: Engine,
    customer: Customer,
    made: list[int],
    events: list[tuple[str, int, tuple[JSONObject, ...]]],
) -> None:
    """Let these events come to pass, here and in the model, and compare what each makes of them."""
    engine.run("delete from gateway.service_health")
    engine.run("delete from gateway.events")
    expected = Expected(made)
    running: list[tuple[JSONObject, Moment]] = []
    numbers = itertools.count()
    for kind, number, failures in events:
        if kind == "wait":
            expected.now += number
            pass_time(engine, number)
            for admission, _ in running:
                with engine.by_engine():
                    engine.run(
                        "update gateway.requests set admitted_at = admitted_at - %s where id = %s",
                        timedelta(seconds=number),
                        admission["request_id"],
                    )
                admission["admitted_at"] = engine.request(admission["request_id"])["admitted_at"]
            continue
        if kind == "admit" or not running:
            admission = engine.admitted(customer.key_hash)
            assert services(admission) == expected.order()
            running.append((admission, (expected.now, next(numbers))))
            continue
        admission, at = running.pop(number % len(running))
        tried = services(admission)
        told = [failed(admission, one, how) for one, how in zip(tried, failures, strict=False)]
        answered = tried[len(told)] if len(told) < len(tried) else None
        for one, how in sorted(zip(tried, failures, strict=False), key=lambda pair: pair[0]):
            expected.fail(one, how, at)
        if answered is None:
            engine.fail(admission, failed_routes=told)
        else:
            expected.succeed(answered, at)
            engine.settle(admission, route_id=route(admission, answered), failed_routes=told, latency_ms=0)
    for admission, _ in running:
        call(
            engine.connection,
            "settle_request",
            p_settlement={
                "request_id": admission["request_id"],
                "admitted_at": admission["admitted_at"],
                "outcome": "cancelled",
                "latency_ms": 0,
            },
        )
    rows = engine.query("select service_id, route_id <> 0, failures, set_asides from gateway.service_health")
    assert {(row[0], row[1]): (row[2], row[3]) for row in rows} == {
        key: (row.failures, row.asides) for key, row in expected.rows.items()
    }
    kinds = [row[0] for row in engine.query("select kind from gateway.events order by at")]
    assert kinds == expected.events
