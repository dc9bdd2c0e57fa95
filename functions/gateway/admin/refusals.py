"""What the operator's routes answer when they refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.auth import is_key, key_hash
from gateway.errors import Conflict, NotFound, Unprocessable

if TYPE_CHECKING:
    from pydantic import BaseModel


def unknown(what: str, *, param: str | None = None, code: str | None = None) -> NotFound:
    return NotFound(f"There is no such {what}.", code=code or f"{what}_not_found", param=param)


def erased(*, param: str | None = None) -> Conflict:
    return Conflict("This customer is erased.", code="customer_erased", param=param)


def taken(param: str) -> Conflict:
    return Conflict(f"This {param} is taken.", code=f"{param}_taken", param=param)


def named(asked: BaseModel, *names: str) -> str | None:
    return next((name for name in names if getattr(asked, name) is not None), None)


def invalid_amount(param: str | None) -> Unprocessable:
    return Unprocessable(
        "The amount must not be zero, nor beyond a billion USD, nor finer than the tenth decimal of a USD, "
        "and the balance stays below ten billion.",
        code="invalid_amount",
        param=param,
    )


def client_key_hash(key: str | None) -> str | None:
    if key is None:
        return None
    if not is_key(key):
        raise unknown("key", param="api_key")
    return key_hash(key)
