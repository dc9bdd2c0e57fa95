"""`sluice statements` and `sluice payments`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

import typer

from infra.operator.api import Api, Connection, OperatorError
from infra.operator.tables import moment, print_json, print_table, usd
from infra.operator.users import AsJson, find_customer

payments = typer.Typer(no_args_is_help=True, help="Payments by Stripe: list, and take in what was missed.")

_KEPT = timedelta(days=30)
"""For how long Stripe keeps events."""


def show_statement(
    customer: Annotated[str, typer.Argument(help="The customer's id or address.")],
    month: Annotated[str, typer.Argument(help="Such as 2026-11.")],
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV, for a spreadsheet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a customer's statement of a month: what came in, what was charged, what is left."""
    if not (month[:4] + month[5:]).isdecimal() or len(month) != len("2026-11"):
        raise OperatorError("a month is written as 2026-11")
    with Api(Connection.from_environment()) as api:
        query = {"customer_id": find_customer(api, customer)["id"]}
        path = f"/v1/billing/statements/{month}"
        if as_csv:
            print(api.send("GET", path, params={**query, "format": "csv"}).text, end="")
            return
        told = api.get(path, **query)
    if as_json:
        print_json(told)
        return
    _print_statement(told)


def _print_statement(told: dict[str, Any]) -> None:
    print_table(
        ["model", "requests", "input", "output", "USD"],
        [
            [
                line["model"],
                line["requests"],
                line["input_tokens"],
                line["output_tokens"],
                usd(line["charge_usd"]),
            ]
            for line in told["charges"]
        ],
        empty="No charges.",
    )
    print_table(
        ["when", "what", "reference", "USD"],
        [
            [moment(entry["at"]), entry["kind"], entry["reference"], usd(entry["amount_usd"])]
            for entry in told["entries"]
        ],
        empty="No payments.",
    )
    closing = "Closing balance" if told["closed"] else "So far"
    print(
        f"\nOpening balance {told['opening_balance_usd']}, paid in {told['credits_usd']}, "
        f"corrections {told['corrections_usd']}, refunds and disputes {told['reversals_usd']}, "
        f"charges {told['charges_usd']}. {closing}: {told['closing_balance_usd']} USD."
    )
    if Decimal(told["closing_debt_usd"]):
        print(f"Owed: {told['closing_debt_usd']} USD.")
    if told["check"]["differing"]:
        print(f"{told['check']['differing']} charges are not what their pinned prices make of them.")


@payments.command("list")
def list_payments(
    most: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100, as_json: AsJson = False
) -> None:
    """List payments, the newest first."""
    with Api(Connection.from_environment()) as api:
        found = list(api.rows("/admin/payments", most=most))
    if as_json:
        print_json(found)
        return
    names = ("customer_id", "status", "credited_usd", "refunded_usd", "disputed_usd", "payment_intent")
    print_table(
        ["created", *(name.removesuffix("_usd") for name in names)],
        [
            [
                moment(row["created_at"]),
                *(usd(row[name]) if name.endswith("_usd") else row[name] for name in names),
            ]
            for row in found
        ],
        empty="No payments.",
    )


@payments.command("replay")
def replay_payments(
    event: Annotated[str | None, typer.Option(help="Only this event, such as evt_1Pq….")] = None,
    since: Annotated[
        datetime | None, typer.Option(help="From this day or time (UTC) on. By default 30 days ago.")
    ] = None,
) -> None:
    """Fetch events from Stripe and take them in as its webhook would; what is known changes nothing."""
    if event is not None:
        body: dict[str, Any] = {"event_id": event}
    else:
        begin = datetime.now(UTC) - _KEPT if since is None else since.replace(tzinfo=UTC)
        body = {"since": begin.isoformat(timespec="seconds")}
    sums = dict.fromkeys(("recorded", "duplicate", "ignored"), 0)
    with Api(Connection.from_environment()) as api:
        while True:
            told = api.post("/admin/payments/replay", body)
            for name in sums:
                sums[name] += told[name]
            if told["next"] is None:
                break
            body["after"] = told["next"]
    print(", ".join(f"{count} {name}" for name, count in sums.items()))
