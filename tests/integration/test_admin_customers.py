"""Customers, money in, balances and limits."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from gateway.auth import is_key, new_key
from tests.fixtures.management import Management, assert_error, management

__all__ = ["management"]


async def test_customer_is_added_once(management: Management) -> None:
    body = {"name": "Ada", "email": "Ada@example.org", "company": "Engines"}
    made = await management.ok("POST", "/customers", body, status=201)
    assert set(made) == {"id", "name", "email", "company", "username", "created_at"}
    assert isinstance(made["id"], int)
    assert (made["name"], made["email"], made["company"]) == ("Ada", "Ada@example.org", "Engines")
    assert made["username"] == "Ada@example.org"
    again = await management.admin("POST", "/customers", {"name": "Eve", "email": "ada@EXAMPLE.org"})
    assert_error(again, 409, "email_taken", "email")
    taken = {"name": "Eve", "email": "eve@example.org", "username": "Ada@example.org"}
    assert_error(await management.admin("POST", "/customers", taken), 409, "username_taken", "username")
    assert management.value("select count(*) from gateway.customers where name = 'Eve'") == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "x"}, "email"),
        ({"email": "a@b"}, "name"),
        ({"name": "x", "email": "nobody"}, "email"),
        ({"name": "x", "email": "@b"}, "email"),
        ({"name": "x", "email": "a b@c"}, "email"),
        ({"name": "x", "email": "a@" + "b" * 319}, "email"),
        ({"name": "x" * 201, "email": "a@b"}, "name"),
        ({"name": "x", "email": "a@b", "company": "y" * 201}, "company"),
        ({"name": "x", "email": "a@b", "username": ""}, "username"),
        ({"name": "x", "email": "a@b", "username": "u" * 321}, "username"),
        ({"name": "x", "email": "a@b", "admin": True}, "admin"),
        ({"name": ["x"], "email": "a@b"}, "name"),
        ({"name": None, "email": "a@b"}, "name"),
    ],
)
async def test_bad_customer_is_422(management: Management, body: dict[str, Any], param: str) -> None:
    assert_error(await management.admin("POST", "/customers", body), 422, param=param)


async def test_create_user_makes_all_or_nothing(management: Management) -> None:
    body = {
        "name": "Grace",
        "email": "grace@example.org",
        "credits": 1000.5,
        "rate_limits": {"requests_per_minute": 5, "spend_usd_per_day": "0.25", "tokens_per_day": None},
    }
    response = await management.admin("POST", "/admin/create_user", body)
    assert response.status_code == 201
    assert response.headers["cache-control"] == "no-store"
    made = response.json()
    assert set(made) == {"status", "user_id", "api_key", "credits"}
    assert made["status"] == "success"
    assert is_key(made["api_key"])
    assert made["credits"] == 1000.5
    balance = await management.ok("GET", "/user/balance", key=made["api_key"])
    assert balance["balance_usd"] == "0.02001"
    limits = management.query(
        "select per, requests, spend_usd::text from gateway.limits as l join gateway.api_keys as k"
        " on k.id = l.key_id where k.customer_id = %s order by per",
        made["user_id"],
    )
    assert limits == [("day", None, "0.2500000000"), ("minute", 5, None)]

    assert_error(await management.admin("POST", "/admin/create_user", body), 409, "email_taken", "email")
    # A hundred-thousandth of a credit is finer than the books: nothing is left behind.
    fine = {"name": "Fine", "credits": 0.000001}
    assert_error(await management.admin("POST", "/admin/create_user", fine), 422, "invalid_amount", "credits")
    assert management.value("select count(*) from gateway.customers where name = 'Fine'") == 0
    bare = await management.ok("POST", "/admin/create_user", {"name": "Bare"}, status=201)
    assert bare["credits"] == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "x", "credits": -1}, "credits"),
        ({"name": "x", "credits": "5"}, "credits"),
        ({"name": "x", "credits": True}, "credits"),
        ({"name": "x", "credits": 1e16}, "credits"),
        ({"name": "x", "rate_limits": {"requests_per_week": 1}}, "rate_limits"),
        ({"name": "x", "rate_limits": []}, "rate_limits"),
    ],
)
async def test_bad_user_is_422(management: Management, body: dict[str, Any], param: str) -> None:
    assert_error(await management.admin("POST", "/admin/create_user", body), 422, param=param)


async def test_credits_are_exact_to_the_last_digit(management: Management) -> None:
    customer = management.customer()
    books = Decimal(0)
    # A float could hold none of these sums.
    for sent, usd in (
        ('"0.1"', "0.1"),
        ("0.1", "0.1"),
        ("0.2", "0.2"),
        ('"999999999.9999999999"', "999999999.9999999999"),
        ("0.0000000001", "0.0000000001"),
        ("1e2", "100"),
        ("-100.00000000000000000", "-100"),
        ("123456789.0123456789", "123456789.0123456789"),
    ):
        books += Decimal(usd)
        response = await management.admin(
            "POST", "/admin/add_credits", content=f'{{"user_id": {customer.id}, "usd": {sent}}}'.encode()
        )
        assert response.status_code == 200, response.text
        told = response.json()
        assert told["status"] == "success"
        assert told["user_id"] == customer.id
        assert Decimal(told["added_usd"]) == Decimal(usd)
        assert told["balance_after_usd"] == f"{books.normalize():f}"
        assert (
            management.value("select balance_usd from gateway.accounts where customer_id = %s", customer.id)
            == books
        )
    entries = management.value(
        "select sum(amount_usd) from gateway.ledger_entries where customer_id = %s", customer.id
    )
    assert entries == books
    balance = await management.ok("GET", "/user/balance", key=customer.key)
    assert balance["balance_usd"] == f"{books:f}"


async def test_credits_are_a_way_of_writing_usd(management: Management) -> None:
    customer = management.customer()
    told = await management.ok("POST", "/admin/add_credits", {"api_key": customer.key, "credits": 2500})
    assert told == {
        "status": "success",
        "user_id": customer.id,
        "credits_added": 2500,
        "added_usd": "0.05",
        "balance_after": 2500,
        "balance_after_usd": "0.05",
        "debt_usd": "0",
        "duplicate": False,
    }
    told = await management.ok(
        "POST", "/admin/add_credits", {"email": customer.email.upper(), "credits": 0.00001}
    )
    # Shown rounded down; the books have it whole.
    assert (told["balance_after"], told["balance_after_usd"]) == (2500, "0.0500000002")


async def test_one_reference_is_credited_once(management: Management) -> None:
    customer, other = management.customer(), management.customer()
    body = {"user_id": customer.id, "usd": "5", "reference": "invoice 7", "note": "paid"}
    first = await management.ok("POST", "/admin/add_credits", body)
    second = await management.ok("POST", "/admin/add_credits", {**body, "usd": 5.00})
    assert (first["duplicate"], second["duplicate"]) == (False, True)
    assert second["balance_after_usd"] == "5"
    conflict = await management.admin("POST", "/admin/add_credits", {**body, "usd": "5.01"})
    assert_error(conflict, 409, "reference_conflict", "reference")
    reserved = await management.admin("POST", "/admin/add_credits", {**body, "reference": "stripe:pi_1"})
    assert_error(reserved, 422, "reserved_reference", "reference")
    # The reference is the customer's own.
    await management.ok("POST", "/admin/add_credits", {**body, "user_id": other.id})
    entries = management.query(
        "select amount_usd, reference, note, actor from gateway.ledger_entries where customer_id = %s",
        customer.id,
    )
    assert entries == [(Decimal(5), "invoice 7", "paid", f"key {management.admin_key[:9]}…")]


async def test_correction_takes_no_more_than_is_free(management: Management) -> None:
    customer = management.customer("10")
    refused = await management.admin(
        "POST", "/admin/add_credits", {"user_id": customer.id, "usd": "-10.0000000001"}
    )
    assert_error(refused, 409, "more_than_free", "usd")
    told = await management.ok("POST", "/admin/add_credits", {"user_id": customer.id, "usd": "-10"})
    assert told["balance_after_usd"] == "0"
    assert (
        management.value(
            "select kind from gateway.ledger_entries where customer_id = %s order by id desc limit 1",
            customer.id,
        )
        == "correction"
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"user_id": 1}, None),
        ({"usd": 1}, None),
        ({"user_id": 1, "email": "a@b", "usd": 1}, None),
        ({"user_id": 1, "usd": 1, "credits": 1}, None),
        ({"user_id": "1", "usd": 1}, "user_id"),
        ({"user_id": 1, "usd": "1,5"}, "usd"),
        ({"user_id": 1, "usd": "1e3"}, "usd"),
        ({"user_id": 1, "usd": "NaN"}, "usd"),
        ({"user_id": 1, "usd": " 1"}, "usd"),
        ({"user_id": 1, "usd": ""}, "usd"),
        ({"user_id": 1, "usd": True}, "usd"),
        ({"user_id": 1, "usd": {}}, "usd"),
        ({"user_id": 1, "usd": "0.00000000001"}, "usd"),
        ({"user_id": 1, "usd": "1000000000.0000000001"}, "usd"),
        ({"user_id": 1, "usd": 10**400}, "usd"),
        ({"user_id": 1, "credits": "5"}, "credits"),
        ({"user_id": 1, "usd": 1, "reference": ""}, "reference"),
        ({"user_id": 1, "usd": 1, "reference": "r" * 256}, "reference"),
        ({"user_id": 1, "usd": 1, "note": "n" * 1001}, "note"),
        ({"user_id": 1, "usd": 1, "notes": "n"}, "notes"),
    ],
)
async def test_bad_payment_is_422_and_books_nothing(
    management: Management, body: dict[str, Any], param: str | None
) -> None:
    before = management.value("select count(*) from gateway.ledger_entries")
    assert_error(await management.admin("POST", "/admin/add_credits", body), 422, param=param)
    assert management.value("select count(*) from gateway.ledger_entries") == before


@pytest.mark.parametrize(
    ("amount", "status"),
    [
        ("1e400", 400),
        ("1e-400", 400),
        ("1E999999", 400),
        ("1e99999999999999999999", 400),
        ("-1e12", 422),
        ("0.1e-10", 422),
        ("0", 422),
        ("-0.0", 422),
    ],
)
async def test_number_that_no_book_can_hold_is_refused(
    management: Management, amount: str, status: int
) -> None:
    customer = management.customer()
    raw = f'{{"user_id": {customer.id}, "usd": {amount}}}'.encode()
    assert_error(await management.admin("POST", "/admin/add_credits", content=raw), status)


async def test_bound_of_credits_follows_what_a_credit_is_worth(management: Management) -> None:
    customer = management.customer()
    body = {"user_id": customer.id, "credits": 10**15}
    refused = await management.admin("POST", "/admin/add_credits", body)
    assert_error(refused, 422, "invalid_amount", "credits")


async def test_balance_beyond_what_an_account_holds_is_422(management: Management) -> None:
    customer = management.customer()
    body = {"user_id": customer.id, "usd": 1_000_000_000}
    for _ in range(9):
        await management.ok("POST", "/admin/add_credits", body)
    body["usd"] = 999_999_999
    await management.ok("POST", "/admin/add_credits", body)
    body["usd"] = 2
    assert_error(await management.admin("POST", "/admin/add_credits", body), 422, "invalid_amount", "usd")
    assert (await management.ok("GET", "/user/balance", key=customer.key))["balance_usd"] == "9999999999"


async def test_unknown_customer_is_404(management: Management) -> None:
    for name, value in (("user_id", 2**62), ("api_key", new_key()), ("email", "nobody@example.org")):
        refused = await management.admin("POST", "/admin/add_credits", {name: value, "usd": 1})
        assert_error(refused, 404, param=name)
    malformed = await management.admin("POST", "/admin/add_credits", {"api_key": "sk_x", "usd": 1})
    assert_error(malformed, 404, param="api_key")


async def test_balances_are_listed_by_the_page(management: Management) -> None:
    customers = [management.customer(usd) for usd in ("0.5", None, "3")]
    after = customers[0].id - 1
    page = await management.ok("GET", f"/admin/balance?limit=2&cursor={after}")
    assert set(page) == {"status", "users", "next_cursor"}
    assert page["status"] == "success"
    assert page["users"][0] == {
        "user_id": customers[0].id,
        "name": "A customer",
        "email": customers[0].email,
        "credits": 25000,
        "balance_usd": "0.5",
        "held_usd": "0",
        "debt_usd": "0",
        "api_keys": [
            {"id": customers[0].key_id, "prefix": f"{customers[0].key[:9]}…", "active": True},
        ],
    }
    assert page["users"][1]["user_id"] == customers[1].id
    last = await management.ok("GET", f"/admin/balance?limit=2&cursor={page['next_cursor']}")
    assert [user["user_id"] for user in last["users"]] == [customers[2].id]
    assert last["next_cursor"] is None


async def test_limits_are_merged_and_null_removes(management: Management) -> None:
    customer = management.customer()
    body: dict[str, Any] = {
        "api_key": customer.key,
        "rate_limits": {
            "requests_per_minute": 60,
            "requests_per_hour": 1000,
            "requests_per_day": 10000,
            "tokens_per_minute": 10000,
            "tokens_per_hour": 100000,
            "tokens_per_day": 1000000,
        },
    }
    told = await management.ok("POST", "/admin/limit", body)
    assert set(told) == {"status", "rate_limits", "warn"}
    assert told["status"] == "success"
    assert told["rate_limits"] == body["rate_limits"]
    assert told["warn"]["requests_per_minute"] == 48
    body = {
        "key_id": customer.key_id,
        "rate_limits": {"requests_per_hour": None, "spend_usd_per_month": "12.3456789012"},
        "warn": {"requests_per_minute": 59},
        "warn_percent": 50,
    }
    body["rate_limits"]["spend_usd_per_month"] = "12.3456789"
    told = await management.ok("POST", "/admin/limit", body)
    assert "requests_per_hour" not in told["rate_limits"]
    assert told["rate_limits"]["spend_usd_per_month"] == "12.3456789"
    assert told["rate_limits"]["requests_per_day"] == 10000
    assert told["warn"]["requests_per_minute"] == 59
    assert told["warn"]["spend_usd_per_month"] == "6.17283945"


async def test_limits_of_each_subject_are_apart(management: Management) -> None:
    customer = management.customer()
    model = await management.model()
    service = await management.ok(
        "POST",
        "/admin/services",
        {"name": "limited", "provider": "openai-compatible", "base_url": "https://8.8.8.8/v1"},
        status=201,
    )
    subjects: list[dict[str, Any]] = [
        {"user_id": customer.id},
        {"key_id": customer.key_id},
        {"key_id": customer.key_id, "model": model["name"]},
        {"key_id": customer.key_id, "model": "*"},
        {"service": service["id"]},
    ]
    for number, subject in enumerate(subjects, 1):
        body = {**subject, "rate_limits": {"requests_per_day": number}}
        told = await management.ok("POST", "/admin/limit", body)
        assert told["rate_limits"] == {"requests_per_day": number}
    by_name = {"service": "limited", "rate_limits": {"tokens_per_day": 9}}
    told = await management.ok("POST", "/admin/limit", by_name)
    assert told["rate_limits"] == {"requests_per_day": 5, "tokens_per_day": 9}
    assert (await management.ok("GET", f"/admin/services/{service['id']}"))["limits"] == told["rate_limits"]
    rows = management.query(
        "select requests, model_id, each_model from gateway.limits where key_id = %s order by 1",
        customer.key_id,
    )
    assert rows == [(2, None, False), (3, model["id"], False), (4, None, True)]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"rate_limits": {"requests_per_day": 1}}, 422, None),
        ({"user_id": 1, "key_id": 1, "rate_limits": {"requests_per_day": 1}}, 422, None),
        ({"user_id": 1}, 422, None),
        ({"user_id": 1, "rate_limits": {}}, 422, None),
        ({"user_id": 1, "model": "m", "rate_limits": {"requests_per_day": 1}}, 422, None),
        ({"user_id": 1, "rate_limits": {"requests_per_day": "5"}}, 422, "rate_limits.requests_per_day"),
        ({"user_id": 1, "rate_limits": {"requests_per_day": 10**16}}, 422, "rate_limits.requests_per_day"),
        ({"user_id": 1, "rate_limits": {"spend_usd_per_day": -1}}, 422, "rate_limits.spend_usd_per_day"),
        ({"user_id": 1, "warn": {"tokens_per_day": 1.5}}, 422, "warn.tokens_per_day"),
        ({"user_id": 1, "rate_limits": {"tokens_per_day": 1}, "warn_percent": 101}, 422, "warn_percent"),
        ({"user_id": 2**62, "rate_limits": {"tokens_per_day": 1}}, 404, "user_id"),
        ({"key_id": 2**62, "rate_limits": {"tokens_per_day": 1}}, 404, "key_id"),
        ({"api_key": "sk_x", "rate_limits": {"tokens_per_day": 1}}, 404, "api_key"),
        ({"service": 2**62, "rate_limits": {"tokens_per_day": 1}}, 404, "service"),
        ({"service": "nobody's", "rate_limits": {"tokens_per_day": 1}}, 404, "service"),
    ],
)
async def test_bad_limit_is_refused(
    management: Management, body: dict[str, Any], status: int, param: str | None
) -> None:
    assert_error(await management.admin("POST", "/admin/limit", body), status, param=param)


async def test_unknown_limits_are_named(management: Management) -> None:
    customer = management.customer()
    limits = {"requests_per_minute": 1, "request_per_minute": 1, "tokens_per_week": 2}
    refused = await management.admin("POST", "/admin/limit", {"user_id": customer.id, "rate_limits": limits})
    message = assert_error(refused, 422, param="rate_limits")
    assert "'request_per_minute', 'tokens_per_week'" in message
    assert management.value("select count(*) from gateway.limits where customer_id = %s", customer.id) == 0
    unknown = {"key_id": customer.key_id, "model": "nothing", "rate_limits": {"tokens_per_day": 1}}
    assert_error(await management.admin("POST", "/admin/limit", unknown), 404, "model_not_found", "model")
