"""`sluice keys`: made, listed, rotated, switched off, revoked."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from infra.operator.api import Api, Connection
from infra.operator.tables import print_json
from infra.operator.users import AsJson, Who, find_customer, print_keys

keys = typer.Typer(no_args_is_help=True, help="Keys: make, list, rotate, switch off, revoke.")

KeyId = Annotated[int, typer.Argument(help="A key's id, as `sluice keys list` shows it.")]


@keys.command("list")
def list_keys(
    user: Annotated[str | None, typer.Option(help="Of this customer: its id or address.")] = None,
    as_json: AsJson = False,
) -> None:
    """List keys, never the secrets."""
    with Api(Connection.from_environment()) as api:
        customer_id = None if user is None else find_customer(api, user)["id"]
        found = list(api.rows("/v1/keys", customer_id=customer_id))
    if as_json:
        print_json(found)
    else:
        print_keys(found)


@keys.command("create")
def create_key(
    who: Who,
    name: Annotated[str, typer.Option(help="What its owner calls it.")] = "default",
    scope: Annotated[
        list[str] | None, typer.Option(help="chat, usage, keys, billing or admin; may be given again.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="Such as 2027-01-01T00:00:00Z.")] = None,
) -> None:
    """Make a key for a customer and print it, once."""
    body: dict[str, Any] = {"name": name, "scopes": scope, "expires_at": expires}
    with Api(Connection.from_environment()) as api:
        body["customer_id"] = find_customer(api, who)["id"]
        made = api.post("/v1/keys", {key: value for key, value in body.items() if value is not None})
    print(made["key"])


@keys.command("rotate")
def rotate_key(
    key_id: KeyId,
    grace: Annotated[int, typer.Option(help="Seconds for which the old secret still works.", min=0)] = 0,
) -> None:
    """Give a key a new secret and print it, once."""
    with Api(Connection.from_environment()) as api:
        print(api.post(f"/v1/keys/{key_id}/rotate", {"grace_seconds": grace})["key"])


@keys.command("toggle")
def toggle_key(key_id: KeyId) -> None:
    """Switch a key off, or on again."""
    with Api(Connection.from_environment()) as api:
        told = api.post(f"/v1/keys/{key_id}/toggle", {})
    print(f"Key {key_id} is {'on' if told['active'] else 'off'}.")


@keys.command("revoke")
def revoke_key(
    key_id: KeyId, yes: Annotated[bool, typer.Option("--yes", help="Don't ask whether to go on.")] = False
) -> None:
    """Revoke a key, for good."""
    if not yes:
        typer.confirm(f"Revoke key {key_id}, for good?", abort=True)
    with Api(Connection.from_environment()) as api:
        api.delete(f"/v1/keys/{key_id}")
    print(f"Key {key_id} is revoked.")
