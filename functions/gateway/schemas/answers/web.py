"""What the public pages answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.schemas.answers import Answer


class Index(Answer):
    """What this is, and where to go from here."""

    name: Literal["Sluice"]
    description: str
    version: str = Field(examples=["0.1.0"])
    links: dict[str, str] = Field(examples=[{"docs": "/docs", "health": "/health"}])


class DashboardAuth(Answer):
    """Where people sign in by mail."""

    url: str = Field(examples=["https://abcdefgh.supabase.co/auth/v1"])
    publishable_key: str = Field(
        description="The project's key for browsers.", examples=["sb_publishable_AbC123"]
    )


class DashboardConfig(Answer):
    """What the dashboard has to know before anybody signs in."""

    version: str = Field(examples=["0.1.0"])
    auth: DashboardAuth | None = Field(description="Null: people sign in by key alone.")
    billing: bool = Field(description="Whether credits can be bought through Stripe.", examples=[False])


class Health(Answer):
    """Whether the gateway is well."""

    status: Literal["ok", "degraded"]
    database: Literal["ok", "unavailable"]
    version: str = Field(examples=["0.1.0"])
