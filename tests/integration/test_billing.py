"""Top-ups: what Stripe is asked, what its webhook may do, and what becomes of the money in any order."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from gateway.auth import key_hash
from gateway.billing import stripe_api
from gateway.database.rpc import Admission, Refusal
from gateway.http import new_request_id
from tests.fixtures.management import Customer, Management, assert_error, management
from tests.fixtures.stripe_server import (
    PUBLIC_URL,
    SECRET_KEY,
    WEBHOOK_SECRET,
    StripeServer,
    parse_form,
    sign,
    stripe_server,
    stripe_server_process,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import httpx

__all__ = ["management", "stripe_server", "stripe_server_process"]

WEBHOOK = "/stripe/webhook"
SECOND_SECRET = "whsec_which_replaces_the_first_one"
Event = dict[str, Any]


@pytest.fixture
def more_settings(stripe_server: StripeServer) -> dict[str, Any]:
    return {**stripe_server.settings, "stripe_webhook_secrets": f"{WEBHOOK_SECRET}, {SECOND_SECRET}"}


def customer_of(management: Management, usd: str | None = None) -> Customer:
    return management.customer(usd, scopes=("chat", "usage", "billing"))


async def send(management: Management, event: Mapping[str, Any], **signing: Any) -> httpx.Response:
    body = json.dumps(event).encode()
    return await management.client.post(WEBHOOK, content=body, headers=sign(body, **signing))


async def sent(management: Management, *events: Mapping[str, Any]) -> list[str]:
    """What became of events that are taken."""
    outcomes = []
    for event in events:
        response = await send(management, event)
        assert response.status_code == 200, response.text
        outcomes.append(response.json()["outcome"])
    return outcomes


def money(management: Management, customer: Customer) -> tuple[str, str, str]:
    """(balance, held, debt)"""
    row = management.query(
        "select trim_scale(balance_usd)::text, trim_scale(held_usd)::text, trim_scale(debt_usd)::text"
        " from gateway.accounts where customer_id = %s",
        customer.id,
    )[0]
    return row[0], row[1], row[2]


def told_of(management: Management, customer: Customer) -> list[str]:
    """The kinds of events that the operator is told of a customer."""
    rows = management.query(
        "select kind from gateway.events where customer_id = %s and kind ~ '^(payment|customer)'"
        " order by kind",
        customer.id,
    )
    return [row[0] for row in rows]


def books_agree(management: Management) -> None:
    told = management.value("select api.check_ledger(p_full => true)")
    assert (told["ok"], told["misbooked_payments"]) == (True, 0), told


async def admit(management: Management, customer: Customer) -> Admission | Refusal:
    if not management.query("select from gateway.models where name = 'sold'"):
        await management.model("sold")
        service = {
            "name": "seller",
            "provider": "openai-compatible",
            "base_url": "https://8.8.8.8/v1",
            "enabled_models": ["sold"],
        }
        await management.ok("POST", "/admin/services", service, status=201)
    return await management.process.database.admit_request(
        key_hash=key_hash(customer.key),
        request_id=new_request_id(),
        models=["sold"],
        endpoint="chat.completions",
        lease_seconds=60,
        # at 2 and 8 USD per million, with the commission: 4.2 USD are held
        input_tokens_bound=0,
        max_output_tokens=500_000,
    )


# Checkout


async def test_checkout_makes_a_page_for_this_customer_and_amount(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    response = await management.call(
        "POST", "/v1/billing/checkout", customer.key, {"usd": "25.5"}, headers={"host": "evil.example.com"}
    )
    assert response.status_code == 200, response.text
    (session,) = stripe_server.sessions.values()
    assert response.json() == {"url": session["url"]}
    (call,) = stripe_server.calls
    assert (call["method"], call["path"]) == ("POST", "/v1/checkout/sessions")
    # Of which the stand-in has the types: whoever takes a newer one looks at what has changed in it.
    assert call["headers"]["stripe-version"] == stripe_api.VERSION == stripe.api_version
    assert call["headers"]["idempotency-key"].startswith("sluice-")
    ours = {"sluice_customer_id": str(customer.id), "sluice_usd": "25.50"}
    assert parse_form(call["text"]) == {
        "mode": "payment",
        "submit_type": "pay",
        "client_reference_id": str(customer.id),
        "customer_email": customer.email,
        "success_url": f"{PUBLIC_URL}/dashboard?top_up=paid",
        "cancel_url": f"{PUBLIC_URL}/dashboard?top_up=cancelled",
        "line_items": [
            {
                "quantity": "1",
                "price_data": {
                    "currency": "usd",
                    "unit_amount": "2550",
                    "product_data": {"name": "Credits"},
                },
            }
        ],
        "adaptive_pricing": {"enabled": "false"},
        "metadata": ours,
        "payment_intent_data": {"metadata": ours},
    }
    # nothing is credited before Stripe says that it was paid
    assert money(management, customer) == ("0", "0", "0")


@pytest.mark.parametrize(
    ("usd", "code"),
    [
        ("4.99", "amount_out_of_range"),
        ("1000.01", "amount_out_of_range"),
        ("10.001", None),
        ("0", None),
        ("-10", None),
        ("NaN", None),
        ("1e3", None),
        (True, None),
        (None, None),
    ],
)
async def test_an_amount_that_is_not_sold_is_422(
    management: Management, stripe_server: StripeServer, usd: Any, code: str | None
) -> None:
    customer = customer_of(management)
    response = await management.call("POST", "/v1/billing/checkout", customer.key, {"usd": usd})
    assert_error(response, 422, code, "usd")
    assert stripe_server.calls == []


async def test_a_key_without_the_scope_and_another_customers_account_are_refused(
    management: Management, stripe_server: StripeServer
) -> None:
    other = customer_of(management)
    plain = management.customer(scopes=("chat", "usage", "keys"))
    body = {"usd": "10"}
    assert_error(await management.call("POST", "/v1/billing/checkout", plain.key, body), 403, "scope_missing")
    mine = customer_of(management)
    named = {**body, "customer_id": other.id}
    assert_error(
        await management.call("POST", "/v1/billing/checkout", mine.key, named), 404, "customer_not_found"
    )
    assert_error(await management.admin("POST", "/v1/billing/checkout", body), 422, param="customer_id")
    assert stripe_server.calls == []
    for credential, asked in ((management.admin_key, named), (management.person(mine), body)):
        made = await management.call("POST", "/v1/billing/checkout", credential, asked)
        assert made.status_code == 200, made.text
    references = [session["client_reference_id"] for session in stripe_server.sessions.values()]
    assert references == [str(other.id), str(mine.id)]


async def test_the_same_idempotency_key_gives_the_same_page(
    management: Management, stripe_server: StripeServer
) -> None:
    first, second = customer_of(management), customer_of(management)
    header = {"idempotency-key": "order 1"}

    async def url(customer: Customer, usd: str) -> str:
        response = await management.call(
            "POST", "/v1/billing/checkout", customer.key, {"usd": usd}, headers=header
        )
        return str(response.json()["url"])

    assert await url(first, "10") == await url(first, "10")
    assert len({await url(first, "10"), await url(first, "11"), await url(second, "10")}) == 3
    assert len(stripe_server.sessions) == 3


@pytest.mark.parametrize(
    ("failures", "status", "code"),
    [
        ([500], 200, None),
        ([500, 500], 502, "stripe_failed"),
        ([400], 502, "stripe_failed"),
        ([302], 502, "stripe_failed"),
        ([429], 502, "stripe_failed"),
    ],
)
async def test_what_stripe_fails_in_is_ours_to_tell_and_tells_nothing_of_the_key(
    management: Management, stripe_server: StripeServer, failures: list[int], status: int, code: str | None
) -> None:
    customer = customer_of(management)
    stripe_server.failures = list(failures)
    response = await management.call("POST", "/v1/billing/checkout", customer.key, {"usd": "10"})
    if code is not None:
        assert_error(response, status, code)
    assert response.status_code == status
    keys = {call["headers"]["idempotency-key"] for call in stripe_server.calls}
    assert len(keys) == 1, "a call that is made again is the same call"
    for secret in (SECRET_KEY, WEBHOOK_SECRET):
        assert secret not in response.text + management.log.text


# The signature


@pytest.mark.parametrize("secret", [WEBHOOK_SECRET, SECOND_SECRET])
async def test_either_secret_signs_while_one_replaces_the_other(
    management: Management, stripe_server: StripeServer, secret: str
) -> None:
    customer = customer_of(management)
    event = stripe_server.pay(stripe_server.session(customer.id, 1000))
    body = json.dumps(event).encode()
    headers = sign(body, secret=secret)
    # what we take is what Stripe's own library takes
    stripe.Webhook.construct_event(body, headers["stripe-signature"], secret)
    assert (await management.client.post(WEBHOOK, content=body, headers=headers)).json() == {
        "received": True,
        "outcome": "recorded",
    }
    assert money(management, customer) == ("10", "0", "0")


def tampered(header: str) -> str:
    return header[:-1] + ("0" if header[-1] != "0" else "1")


FORGERIES: dict[str, Callable[[bytes], tuple[bytes, dict[str, str]]]] = {
    "another secret": lambda body: (body, sign(body, secret="whsec_somebody_elses_0123456789")),
    "no secret": lambda body: (body, sign(body, secret="")),
    "the key as the secret": lambda body: (body, sign(body, secret=SECRET_KEY)),
    "too old": lambda body: (body, sign(body, at=time.time() - 301)),
    "of the future": lambda body: (body, sign(body, at=time.time() + 330)),
    "another body": lambda body: (body.replace(b"1000", b"9000"), sign(body)),
    "a space more": lambda body: (body + b" ", sign(body)),
    "no header": lambda body: (body, {}),
    "an empty header": lambda body: (body, {"stripe-signature": ""}),
    "garbage": lambda body: (body, {"stripe-signature": "v1=;;;t=now,,=,"}),
    "no time": lambda body: (body, {"stripe-signature": sign(body)["stripe-signature"].partition(",")[2]}),
    "two times": lambda body: (body, {"stripe-signature": f"t=1,{sign(body)['stripe-signature']}"}),
    "another time": lambda body: (
        body,
        {"stripe-signature": f"t={int(time.time()) - 1},{sign(body)['stripe-signature'].partition(',')[2]}"},
    ),
    "a digit off": lambda body: (body, {"stripe-signature": tampered(sign(body)["stripe-signature"])}),
    "the test scheme": lambda body: (
        body,
        {"stripe-signature": sign(body)["stripe-signature"].replace("v1=", "v0=")},
    ),
    "a time of another script": lambda body: (body, {"stripe-signature": "t=١٢٣,v1=00"}),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_what_stripe_has_not_signed_is_refused(
    management: Management, stripe_server: StripeServer, forgery: str
) -> None:
    customer = customer_of(management)
    event = stripe_server.pay(stripe_server.session(customer.id, 1000))
    body, headers = FORGERIES[forgery](json.dumps(event).encode())
    encoded = {name.encode(): value.encode() for name, value in headers.items()}
    response = await management.client.post(WEBHOOK, content=body, headers=encoded)
    assert_error(response, 400, "invalid_signature")
    assert money(management, customer) == ("0", "0", "0")
    assert management.query("select from gateway.payment_events where id = %s", event["id"]) == []
    # and the true one is taken all the same
    assert await sent(management, event) == ["recorded"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_event"),
        (b'{"id": "evt_1", "object": "event"}', 400, "invalid_event"),
        (b" " * (512 * 1024 + 1), 413, "payload_too_large"),
    ],
)
async def test_what_is_signed_and_no_event_is_refused(
    management: Management, body: bytes, status: int, code: str
) -> None:
    response = await management.client.post(WEBHOOK, content=body, headers=sign(body))
    assert_error(response, status, code)


async def test_real_money_and_play_money_do_not_mix(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    event = {**stripe_server.pay(stripe_server.session(customer.id, 1000)), "livemode": True}
    assert_error(await send(management, event), 400, "livemode_mismatch")
    assert money(management, customer) == ("0", "0", "0")


async def test_unknown_types_and_sales_of_others_are_taken_and_change_nothing(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    session = stripe_server.session(customer.id, 1000)
    foreign = stripe_server.session(customer.id, 1000, metadata={"shop": "another"})
    assert (
        await sent(
            management,
            stripe_server.event("invoice.paid", {"id": "in_1"}),
            stripe_server.event("checkout.session.expired", session),
            stripe_server.pay(foreign),
            stripe_server.pay({**session, "mode": "subscription"}),
        )
        == ["ignored"] * 4
    )
    assert money(management, customer) == ("0", "0", "0")
    # a refund of a sale that is not ours takes nothing from anybody
    await sent(management, stripe_server.charge_refunded(foreign, 1000))
    assert money(management, customer) == ("0", "0", "0")
    assert told_of(management, customer) == []


# What is credited


async def test_an_event_counts_once_however_often_it_comes(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    session = stripe_server.session(customer.id, 1234)
    event = stripe_server.pay(session)
    assert await sent(management, event, event, event) == ["recorded", "duplicate", "duplicate"]
    # Stripe may tell of one payment by two events
    succeeded = stripe_server.event(
        "checkout.session.async_payment_succeeded", {**session, "payment_status": "paid"}
    )
    assert await sent(management, succeeded) == ["recorded"]
    assert money(management, customer) == ("12.34", "0", "0")
    (entry,) = management.query(
        "select kind, amount_usd::text, reference, actor from gateway.ledger_entries where customer_id = %s",
        customer.id,
    )
    assert entry == ("credit", "12.3400000000", f"stripe:{session['payment_intent']}", "stripe")
    books_agree(management)


async def test_at_once_it_counts_once_too(management: Management, stripe_server: StripeServer) -> None:
    customer = customer_of(management)
    session = stripe_server.session(customer.id, 1000)
    paid, refunded = stripe_server.pay(session), stripe_server.charge_refunded(session, 300)
    responses = await asyncio.gather(*(send(management, event) for event in [paid, refunded] * 12))
    outcomes = [response.json()["outcome"] for response in responses]
    assert sorted(outcomes) == ["duplicate"] * 22 + ["recorded"] * 2
    assert money(management, customer) == ("7", "0", "0")
    books_agree(management)


async def test_what_is_paid_later_is_credited_when_it_is_paid(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    later, never = (stripe_server.session(customer.id, 1000) for _ in range(2))
    for session in (later, never):
        await sent(
            management, stripe_server.event("checkout.session.completed", {**session, "status": "complete"})
        )
    assert money(management, customer) == ("0", "0", "0")
    paid = {**later, "payment_status": "paid"}
    await sent(
        management,
        stripe_server.event("checkout.session.async_payment_succeeded", paid),
        stripe_server.event("checkout.session.async_payment_failed", never),
    )
    assert money(management, customer) == ("10", "0", "0")
    told = await management.ok("GET", "/v1/billing", key=customer.key)
    assert [payment["status"] for payment in told["data"]] == ["failed", "paid"]


@pytest.mark.parametrize(
    ("changes", "credited", "reason"),
    [
        ({"currency": "jpy", "amount_total": 1000}, "0", "currency"),
        ({"currency": "eur"}, "0", "currency"),
        ({"amount_total": 900}, "9", "amount"),
        ({"client_reference_id": "999999999"}, "0", "unknown_customer"),
        ({"client_reference_id": None}, "0", "unknown_customer"),
    ],
)
async def test_what_was_paid_otherwise_than_asked_is_told_to_the_operator(
    management: Management, stripe_server: StripeServer, changes: dict[str, Any], credited: str, reason: str
) -> None:
    customer = customer_of(management)
    session = stripe_server.session(customer.id, 1000, **changes)
    await sent(management, stripe_server.pay(session))
    assert money(management, customer) == (credited, "0", "0")
    (raised,) = management.query(
        "select data ->> 'reason' from gateway.events where kind = 'payment.unexpected'"
        " and data ->> 'payment_intent' = %s",
        session["payment_intent"],
    )
    assert raised == (reason,)
    # and its refund takes back what was credited, and no more
    await sent(management, stripe_server.charge_refunded(session, session["amount_total"]))
    assert money(management, customer) == ("0", "0", "0")
    books_agree(management)


async def test_a_customer_that_is_not_there_is_credited_nothing(
    management: Management, stripe_server: StripeServer
) -> None:
    session = stripe_server.session(999_999_999, 1000)
    assert await sent(management, stripe_server.pay(session)) == ["recorded"]
    told = await management.ok("GET", "/admin/payments")
    payment = next(row for row in told["data"] if row["payment_intent"] == session["payment_intent"])
    assert (payment["status"], payment["customer_id"], payment["paid_minor"]) == ("not_credited", None, 1000)


async def test_an_erased_customer_is_credited_nothing_and_its_books_stay(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    before, after = (stripe_server.session(customer.id, 1000) for _ in range(2))
    await sent(management, stripe_server.pay(before))
    await management.ok("DELETE", f"/admin/customers/{customer.id}")
    await sent(management, stripe_server.pay(after), stripe_server.charge_refunded(before, 400))
    assert money(management, customer) == ("6", "0", "0")
    assert "payment.unexpected" in told_of(management, customer)
    assert_error(
        await management.admin("POST", "/v1/billing/checkout", {"usd": "10", "customer_id": customer.id}),
        409,
        "customer_erased",
    )
    books_agree(management)


# Refunds, disputes, debts


async def test_a_refund_beyond_the_balance_is_a_debt_that_the_next_top_up_pays_first(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    session = stripe_server.session(customer.id, 1000)
    await sent(management, stripe_server.pay(session))
    # eight of the ten are spent
    await management.ok("POST", "/admin/add_credits", {"user_id": customer.id, "usd": -8})
    await sent(management, stripe_server.charge_refunded(session, 1000))
    assert money(management, customer) == ("0", "0", "8")
    assert told_of(management, customer) == ["customer.in_debt", "payment.reversed"]

    refusal = await admit(management, customer)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.details["debt_usd"]) == ("customer_in_debt", "8")
    limits = await management.ok("GET", "/user/limit", key=customer.key)
    assert limits["current_usage"]["allowed"] is False
    assert "$8" in limits["current_usage"]["reason"]
    # it can still look, and top up
    told = await management.ok("GET", "/v1/billing", key=customer.key)
    assert (told["debt_usd"], told["suspended"]) == ("8", True)
    assert (
        await management.call("POST", "/v1/billing/checkout", customer.key, {"usd": "5"})
    ).status_code == 200

    # an admin's suspension is another thing, which no top-up lifts
    await management.ok("PATCH", f"/admin/customers/{customer.id}", {"active": False})
    await sent(management, stripe_server.pay(stripe_server.session(customer.id, 500)))
    assert money(management, customer) == ("0", "0", "3")
    added = await management.ok("POST", "/admin/add_credits", {"user_id": customer.id, "usd": 1})
    assert (added["balance_after_usd"], added["debt_usd"]) == ("0", "2")
    await sent(management, stripe_server.pay(stripe_server.session(customer.id, 1000)))
    assert money(management, customer) == ("8", "0", "0")
    refusal = await admit(management, customer)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "customer_suspended"
    await management.ok("PATCH", f"/admin/customers/{customer.id}", {"active": True})
    assert isinstance(await admit(management, customer), Admission)
    assert told_of(management, customer) == ["customer.in_debt", "payment.reversed"]
    books_agree(management)


async def test_a_refund_while_a_request_holds_gets_what_the_request_leaves(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    session = stripe_server.session(customer.id, 500)
    await sent(management, stripe_server.pay(session))
    running = await admit(management, customer)
    assert isinstance(running, Admission)
    assert money(management, customer) == ("5", "4.2", "0")
    await sent(management, stripe_server.charge_refunded(session, 500))
    assert money(management, customer) == ("4.2", "4.2", "4.2")
    await management.process.database.settle_request(
        {
            "request_id": running.request_id,
            "admitted_at": running.admitted_at,
            "outcome": "succeeded",
            "route_id": running.candidates[0].route_id,
            "usage": {"output": 100_000},
            "status": 200,
            "latency_ms": 1,
        }
    )
    # 0.84 are charged, and the rest goes to the debt
    assert money(management, customer) == ("0", "0", "0.84")
    books_agree(management)


async def test_each_refund_counts_once_and_a_failed_one_comes_back(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    session = stripe_server.session(customer.id, 1000)
    await sent(management, stripe_server.pay(session))
    await sent(
        management,
        stripe_server.refund(session, 1, 300, "pending"),
        stripe_server.charge_refunded(session, 300),
        stripe_server.refund(session, 2, 200, "succeeded"),
        stripe_server.charge_refunded(session, 500),
        stripe_server.charge_refunded(session, 500),
        stripe_server.refund(session, 1, 300, "succeeded"),
    )
    assert money(management, customer) == ("5", "0", "0")
    await sent(management, stripe_server.refund(session, 2, 200, "failed"))
    assert money(management, customer) == ("7", "0", "0")
    # which stays so, whatever comes late
    await sent(management, stripe_server.refund(session, 2, 200, "pending"))
    assert money(management, customer) == ("7", "0", "0")
    books_agree(management)


async def test_a_dispute_takes_the_money_and_a_won_one_gives_it_back(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    session = stripe_server.session(customer.id, 1000)
    await sent(management, stripe_server.pay(session))
    # an inquiry moves no money
    await sent(management, stripe_server.dispute(session, "warning_needs_response", "created"))
    assert money(management, customer) == ("10", "0", "0")
    await management.ok("POST", "/admin/add_credits", {"user_id": customer.id, "usd": -7})
    await sent(management, stripe_server.dispute(session, "needs_response", "funds_withdrawn"))
    assert money(management, customer) == ("0", "0", "7")
    told = await management.ok("GET", "/v1/billing", key=customer.key)
    assert [payment["status"] for payment in told["data"]] == ["disputed"]
    await sent(management, stripe_server.dispute(session, "won", "closed"))
    assert money(management, customer) == ("3", "0", "0")
    await sent(management, stripe_server.dispute(session, "won", "funds_reinstated"))
    assert money(management, customer) == ("3", "0", "0")
    assert told_of(management, customer) == ["customer.in_debt", "payment.disputed", "payment.reversed"]
    books_agree(management)


async def test_refund_and_dispute_together_take_no_more_than_was_paid(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management, "100")
    session = stripe_server.session(customer.id, 1000)
    await sent(
        management,
        stripe_server.pay(session),
        stripe_server.dispute(session, "needs_response", "created"),
        stripe_server.charge_refunded(session, 600),
        stripe_server.dispute(session, "lost", "closed"),
    )
    assert money(management, customer) == ("100", "0", "0")
    books_agree(management)


STORIES: dict[str, Callable[[StripeServer, Event, Event], list[Event]]] = {
    "partial refunds": lambda server, session, _: [
        server.pay(session),
        server.charge_refunded(session, 300),
        server.charge_refunded(session, 700),
        server.refund(session, 1, 300, "succeeded"),
    ],
    "a failed refund": lambda server, session, _: [
        server.pay(session),
        server.refund(session, 1, 1000, "pending"),
        server.charge_refunded(session, 1000),
        server.refund(session, 1, 1000, "failed"),
    ],
    "a dispute that is won": lambda server, session, _: [
        server.pay(session),
        server.dispute(session, "needs_response", "created"),
        server.dispute(session, "needs_response", "funds_withdrawn"),
        server.dispute(session, "won", "closed"),
        server.dispute(session, "won", "funds_reinstated"),
    ],
    "a dispute that is won, and lost on appeal": lambda server, session, _: [
        server.pay(session),
        server.dispute(session, "won", "closed"),
        server.dispute(session, "appeal_under_review", later=1),
        server.dispute(session, "lost", "closed", later=2),
    ],
    "a dispute that is lost, and won on appeal": lambda server, session, _: [
        server.pay(session),
        server.dispute(session, "lost", "closed"),
        server.dispute(session, "appeal_needs_response", later=1),
        server.dispute(session, "won", "funds_reinstated", later=2),
    ],
    "a dispute that is lost after a refund": lambda server, session, _: [
        server.pay(session),
        server.charge_refunded(session, 400),
        server.dispute(session, "warning_needs_response", "created"),
        server.dispute(session, "lost", "closed"),
    ],
    "a debt that the payment pays": lambda server, session, spent: [
        server.charge_refunded(spent, 800),
        server.charge_refunded(spent, 1000),
        server.pay(session),
        server.charge_refunded(session, 200),
    ],
    "paid later": lambda server, session, _: [
        server.event("checkout.session.completed", {**session, "status": "complete"}),
        server.event("checkout.session.async_payment_succeeded", {**session, "payment_status": "paid"}),
        server.charge_refunded(session, 1000),
    ],
}


@pytest.mark.parametrize("story", STORIES)
async def test_any_order_of_events_comes_to_the_same_books(
    management: Management, stripe_server: StripeServer, story: str
) -> None:
    """Of a customer with a running request, who has spent what it paid before but for a dollar."""
    probe = stripe_server.session(1, 1000)
    ends = set()
    for order in itertools.permutations(range(len(STORIES[story](stripe_server, probe, probe)))):
        customer = customer_of(management, "4.2")
        assert isinstance(await admit(management, customer), Admission)
        session, spent = (stripe_server.session(customer.id, 1000) for _ in range(2))
        await sent(management, stripe_server.pay(spent))
        await management.ok("POST", "/admin/add_credits", {"user_id": customer.id, "usd": -9})
        events = STORIES[story](stripe_server, session, spent)
        for number in order:
            await sent(management, events[number])
        assert await sent(management, events[order[0]]) == ["duplicate"]
        payment = (await management.ok("GET", f"/admin/payments?customer_id={customer.id}"))["data"][0]
        ends.add(
            (
                money(management, customer),
                *(payment[name] for name in ("status", "credited_usd", "refunded_usd", "disputed_usd")),
            )
        )
    assert len(ends) == 1, ends
    books_agree(management)


async def test_reversals_and_admissions_at_once_break_no_invariant(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    sessions = [stripe_server.session(customer.id, 500) for _ in range(6)]
    await sent(management, *(stripe_server.pay(session) for session in sessions))
    await admit(management, customer)
    answers = await asyncio.gather(
        *(admit(management, customer) for _ in range(10)),
        *(send(management, stripe_server.charge_refunded(session, 500)) for session in sessions),
    )
    admitted = 1 + sum(isinstance(answer, Admission) for answer in answers)
    balance, held, debt = money(management, customer)
    assert (Decimal(balance), Decimal(held), Decimal(debt)) == (Decimal("4.2") * admitted,) * 3
    assert all(
        answer.code in {"customer_in_debt", "insufficient_credits"}
        for answer in answers
        if isinstance(answer, Refusal)
    )
    books_agree(management)


# Replay


async def test_what_was_missed_is_fetched_and_taken_in_once(
    management: Management, stripe_server: StripeServer
) -> None:
    customer = customer_of(management)
    since = datetime.now(UTC).replace(microsecond=0).isoformat()
    sessions = [stripe_server.session(customer.id, 100) for _ in range(120)]
    events = [stripe_server.pay(session) for session in sessions]
    stripe_server.event("invoice.paid", {"id": "in_1"})
    await sent(management, events[7])
    one = await management.ok("POST", "/admin/payments/replay", {"event_id": events[3]["id"]})
    assert one == {"recorded": 1, "duplicate": 0, "ignored": 0, "next": None}
    told = await management.ok("POST", "/admin/payments/replay", {"since": since})
    assert told == {"recorded": 118, "duplicate": 2, "ignored": 0, "next": None}
    assert money(management, customer) == ("120", "0", "0")
    told = await management.ok("POST", "/admin/payments/replay", {"since": since, "after": events[20]["id"]})
    assert told == {"recorded": 0, "duplicate": 20, "ignored": 0, "next": None}
    actor = management.value(
        "select actor from gateway.ledger_entries where customer_id = %s order by id desc limit 1",
        customer.id,
    )
    assert actor == f"key {management.admin_key[:9]}…"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"event_id": "evt_unknown"}, 404, "event_not_found"),
        ({"since": "1969-01-01T00:00:00Z", "after": "evt_unknown"}, 404, "event_not_found"),
        ({}, 422, None),
        ({"event_id": "evt_1", "since": "2026-11-21T00:00:00Z"}, 422, None),
        ({"event_id": "../customers"}, 422, None),
        ({"after": "evt_1", "event_id": "evt_2"}, 422, None),
    ],
)
async def test_a_replay_that_makes_no_sense_is_refused(
    management: Management, body: dict[str, Any], status: int, code: str | None
) -> None:
    assert_error(await management.admin("POST", "/admin/payments/replay", body), status, code)


async def test_payments_are_listed_by_the_page_and_each_to_its_customer(
    management: Management, stripe_server: StripeServer
) -> None:
    mine, other = customer_of(management), customer_of(management)
    for customer in (mine, other, mine):
        await sent(management, stripe_server.pay(stripe_server.session(customer.id, 1000)))
    first = await management.ok("GET", "/v1/billing?limit=1", key=mine.key)
    rest = await management.ok("GET", f"/v1/billing?limit=1&cursor={first['next_cursor']}", key=mine.key)
    assert (len(first["data"]), len(rest["data"]), rest["next_cursor"]) == (1, 1, None)
    assert first["amounts_usd"] == ["10", "25", "50", "100"]
    assert (first["configured"], first["balance_usd"], first["suspended"]) == (True, "20", False)
    assert "pi_" not in json.dumps([first, rest])
    assert_error(
        await management.call("GET", f"/v1/billing?customer_id={other.id}", mine.key),
        404,
        "customer_not_found",
    )
    seen = await management.ok("GET", f"/admin/payments?customer_id={other.id}")
    assert [payment["customer_id"] for payment in seen["data"]] == [other.id]
    assert_error(await management.call("GET", "/admin/payments", mine.key), 403, "scope_missing")


async def test_the_page_pays_and_tells_by_the_webhook(
    management: Management, stripe_server: StripeServer
) -> None:
    """What a browser does, but for the gateway's own socket."""
    customer = customer_of(management)
    told = await management.ok("POST", "/v1/billing/checkout", {"usd": "10"}, key=customer.key)
    (session,) = stripe_server.sessions.values()
    assert told["url"] == f"{stripe_server.url}/pay/{session['id']}"
    await sent(management, stripe_server.pay(session))
    assert money(management, customer) == ("10", "0", "0")
