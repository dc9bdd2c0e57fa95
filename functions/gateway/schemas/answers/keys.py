"""What the routes of keys answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.schemas.answers import Answer, Count, Id, KeyPrefix, LimitsAnswer, NewKey, Page, Time

Scope = Literal["chat", "usage", "keys", "billing", "admin"]


class Key(Answer):
    """A key, without its secret."""

    id: Id
    customer_id: Id | None = Field(description="Null: an operator's key, which belongs to nobody.")
    name: str = Field(examples=["production"])
    prefix: KeyPrefix
    scopes: list[Scope] = Field(examples=[["chat", "usage"]])
    allowed_models: list[Id] | None = Field(description="Ids; null: all.", examples=[None])
    allowed_services: list[Id] | None = Field(description="Ids; null: all.", examples=[None])
    active: bool
    created_at: Time
    last_used_at: Time | None
    expires_at: Time | None
    revoked_at: Time | None = Field(examples=[None])
    rate_limit: Count | None = Field(description="Requests per minute, of each model.", examples=[60])
    limits: LimitsAnswer = Field(description="The key's own limits, over all models together.")
    model_limits: dict[str, LimitsAnswer] = Field(
        description="The key's own limits by the model's name; `*` for every model by itself.",
        examples=[{"*": {"requests_per_minute": 60}}],
    )
    warn: LimitsAnswer = Field(description="Soft marks of `limits`: beyond them the answers carry a warning.")
    made_by_key_id: Id | None = Field(
        description="The key that made it: what this key does counts under that one's limits, too.",
        examples=[None],
    )


class CreatedKey(Key):
    """A key that was just made: the one time that it is shown whole."""

    key: NewKey


class RotatedKey(CreatedKey):
    """A key with its new secret."""

    previous_prefix: KeyPrefix
    previous_expires_at: Time | None = Field(
        description="Until when the old secret works; null: it stopped at once, and every older one with it."
    )


class KeyList(Page[Key]):
    """Keys by id."""


class ToggledKey(Answer):
    """Whether a key is on."""

    id: Id
    active: bool


class RevokedKey(Answer):
    """A key that is off for good."""

    id: Id
    active: Literal[False]
    deleted: Literal[True]


class OlderKey(Answer):
    """A key that was just made, as the older route shows it."""

    id: Id
    key: NewKey
    name: str = Field(examples=["default"])
    rate_limit: Count | None = Field(description="Requests per minute, of each model.", examples=[60])
    allowed_models: list[Id] | None = Field(description="Ids; null: all.", examples=[None])
