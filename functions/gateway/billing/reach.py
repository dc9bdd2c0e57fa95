"""Whose account a caller may see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import Forbidden, NotFound, Unprocessable

if TYPE_CHECKING:
    from gateway.principals import Principal


def unknown_customer() -> NotFound:
    return NotFound("There is no such customer.", code="customer_not_found", param="customer_id")


def reached_customer(principal: Principal, asked: int | None) -> int:
    """Return the customer that is meant: the caller's own, or the one that an admin names.

    Raises NotFound (404) for another's, Unprocessable (422) where an admin names none, Forbidden (403).
    """
    if asked is None or asked == principal.customer_id:
        if principal.customer_id is not None:
            return principal.customer_id
        if principal.is_admin:
            raise Unprocessable("customer_id: name the customer.", param="customer_id")
        raise Forbidden("This key belongs to no customer, so it has no balance.", code="no_customer")
    if not principal.is_admin:
        raise unknown_customer()
    return asked
