"""A statement as CSV and as a page: whoever's names are in it, and only for whom it is."""

from __future__ import annotations

import csv
import io
import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from gateway.billing.statement_forms import POLICY, plain
from tests.fixtures.management import Customer, Management, assert_error, management

if TYPE_CHECKING:
    import httpx

__all__ = ["management"]

FORMULA = '=HYPERLINK("http://evil.example";"1")'
MARKUP = "<script>alert(1)</script>\"'&"


async def with_history(management: Management, reference: str) -> tuple[Customer, str]:
    """A customer with a payment under this reference, a correction and a charge; and this month."""
    customer = management.customer(scopes=("billing",))
    body = {"user_id": customer.id, "usd": "10", "reference": reference}
    await management.ok("POST", "/admin/add_credits", body)
    await management.ok("POST", "/admin/add_credits", {"user_id": customer.id, "usd": "-0.5"})
    months = await management.ok("GET", "/v1/billing/statements", key=customer.key)
    (month,) = months["data"]
    assert (month["closed"], months["next_cursor"]) == (False, None)
    return customer, month["month"]


async def read(management: Management, customer: Customer, month: str, form: str) -> httpx.Response:
    response = await management.call(
        "GET", f"/v1/billing/statements/{month}?format={form}", customer.key, params={"format": form}
    )
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "private, no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    return response


async def test_the_rows_of_the_table_come_to_its_last(management: Management) -> None:
    customer, month = await with_history(management, 'a "quoted", reference')
    response = await read(management, customer, month, "csv")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert f"statement-{customer.id}-{month}.csv" in response.headers["content-disposition"]
    assert response.text.count("\r\n") == response.text.count("\n") == 5
    *rows, last = csv.DictReader(io.StringIO(response.text, newline=""))
    assert sum(Decimal(row["amount_usd"]) for row in rows) == Decimal(last["amount_usd"]) == Decimal("9.5")
    assert rows[1]["reference"] == 'a "quoted", reference'


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        (FORMULA, f"'{FORMULA}"),
        ("+1", "'+1"),
        ("-1+2", "'-1+2"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("  =1", "'  =1"),
        ("\r\n=1", "'\r\n=1"),
        ("\uff1d1", "'\uff1d1"),
        ("gpt-4o", "gpt-4o"),
        ("", ""),
        (None, ""),
    ],
)
def test_no_text_becomes_a_formula(text: str | None, cell: str) -> None:
    assert plain(text) == cell


async def test_a_reference_that_is_a_formula_comes_as_text(management: Management) -> None:
    customer, month = await with_history(management, FORMULA)
    response = await read(management, customer, month, "csv")
    cells = [cell for row in csv.reader(io.StringIO(response.text, newline="")) for cell in row]
    assert f"'{FORMULA}" in cells
    number = re.compile(r"-?[0-9.]+")
    assert not [cell for cell in cells if cell[:1] in {"=", "+", "-", "@"} and not number.fullmatch(cell)]


async def test_the_page_escapes_what_strangers_wrote_and_runs_nothing(management: Management) -> None:
    customer, month = await with_history(management, MARKUP)
    response = await read(management, customer, month, "html")
    assert response.headers["content-security-policy"] == POLICY
    assert "script-src" not in POLICY
    assert POLICY.startswith("default-src 'none'; style-src 'sha256-")
    assert "<script" not in response.text
    assert "&lt;script&gt;" in response.text
    assert not re.search(r"\son\w+=|https?://|\sstyle=", response.text)


async def test_a_statement_is_its_customers_alone(management: Management) -> None:
    customer, month = await with_history(management, "mine")
    other = management.customer(scopes=("billing",))
    plain_key = management.customer(scopes=("chat", "usage", "keys"))
    path = f"/v1/billing/statements/{month}"
    person = management.person(customer)
    for route in (path, "/v1/billing/statements"):
        asked = f"{route}?customer_id={customer.id}"
        assert_error(await management.call("GET", asked, other.key), 404, "customer_not_found")
        assert_error(await management.call("GET", route, plain_key.key), 403, "scope_missing")
        assert_error(await management.admin("GET", route), 422, param="customer_id")
        assert (await management.admin("GET", asked)).status_code == 200
        assert (await management.call("GET", route, person)).status_code == 200
    assert_error(await management.call("GET", path, other.key), 404, "statement_not_found")
    for month_of_none in ("2026-13", "2026-1", "x", "0000-01", "2020-01"):
        asked = f"/v1/billing/statements/{month_of_none}"
        assert_error(await management.call("GET", asked, customer.key), 404, "statement_not_found")
    assert_error(await management.call("GET", f"{path}?format=pdf", customer.key), 422, param="format")


async def test_without_stripe_the_routes_say_so_and_statements_work(management: Management) -> None:
    customer, month = await with_history(management, "paid in cash")
    told = await management.ok("GET", "/v1/billing", key=customer.key)
    assert (told["configured"], told["balance_usd"], told["data"]) == (False, "9.5", [])
    for response in (
        await management.call("POST", "/v1/billing/checkout", customer.key, {"usd": "10"}),
        await management.admin("POST", "/admin/payments/replay", {"since": "2026-11-21T00:00:00Z"}),
        await management.client.post(
            "/stripe/webhook", content=b"{}", headers={"stripe-signature": "t=1,v1=0"}
        ),
    ):
        assert_error(response, 501, "billing_not_configured")
        assert response.headers["x-should-retry"] == "false"
    statement = (await read(management, customer, month, "json")).json()
    assert (statement["closing_balance_usd"], statement["closed"]) == ("9.5", False)
    assert json.dumps(statement["entries"]).count("paid in cash") == 1
