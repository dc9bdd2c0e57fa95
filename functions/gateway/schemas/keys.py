"""What clients send to the routes of keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.schemas.values import Body, Email, Id, KeyText, Name, PositiveCount, RateLimits, Time

Scope = Literal["chat", "usage", "keys", "billing", "admin"]
Ids = Annotated[list[Id], Field(max_length=1000)]


class CreateKeyRequest(Body):
    """The body of POST /v1/keys. `customer_id` is for admins."""

    name: Name
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=5)] | None = None
    allowed_models: Ids | None = None
    """None: all that the maker may use."""
    allowed_services: Ids | None = None
    expires_at: Time | None = None
    limits: RateLimits | None = None
    """Over all models together."""
    customer_id: Id | None = None


class CreateOlderKeyRequest(Body):
    """The body of POST /api/keys. `rate_limit` is in requests per minute, for each model."""

    name: Name = "default"
    allowed_models: Ids | None = None
    rate_limit: PositiveCount | None = None
    customer_email: Email | None = None


class DeleteOlderKeyRequest(Body):
    """The body of DELETE /api/keys: the whole key."""

    key: KeyText
