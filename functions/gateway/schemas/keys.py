"""What clients send to the routes of keys."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from gateway.schemas.values import (
    Body,
    Email,
    Id,
    KeyText,
    Name,
    Patch,
    PositiveCount,
    RateLimits,
    Time,
    WarnPercent,
    as_sent,
)

MAX_GRACE_SECONDS = 30 * 24 * 3600

Scope = Literal["chat", "usage", "keys", "billing", "admin"]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=5)]
Ids = Annotated[list[Id], Field(max_length=1000)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Models = Annotated[list[Id | ModelName], Field(max_length=1000)]
"""By id or by name."""
ModelLimits = Annotated[dict[ModelName, RateLimits], Field(max_length=100)]
"""By the model's name; `*` for every model by itself."""


class CreateKeyRequest(Body):
    """The body of POST /v1/keys. `customer_id` is for admins."""

    name: Name
    scopes: Scopes | None = None
    allowed_models: Models | None = None
    """None: all that the maker may use."""
    allowed_services: Ids | None = None
    expires_at: Time | None = None
    """None: never, or when the key that makes it expires."""
    limits: RateLimits | None = None
    """Over all models together."""
    model_limits: ModelLimits | None = None
    warn: RateLimits | None = None
    """Soft marks: beyond them requests are served with a warning."""
    warn_percent: WarnPercent | None = None
    """Where the soft mark of a limit is that `warn` does not name. None: at 80 percent."""
    customer_id: Id | None = None


class UpdateKeyRequest(Patch):
    """The body of PATCH /v1/keys/{id}."""

    nullable: ClassVar[frozenset[str]] = frozenset({"allowed_models", "allowed_services", "expires_at"})

    name: Name = ""
    scopes: Scopes = Field(default_factory=list)
    allowed_models: Models | None = None
    """Null: all that the caller may use."""
    allowed_services: Ids | None = None
    expires_at: Time | None = None
    """Null: never, or when the key that asks expires."""
    limits: RateLimits = Field(default_factory=RateLimits)
    model_limits: ModelLimits = Field(default_factory=dict)
    warn: RateLimits = Field(default_factory=RateLimits)
    warn_percent: WarnPercent | None = None

    def changes(self) -> dict[str, Any]:
        """Return what was named, as api.update_key takes it."""
        return {name: _as_sent(getattr(self, name)) for name in self.model_fields_set}


class RotateKeyRequest(Body):
    """The body of POST /v1/keys/{id}/rotate."""

    grace_seconds: Annotated[int, Field(ge=0, le=MAX_GRACE_SECONDS)] = 0
    """How long the old secret works on. 0 stops it, and every older one, at once."""


class CreateOlderKeyRequest(Body):
    """The body of POST /api/keys. `rate_limit` is in requests per minute, for each model."""

    name: Name = "default"
    allowed_models: Models | None = None
    rate_limit: PositiveCount | None = None
    customer_email: Email | None = None


class DeleteOlderKeyRequest(Body):
    """The body of DELETE /api/keys: the whole key."""

    key: KeyText


def limits_by_model(limits: dict[str, RateLimits] | None) -> dict[str, dict[str, int | str | None]] | None:
    """Return the limits of a new key by model, without those that are null."""
    return {model: told.limits() or {} for model, told in limits.items()} if limits else None


def _as_sent(value: Any) -> Any:
    if isinstance(value, RateLimits):
        return value.changes()
    if isinstance(value, dict):
        return {name: _as_sent(part) for name, part in value.items()}
    return as_sent(value)
