"""Values that many bodies share: names, exact amounts, times, limits. The bounds are the database's."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_USD = Decimal(1_000_000_000)
MAX_CREDITS = Decimal(10**15)
MAX_COUNT = 10**15
PLACES = 10

_PLAIN_DECIMAL = re.compile(r"-?[0-9]{1,32}(\.[0-9]{1,32})?")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class Body(BaseModel):
    """A request body. Strict: `"1"` and `true` are no numbers, and a name that is not known is a mistake."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Patch(Body):
    """A body in which a field that is absent stays as it is. Null is a value of the fields in `nullable`."""

    nullable: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _not_null(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.field_name not in cls.nullable:
            raise PydanticCustomError("null", "must not be null")
        return value


def _number(value: Any) -> Any:
    if isinstance(value, Decimal) or (isinstance(value, int) and not isinstance(value, bool)):
        return Decimal(value)
    raise PydanticCustomError("number", "must be a number")


def _decimal(value: Any) -> Any:
    if isinstance(value, str):
        if not _PLAIN_DECIMAL.fullmatch(value):
            raise PydanticCustomError("decimal", "must be a decimal number such as 12.5")
        return Decimal(value)
    return _number(value)


def _within(least: Decimal | int, most: Decimal | int, places: int = PLACES) -> AfterValidator:
    step = Decimal(1).scaleb(-places)

    def check(value: Decimal) -> Decimal:
        if not least <= value <= most:
            raise PydanticCustomError(
                "range",
                "must be from {least} to {most}",
                {"least": f"{Decimal(least):f}", "most": f"{Decimal(most):f}"},
            )
        rounded = value.quantize(step)
        if rounded != value:
            raise PydanticCustomError("places", "must have at most {places} decimals", {"places": places})
        return rounded

    return AfterValidator(check)


_AS_NUMBER = WithJsonSchema({"type": "number"})
_AS_DECIMAL = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "format": "decimal", "pattern": f"^{_PLAIN_DECIMAL.pattern}$"},
            {"type": "number"},
        ]
    }
)

Usd = Annotated[Decimal, BeforeValidator(_decimal), _within(0, MAX_USD), _AS_DECIMAL]
"""An amount in USD: decimal text or a number, at most ten decimals, not negative."""
PositiveUsd = Annotated[
    Decimal, BeforeValidator(_decimal), _within(Decimal(1).scaleb(-PLACES), MAX_USD), _AS_DECIMAL
]
SignedUsd = Annotated[Decimal, BeforeValidator(_decimal), _within(-MAX_USD, MAX_USD), _AS_DECIMAL]
TopUpUsd = Annotated[
    Decimal, BeforeValidator(_decimal), _within(Decimal("0.5"), Decimal("999999.99"), 2), _AS_DECIMAL
]
"""What Stripe takes at once: whole cents, from 0.50 to 999,999.99 USD."""
Credits = Annotated[Decimal, BeforeValidator(_number), _within(0, MAX_CREDITS), _AS_NUMBER]
SignedCredits = Annotated[Decimal, BeforeValidator(_number), _within(-MAX_CREDITS, MAX_CREDITS), _AS_NUMBER]
Commission = Annotated[Decimal, BeforeValidator(_decimal), _within(0, 1000, 6), _AS_DECIMAL]
"""In percent."""
Weight = Annotated[Decimal, BeforeValidator(_number), _within(0, 10_000_000, 4), Field(gt=0), _AS_NUMBER]
WarnPercent = Annotated[Decimal, BeforeValidator(_number), _within(0, 100, 4), _AS_NUMBER]

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Id = Annotated[int, Field(ge=1, lt=2**63)]
Name = Annotated[
    str,
    # No control characters: names go into logs, lists and mails.
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$"),
]
Username = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=320, pattern=r"^[^\x00-\x1f\x7f]*$"),
]
Email = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True,
        min_length=3,
        max_length=320,
        pattern=r"^[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$",
    ),
]
KeyText = Annotated[str, Field(min_length=1, max_length=200)]
"""A whole client key."""


def _time(value: Any) -> datetime:
    if isinstance(value, str) and _RFC_3339.fullmatch(value):
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise PydanticCustomError("time", "must be a time such as 2026-12-31T23:59:59Z")


def _day(value: Any) -> date:
    if isinstance(value, str) and _DATE.fullmatch(value):
        try:
            return date.fromisoformat(value)
        except ValueError:
            pass
    raise PydanticCustomError("date", "must be a date such as 2026-12-31")


Time = Annotated[datetime, BeforeValidator(_time), WithJsonSchema({"type": "string", "format": "date-time"})]
"""RFC 3339, in any offset; UTC once read."""
Day = Annotated[date, BeforeValidator(_day), WithJsonSchema({"type": "string", "format": "date"})]


class RateLimits(Body):
    """Limits by window. A name that is absent stays as it is; null removes the limit."""

    requests_per_minute: Count | None = None
    requests_per_hour: Count | None = None
    requests_per_day: Count | None = None
    requests_per_month: Count | None = None
    tokens_per_minute: Count | None = None
    tokens_per_hour: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    spend_usd_per_minute: Usd | None = None
    spend_usd_per_hour: Usd | None = None
    spend_usd_per_day: Usd | None = None
    spend_usd_per_month: Usd | None = None

    @model_validator(mode="before")
    @classmethod
    def _names_are_known(cls, value: Any) -> Any:
        unknown = [name for name in value if name not in cls.model_fields] if isinstance(value, dict) else []
        if unknown:
            shown = ", ".join(repr(name[:64]) for name in unknown[:8])
            raise PydanticCustomError(
                "unknown_limit",
                "no limit is called {unknown}; a name is requests, tokens or spend_usd, then _per_, "
                "then minute, hour, day or month",
                {"unknown": shown},
            )
        return value

    def changes(self) -> dict[str, int | str | None]:
        """Return what was named, amounts as exact text."""
        return {name: as_sent(getattr(self, name)) for name in self.model_fields_set}

    def limits(self) -> dict[str, int | str | None] | None:
        """Return the limits that were set; None where none was, as for a subject that has none yet."""
        return {name: value for name, value in self.changes().items() if value is not None} or None


def as_sent(value: Any) -> Any:
    """Return a value as it goes to the database: amounts and times as exact text."""
    if isinstance(value, Decimal):
        return exact_text(value)
    if isinstance(value, list):
        return [as_sent(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


def exact_text(value: Decimal) -> str:
    """Return a number as plain decimal text."""
    return f"{value:f}"
