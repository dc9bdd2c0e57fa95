"""What the routes answer. These models document, and tests hold every answer to them.

No request path imports them. A field without a default is always there; one with a default may be missing.
`| None` says that it may be null.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

Item = TypeVar("Item")

# Numbers in answers are JSON numbers of any form: 1, 1.0 and 1e0 are one.
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Id = Annotated[int, Field(ge=1, lt=2**63, examples=[42])]
Credits = Annotated[
    Number, Field(description="Credits, rounded down to what can be shown.", examples=[249999.475])
]
Usd = Annotated[
    str,
    Field(
        pattern=r"^-?(0|[1-9][0-9]*)(\.[0-9]{1,20})?$",
        description="An exact amount in USD, as decimal text.",
        examples=["4.9999895"],
    ),
]
Percent = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$", examples=["5"])]
"""Exact, as decimal text."""
Time = Annotated[
    str,
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-11-21T12:00:00+00:00"]}),
]
"""RFC 3339."""
Day = Annotated[str, WithJsonSchema({"type": "string", "format": "date", "examples": ["2026-11-21"]})]
RequestId = Annotated[
    str, Field(pattern=r"^req_[0-9a-f]{32}$", examples=["req_01a1fd2ab32670e3815c293832e5f73a"])
]
KeyPrefix = Annotated[
    str, Field(description="What is shown of a key; it opens nothing.", examples=["sk_AlwVbh…"])
]
NewKey = Annotated[
    str,
    Field(
        description="The whole key. It is shown this once: only its SHA-256 is kept.",
        examples=["sk_" + "0" * 40],
    ),
]


def _without_defaults(schema: dict[str, Any]) -> None:
    # A default here says that a field may be missing; clients must not take it for the field's value.
    for field in schema.get("properties", {}).values():
        field.pop("default", None)


class Answer(BaseModel):
    """The body of a response. Strict: what is not written down here is not answered."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, json_schema_extra=_without_defaults)


class Page(Answer, Generic[Item]):
    """One page of a list. Subclass it, so that the document has a name for it."""

    data: list[Item]
    next_cursor: Annotated[
        str | None, Field(description="The cursor of the next page; null where this is the last.")
    ]


class Error(Answer):
    """Why a request was refused."""

    message: Annotated[str, Field(description="For people.")]
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "insufficient_quota",
        "permission_error",
        "not_found_error",
        "conflict_error",
        "rate_limit_error",
        "server_error",
    ]
    param: Annotated[str | None, Field(description="The dotted path of the field or parameter at fault.")]
    code: Annotated[str | None, Field(description="For programs; stable.")]


class ErrorAnswer(Answer):
    """The body of every error, in the shape that OpenAI's SDKs parse."""

    error: Error


class Success(Answer):
    """The beginning of the answers of the older routes."""

    status: Literal["success"]


def _limits_schema(schema: dict[str, Any]) -> None:
    _without_defaults(schema)
    schema["examples"] = [{"requests_per_minute": 600, "spend_usd_per_month": "100"}]


class LimitsAnswer(Answer):
    """The limits that are set, by window.

    A name that is missing has none. Spend is exact, as decimal text.
    """

    model_config = ConfigDict(json_schema_extra=_limits_schema)

    requests_per_minute: Count = 0
    requests_per_hour: Count = 0
    requests_per_day: Count = 0
    requests_per_month: Count = 0
    tokens_per_minute: Count = 0
    tokens_per_hour: Count = 0
    tokens_per_day: Count = 0
    tokens_per_month: Count = 0
    spend_usd_per_minute: Usd = "0"
    spend_usd_per_hour: Usd = "0"
    spend_usd_per_day: Usd = "0"
    spend_usd_per_month: Usd = "0"
