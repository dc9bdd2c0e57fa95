"""What the database refuses, as the contract's errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from gateway.errors import Conflict, GatewayError, InternalError, Unprocessable
from gateway.metering import database_failed

if TYPE_CHECKING:
    from gateway.database.client import DatabaseError
    from gateway.database.rpc import JSONObject

Found = TypeVar("Found")

_UNIQUE_VIOLATION = "23505"
# What a guard of the database refuses: a key of an erased customer.
_RESTRICT_VIOLATION = "23001"
# SQLSTATE classes: data exception (22), integrity constraint violation (23).
_INVALID = ("22", "23")


def accept(told: JSONObject, /, **refusals: GatewayError) -> JSONObject:
    """Return what a SQL function told, or raise the error that stands here for its `{"error": …}`.

    Raises InternalError (500) for a refusal that is not named.
    """
    error = told.get("error")
    if error is None:
        return told
    raise refusals.get(error) or InternalError(detail=f"the database refused with {error!r}")


def found(told: Found | None, refusal: GatewayError) -> Found:
    """Return what was found, or raise `refusal`."""
    if told is None:
        raise refusal
    return told


def database_refused(error: DatabaseError) -> GatewayError:
    """Return what the client is told when a call of the management plane fails.

    The edge checks all that the constraints do; what reaches one all the same is no fault of the gateway, and
    the client is not told the table's.
    """
    code = error.code or ""
    if code == _UNIQUE_VIOLATION:
        return Conflict("There is one like this already.", detail=str(error))
    if code == _RESTRICT_VIOLATION:
        return Conflict("What is there already forbids this.", detail=str(error))
    if code.startswith(_INVALID):
        return Unprocessable("A value in this request can't be stored.", detail=str(error))
    return database_failed(error)
