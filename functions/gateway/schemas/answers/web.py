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


class Health(Answer):
    """Whether the gateway is well."""

    status: Literal["ok", "degraded"]
    database: Literal["ok", "unavailable"]
    version: str = Field(examples=["0.1.0"])
