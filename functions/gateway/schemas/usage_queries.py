"""What the queries of usage may name. An unknown name is refused: its filter would not be applied."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, TypeAdapter
from pydantic_core import PydanticCustomError

from gateway.schemas.values import Day, Id, Time

YEARS = range(1970, 2200)

_TIME: TypeAdapter[datetime] = TypeAdapter(Time)
_DAY = TypeAdapter(Day)
_DAY_CHARS = len("2026-12-31")
# A plus in a query is a space: `…T00:00:00+02:00` comes as `…T00:00:00 02:00`.
_LOST_PLUS = re.compile(r" (\d\d:\d\d)$", re.ASCII)
# What could also be read as a POSIX rule, such as EST5EDT or UTC-3, is not taken for an IANA name.
_ZONE = re.compile(r"UTC|GMT|Etc/GMT[+-]\d{1,2}|[A-Za-z_]+(/[A-Za-z_]+(-[A-Za-z_]+)*){1,2}", re.ASCII)


def _id(value: Any) -> Any:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 19:  # noqa: PLR2004
        return int(value)
    raise PydanticCustomError("id", "must be an id")


def _flag(value: Any) -> bool:
    if value not in {"true", "false"}:
        raise PydanticCustomError("flag", "must be true or false")
    return bool(value == "true")


def _moment(value: Any) -> str:
    if isinstance(value, str) and len(value) == _DAY_CHARS:
        day = _DAY.validate_python(value)
        year, text = day.year, value
    elif isinstance(value, str):
        time = _TIME.validate_python(_LOST_PLUS.sub(r"+\1", value))
        year, text = time.year, time.astimezone(UTC).isoformat()
    else:
        raise PydanticCustomError("time", "must be a time or a date")
    if year not in YEARS:
        raise PydanticCustomError("year", "must be a time from 1970 to 2199")
    return text


def _zone(value: Any) -> str:
    if isinstance(value, str) and len(value) <= 64 and _ZONE.fullmatch(value):  # noqa: PLR2004 - twice the longest
        return value
    raise PydanticCustomError("time_zone", "must be a time zone such as Asia/Kolkata")


QueryId = Annotated[Id, BeforeValidator(_id)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Moment = Annotated[str, BeforeValidator(_moment)]
"""A time, in UTC once read, or a date as it was written."""
Label = Annotated[str, StringConstraints(min_length=1, max_length=300)]
TimeZone = Annotated[str, BeforeValidator(_zone)]
"""An IANA name; whether there is such a zone, the database knows."""


class _Query(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class CustomerQuery(_Query):
    """The query of GET /user/balance and GET /user/monitor. `customer_id` is for admins."""

    customer_id: QueryId | None = None


class LimitQuery(_Query):
    """The query of GET /user/limit. `customer_id` is for admins."""

    model: Label | None = None
    key_id: QueryId | None = None
    customer_id: QueryId | None = None


class UsageQuery(_Query):
    """The query of GET /v1/usage. `customer_id` is for admins."""

    from_: Moment | None = Field(default=None, alias="from")
    to: Moment | None = None
    interval: Literal["hour", "day", "month"] = "day"
    group_by: Literal["model", "key", "provider"] | None = None
    time_zone: TimeZone | None = None
    key_id: QueryId | None = None
    customer_id: QueryId | None = None


class RequestsQuery(_Query):
    """The query of GET /v1/requests, but `limit` and `cursor`, which `gateway.paging` reads."""

    limit: str | None = None
    cursor: str | None = None
    from_: Moment | None = Field(default=None, alias="from")
    to: Moment | None = None
    model: Label | None = None
    provider: Label | None = None
    status: Literal["succeeded", "failed", "cancelled", "cut", "refused", "expired", "running"] | None = None
    errors: Flag = False
    key_id: QueryId | None = None
    customer_id: QueryId | None = None
