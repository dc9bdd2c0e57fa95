"""`sluice users` and `sluice credits`: customers and their money."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from infra.operator.api import Api, Connection, OperatorError
from infra.operator.tables import moment, print_json, print_table, usd

users = typer.Typer(no_args_is_help=True, help="Customers: list, add, suspend, erase.")
credit = typer.Typer(no_args_is_help=True, help="Customers' prepaid credits.")

Who = Annotated[str, typer.Argument(help="A customer's id or e-mail address.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@users.command("list")
def list_users(
    search: Annotated[str | None, typer.Option(help="Part of a name, user name, address or company.")] = None,
    as_json: AsJson = False,
) -> None:
    """List customers with what they have and what is held of it."""
    with Api(Connection.from_environment()) as api:
        customers = list(api.rows("/admin/customers", q=search))
        balances = {row["user_id"]: row for row in api.rows("/admin/balance", name="users")}
    rows = [{**customer, **_money(balances.get(customer["id"]))} for customer in customers]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["id", "name", "e-mail", "company", "credits", "balance USD", "held USD", "active", "since"],
        [
            [
                str(row["id"]),
                row["name"],
                row["email"],
                row["company"],
                row["credits"],
                usd(row["balance_usd"]),
                usd(row["held_usd"]),
                row["active"],
                moment(row["created_at"]),
            ]
            for row in rows
        ],
        empty="No customers.",
    )


@users.command("show")
def show_user(who: Who, as_json: AsJson = False) -> None:
    """Show a customer and its keys."""
    with Api(Connection.from_environment()) as api:
        customer = find_customer(api, who)
        keys = list(api.rows("/v1/keys", customer_id=customer["id"]))
    if as_json:
        print_json({**customer, "keys": keys})
        return
    print_table(["", ""], [[name, value] for name, value in customer.items()], empty="")
    print()
    print_keys(keys)


@users.command("add")
def add_user(
    name: Annotated[str, typer.Argument(help="The customer's name.")],
    email: Annotated[str | None, typer.Option(help="Unique address.")] = None,
    company: Annotated[str | None, typer.Option()] = None,
    credits_: Annotated[int | None, typer.Option("--credits", min=1, help="First credits.")] = None,
) -> None:
    """Add a customer with a key of its own. The key is printed once."""
    body = {"name": name, "email": email, "company": company, "credits": credits_}
    with Api(Connection.from_environment()) as api:
        made = api.post(
            "/admin/create_user", {key: value for key, value in body.items() if value is not None}
        )
    print(f"Customer {made['user_id']} with {made['credits']} credits. Its key, shown this once:")
    print(made["api_key"])


@users.command("suspend")
def suspend_user(who: Who) -> None:
    """Refuse every key of a customer, at once."""
    _set_active(who, active=False)


@users.command("resume")
def resume_user(who: Who) -> None:
    """Let a suspended customer in again."""
    _set_active(who, active=True)


@users.command("erase")
def erase_user(
    who: Who, yes: Annotated[bool, typer.Option("--yes", help="Don't ask whether to go on.")] = False
) -> None:
    """Erase a customer's personal data for good. The books stay."""
    with Api(Connection.from_environment()) as api:
        customer = find_customer(api, who)
        if not yes:
            typer.confirm(
                f"Erase {customer['name']} ({customer['id']}) and revoke all its keys, for good?", abort=True
            )
        api.delete(f"/admin/customers/{customer['id']}")
    print(f"Customer {customer['id']} is erased.")


@credit.command("add")
def add_credits(
    who: Who,
    amount: Annotated[str, typer.Argument(help="In USD, such as 10 or 2.50; below zero corrects.")],
    in_credits: Annotated[bool, typer.Option("--credits", help="The amount is in credits.")] = False,
    reference: Annotated[
        str | None, typer.Option(help="Such as an invoice's number: the same one is booked once.")
    ] = None,
    note: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Add to a customer's balance. A correction: `sluice credits add ada@example.com -- -2.50`."""
    with Api(Connection.from_environment()) as api:
        customer = find_customer(api, who)
        body: dict[str, Any] = {"user_id": customer["id"], "reference": reference, "note": note}
        body |= {"credits": _whole(amount)} if in_credits else {"usd": amount}
        told = api.post(
            "/admin/add_credits", {key: value for key, value in body.items() if value is not None}
        )
    if told["duplicate"]:
        print("It was booked before, under the same reference.")
    print(f"{customer['name']} has {told['balance_after']:,} credits ({told['balance_after_usd']} USD).")


@credit.command("show")
def show_credits(who: Who) -> None:
    """Show a customer's balance."""
    with Api(Connection.from_environment()) as api:
        customer = find_customer(api, who)
        rows = api.rows("/admin/balance", name="users")
        balance = next(row for row in rows if row["user_id"] == customer["id"])
    print(
        f"{customer['name']} has {balance['credits']:,} credits "
        f"({balance['balance_usd']} USD, {balance['held_usd']} of it held)."
    )


def find_customer(api: Api, who: str) -> dict[str, Any]:
    """Return the customer with this id or address. Raises OperatorError."""
    if who.isdecimal():
        found: dict[str, Any] = api.get(f"/admin/customers/{who}")
        return found
    for customer in api.rows("/admin/customers", q=who):
        if (customer["email"] or "").lower() == who.lower():
            exact: dict[str, Any] = customer
            return exact
    raise OperatorError(f"no customer has the address {who!r}: `sluice users list --search …` finds them")


def print_keys(keys: list[dict[str, Any]]) -> None:
    """Print keys as a table."""
    print_table(
        ["id", "key", "name", "scopes", "active", "last used", "expires"],
        [
            [
                str(key["id"]),
                key["prefix"],
                key["name"],
                key["scopes"],
                key["active"],
                moment(key["last_used_at"]),
                moment(key["expires_at"]),
            ]
            for key in keys
        ],
        empty="No keys.",
    )


def _set_active(who: str, *, active: bool) -> None:
    with Api(Connection.from_environment()) as api:
        customer = find_customer(api, who)
        api.patch(f"/admin/customers/{customer['id']}", {"active": active})
    print(f"{customer['name']} is {'active' if active else 'suspended'}.")


def _money(balance: dict[str, Any] | None) -> dict[str, Any]:
    names = ("credits", "balance_usd", "held_usd")
    return {name: None if balance is None else balance[name] for name in names}


def _whole(amount: str) -> int:
    try:
        return int(amount)
    except ValueError:
        raise OperatorError(f"credits are a whole number here, not {amount!r}") from None
