"""Usage over time and the log of requests, as they are asked for over HTTP."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.fixtures.management import Management, assert_error, management
from tests.integration.test_usage import admit, served_model
from tests.integration.test_usage_monitor import CHARGE, into_a_fresh_minute, use

__all__ = ["management"]


def used(points: list[dict[str, Any]]) -> dict[str, int]:
    """Requests by the start of their interval, where there were any."""
    return {point["start"]: point["requests"] for point in points if point["requests"]}


async def series(management: Management, key: str | None = None, **query: Any) -> dict[str, Any]:
    response = await management.call("GET", "/v1/usage", key or management.admin_key, params=query)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


# Usage over time


async def test_thirty_days_by_the_day_are_told_unless_asked_otherwise(management: Management) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    into_a_fresh_minute(management)
    for _ in range(2):
        await use(management, customer.key, model["name"])
    told = await series(management, customer.key)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert (told["interval"], told["time_zone"], told["group_by"]) == ("day", "UTC", None)
    assert datetime.fromisoformat(told["from"]) == today - timedelta(days=29)
    assert datetime.fromisoformat(told["to"]) == today + timedelta(days=1)
    starts = [datetime.fromisoformat(point["start"]) for point in told["data"]]
    assert starts == [today - timedelta(days=29 - n) for n in range(30)]
    *before, last = told["data"]
    assert used(before) == {}
    assert {point["charge_usd"] for point in before} == {"0"}
    assert last["requests"] == 2
    assert last["errors"] == 0
    assert {name: count for name, count in last["tokens"].items() if count} == {"input": 20, "output": 10}
    assert last["total_tokens"] == 30
    assert (last["cost_usd"], Decimal(last["charge_usd"])) == ("0.00012", 2 * CHARGE)
    assert last["latency_ms"]["average"] == 120
    for percentile in ("p50", "p95"):
        assert last["latency_ms"][percentile] == pytest.approx(120, rel=0.1)
        assert last["time_to_first_token_ms"][percentile] == pytest.approx(40, rel=0.1)


@pytest.mark.parametrize(
    ("query", "intervals"),
    [({"interval": "hour"}, 24), ({"interval": "day"}, 30), ({"interval": "month"}, 12)],
)
async def test_each_interval_has_its_usual_length(
    management: Management, query: dict[str, str], intervals: int
) -> None:
    customer = management.customer()
    into_a_fresh_minute(management)
    assert len((await series(management, customer.key, **query))["data"]) == intervals


@pytest.mark.parametrize(
    ("zone", "query", "hours"),
    [
        # clocks go back on 1 November, and went forward on 8 March
        ("America/New_York", {"from": "2026-10-31", "to": "2026-11-02"}, [24, 25, 24]),
        ("America/New_York", {"from": "2026-03-07", "to": "2026-03-09"}, [24, 23, 24]),
        ("Asia/Kolkata", {"from": "2026-10-31", "to": "2026-11-01"}, [24, 24]),
        ("UTC", {"from": "2026-11-01", "to": "2026-11-01"}, [24]),
        # widened to whole days of the zone
        ("Asia/Kolkata", {"from": "2026-11-01T18:29:59Z", "to": "2026-11-01T18:30:00Z"}, [24]),
        ("Asia/Kolkata", {"from": "2026-11-01T18:29:59Z", "to": "2026-11-01T18:30:00.000001Z"}, [24, 24]),
        ("Asia/Kathmandu", {"from": "2026-01-31", "to": "2026-03-01", "interval": "month"}, [744, 672, 744]),
        ("America/New_York", {"from": "2026-11-01", "to": "2026-11-01", "interval": "hour"}, [1] * 25),
        ("Asia/Kolkata", {"from": "2026-11-01", "to": "2026-11-01", "interval": "hour"}, [1] * 24),
    ],
)
@pytest.mark.parametrize("named", [True, False])
async def test_intervals_are_the_zones(
    management: Management, zone: str, query: dict[str, str], hours: list[int], named: bool
) -> None:
    customer = management.customer()
    if named:
        query = {**query, "time_zone": zone}
    else:
        management.query(
            "update gateway.customers set time_zone = %s where id = %s returning id", zone, customer.id
        )
    told = await series(management, customer.key, **query)
    starts = [datetime.fromisoformat(point["start"]) for point in told["data"]]
    ends = [datetime.fromisoformat(point["end"]) for point in told["data"]]
    assert [(end - start) / timedelta(hours=1) for start, end in zip(starts, ends, strict=True)] == hours
    assert starts[1:] == ends[:-1]
    assert (datetime.fromisoformat(told["from"]), datetime.fromisoformat(told["to"])) == (starts[0], ends[-1])
    assert starts[0].astimezone(ZoneInfo(zone)).time() == datetime.min.time()
    assert told["time_zone"] == zone


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
async def test_what_was_used_at_the_turn_of_a_month_is_counted_on_its_side(
    management: Management, zone: str
) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    turn = datetime(2026, 11, 1, tzinfo=ZoneInfo(zone))
    for at in (turn - timedelta(microseconds=1), turn, turn):
        await use(management, customer.key, model["name"], at.astimezone(UTC))
    query = {"from": "2026-10-01", "to": "2026-11-30", "time_zone": zone}
    for interval in ("month", "day"):
        told = await series(management, customer.key, interval=interval, **query)
        assert list(used(told["data"]).values()) == [1, 2]
        assert datetime.fromisoformat(list(used(told["data"]))[1]) == turn


async def test_groups_come_to_the_whole(management: Management) -> None:
    customer = management.customer("1")
    other_key, other_key_id = management.key(customer.id, "chat")
    first, second = await served_model(management), await served_model(management)
    for key, model in ((customer.key, first), (customer.key, second), (other_key, first), (other_key, first)):
        await use(management, key, model["name"])

    async def groups(key: str, by: str, **query: Any) -> dict[str | None, int]:
        told = await series(management, key, group_by=by, **query)
        assert told["group_by"] == by
        return {
            name: sum(point["requests"] for point in told["data"] if point["group"] == name)
            for name in {point["group"] for point in told["data"]}
        }

    assert await groups(customer.key, "model") == {first["name"]: 3, second["name"]: 1}
    assert await groups(customer.key, "provider") == {"openai-compatible": 4}
    by_key = await groups(customer.key, "key")
    assert sorted(by_key.values()) == [2, 2]
    assert await groups(customer.key, "model", key_id=other_key_id) == {first["name"]: 2}
    # a key with chat alone sees itself
    assert await groups(other_key, "model") == {first["name"]: 2}
    assert sum(used((await series(management, other_key))["data"]).values()) == 2
    # an operator sees everybody, or whom it names
    assert (await groups(management.admin_key, "model"))[first["name"]] == 3
    assert await groups(management.admin_key, "key", customer_id=customer.id) == by_key
    assert list((await groups(management.admin_key, "key", key_id=other_key_id)).values()) == [2]
    response = await management.admin("GET", "/v1/usage?group_by=key")
    assert_error(response, 422, "invalid_value", "group_by")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-02-30"}, "from"),
        ({"from": "2026-11-01T00:00:00"}, "from"),
        ({"from": "0001-01-01"}, "from"),
        ({"to": "9999-12-31"}, "to"),
        ({"to": "2026-11-0\u0661"}, "to"),
        ({"from": "2026-11-02", "to": "2026-11-01"}, "from"),
        ({"from": "2026-11-01T00:00:00Z", "to": "2026-11-01T00:00:00Z"}, "from"),
        ({"from": "2199-01-01"}, "from"),
        ({"interval": "week"}, "interval"),
        ({"interval": ""}, "interval"),
        ({"group_by": "customer"}, "group_by"),
        ({"time_zone": "Mars/Olympus_Mons"}, "time_zone"),
        ({"time_zone": "EST5EDT"}, "time_zone"),
        ({"time_zone": "UTC+3"}, "time_zone"),
        ({"time_zone": "Foo/Bar+00:07"}, "time_zone"),
        ({"time_zone": "../../etc/passwd"}, "time_zone"),
        ({"interval": "hour", "from": "2026-10-01", "to": "2026-11-01"}, "from"),
        ({"interval": "day", "from": "2025-10-01", "to": "2026-11-05"}, "from"),
        ({"interval": "month", "from": "2016-11-20", "to": "2026-11-20"}, "from"),
        ({"key_id": "x"}, "key_id"),
        ({"key_id": "0"}, "key_id"),
        ({"key_id": "9" * 19}, "key_id"),
        ({"customer_id": "-1"}, "customer_id"),
        ({"form": "2026-11-01"}, "form"),
    ],
)
async def test_a_bad_query_names_its_parameter(
    management: Management, query: dict[str, str], param: str
) -> None:
    customer = management.customer()
    response = await management.call("GET", "/v1/usage", customer.key, params=query)
    assert_error(response, 422, "invalid_value", param)


@pytest.mark.parametrize(
    ("query", "points"),
    [
        ({"interval": "hour", "from": "2026-10-01", "to": "2026-10-31"}, 744),
        ({"interval": "day", "from": "2025-10-01", "to": "2026-11-04"}, 400),
        ({"interval": "month", "from": "2016-12-01", "to": "2026-11-30"}, 120),
        ({"from": "2026-11-01T00:00:00+05:30", "to": "2026-11-01T00:00:00.5Z"}, 2),
    ],
)
async def test_the_longest_time_can_be_asked_for(
    management: Management, query: dict[str, str], points: int
) -> None:
    customer = management.customer()
    assert len((await series(management, customer.key, **query))["data"]) == points


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/requests"])
async def test_nothing_of_another_customer_is_told(management: Management, path: str) -> None:
    customer, stranger = management.customer("1"), management.customer("1")
    chat_key, chat_key_id = management.key(customer.id, "chat")
    model = await served_model(management)
    await use(management, stranger.key, model["name"])
    for key in (customer.key, chat_key, management.person(customer)):
        told = await management.ok("GET", path, key=key)
        assert not any(row.get("requests", 1) for row in told["data"])
        for name, value, code in (
            ("customer_id", stranger.id, "customer_not_found"),
            ("customer_id", 10**12, "customer_not_found"),
            ("key_id", stranger.key_id, "key_not_found"),
            ("key_id", 10**12, "key_not_found"),
        ):
            response = await management.call("GET", path, key, params={name: value})
            assert_error(response, 404, code, name)
        await management.ok("GET", f"{path}?customer_id={customer.id}", key=key)
    # a key with chat alone does not see its siblings either
    response = await management.call("GET", f"{path}?key_id={customer.key_id}", chat_key)
    assert_error(response, 404, "key_not_found", "key_id")
    await management.ok("GET", f"{path}?key_id={chat_key_id}", key=chat_key)
    await management.ok("GET", f"{path}?key_id={chat_key_id}", key=customer.key)
    # an operator's question is answered for whom it names, and for nobody else
    for name, value, code in (
        ("customer_id", 10**12, "customer_not_found"),
        ("key_id", 10**12, "key_not_found"),
    ):
        assert_error(await management.admin("GET", path, params={name: value}), 404, code, name)
    response = await management.admin(
        "GET", path, params={"customer_id": customer.id, "key_id": stranger.key_id}
    )
    assert_error(response, 404, "key_not_found", "key_id")


# The log


async def log(management: Management, key: str, **query: Any) -> dict[str, Any]:
    response = await management.call("GET", "/v1/requests", key, params=query)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


async def test_the_log_pages_through_every_request_once(management: Management) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    made = [(await admit(management, customer.key, model["name"])).request_id for _ in range(7)]
    found: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        told = await log(management, customer.key, **query)
        found += [record["id"] for record in told["data"]]
        if told["next_cursor"] is None:
            break
        assert len(told["data"]) == 3
        # what comes meanwhile moves no page
        await admit(management, customer.key, model["name"])
        query["cursor"] = told["next_cursor"]
    assert found == made[::-1]
    assert len((await log(management, customer.key))["data"]) == 9


async def test_a_record_in_the_log_is_the_record_of_the_request(management: Management) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    await use(management, customer.key, model["name"])
    await admit(management, customer.key, model["name"])
    running, settled = (await log(management, customer.key))["data"]
    for record in (running, settled):
        assert await management.ok("GET", f"/v1/requests/{record['id']}", key=customer.key) == record
    assert (running["state"], settled["outcome"]) == ("held", "succeeded")
    for query, expected in (
        ({"status": "running"}, [running]),
        ({"status": "succeeded"}, [settled]),
        ({"status": "cut"}, []),
        ({"model": model["name"]}, [running, settled]),
        ({"model": "another"}, []),
        ({"provider": "openai-compatible"}, [settled]),
        ({"errors": "true"}, []),
        ({"errors": "false"}, [running, settled]),
        ({"key_id": customer.key_id}, [running, settled]),
        ({"from": running["created_at"]}, [running]),
        ({"to": running["created_at"]}, [settled]),
        ({"from": "2026-01-01", "to": "2026-01-31"}, []),
    ):
        assert (await log(management, customer.key, **query))["data"] == expected, query
    assert (await log(management, management.admin_key, customer_id=customer.id))["data"] == [
        running,
        settled,
    ]
    assert {settled["id"], running["id"]} <= {
        record["id"] for record in (await log(management, management.admin_key, limit=200))["data"]
    }


async def test_a_sampled_refusal_is_in_the_log(management: Management) -> None:
    customer = management.customer()
    model = await served_model(management)
    with pytest.raises(AssertionError):
        await admit(management, customer.key, model["name"])
    [record] = (await log(management, customer.key, status="refused"))["data"]
    assert (record["state"], record["error_code"]) == ("refused", "insufficient_credits")
    assert await management.ok("GET", f"/v1/requests/{record['id']}", key=customer.key) == record


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "201"}, "limit"),
        ({"limit": "ten"}, "limit"),
        *(
            ({"cursor": cursor}, "cursor")
            for cursor in (
                "",
                "1042",
                "%%%",
                "\u0661",
                "A" * 5000,
                encoded("2026-11-01T00:00:00+00:00"),
                encoded("2026-11-01T00:00:00 req_00000000"),
                encoded("2026-11-01T00:00:00+00:00 req_0000'--"),
                encoded("yesterday req_00000000"),
                encoded("2026-11-01T00:00:00+00:00 req_\u0661\u0661\u0661\u0661\u0661"),
            )
        ),
        ({"status": "held"}, "status"),
        ({"status": "SUCCEEDED"}, "status"),
        ({"errors": "1"}, "errors"),
        ({"model": ""}, "model"),
        ({"model": "x" * 301}, "model"),
        ({"provider": ""}, "provider"),
        ({"from": "now"}, "from"),
        ({"to": "2026-13-01"}, "to"),
        ({"key_id": "1.0"}, "key_id"),
        ({"customer_id": "x"}, "customer_id"),
        ({"statuses": "cut"}, "statuses"),
    ],
)
async def test_a_bad_question_to_the_log_names_its_parameter(
    management: Management, query: dict[str, str], param: str
) -> None:
    customer = management.customer()
    response = await management.call("GET", "/v1/requests", customer.key, params=query)
    assert_error(response, 422, "invalid_value", param)
