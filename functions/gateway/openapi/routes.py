"""What the document says of a route beyond its Operation, and the parameters that many routes take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gateway.errors import NotFound, Unprocessable
from gateway.paging import DEFAULT_LIMIT, MAX_LIMIT
from gateway.schemas.answers import ErrorAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.errors import GatewayError
    from gateway.schemas.answers import Answer

    Schema = Mapping[str, Any]

ID: Schema = {"type": "integer", "format": "int64", "minimum": 1, "maximum": 2**63 - 1}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a route."""

    name: str
    where: Literal["query", "header", "path"]
    description: str
    schema: Schema
    example: Any = None


@dataclass(frozen=True, slots=True)
class Content:
    """A body that is no JSON."""

    media_type: str
    description: str
    example: str | None = None
    schema: Schema = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route's documentation. The errors that follow from the Operation need no mention."""

    answer: type[Answer] | Content
    description: str = ""
    """Markdown."""
    request: Mapping[str, Any] | None = None
    """An example of the body."""
    request_required: bool = True
    upload: Content | None = None
    """A body that is no JSON."""
    parameters: tuple[Parameter, ...] = ()
    errors: type[Answer] = ErrorAnswer
    """The shape of its errors, by the Operation's dialect."""
    refusals: tuple[GatewayError, ...] = ()
    """One for each thing that can go wrong: statuses, codes and examples are read from them."""
    others: Mapping[int, type[Answer] | None] = field(default_factory=dict)
    """Answers of other statuses that are no errors in the usual shape; None: without a body."""
    forms: tuple[Content, ...] = ()
    """What else the answer may be written as, where the client asks for it."""
    stream: Content | None = None
    """The answer as server-sent events, where the client asks for them."""
    public: bool = False
    """Whether it is for everybody."""
    metered: bool = False
    """Whether it calls a model, and is paid for."""
    tokens: bool = False
    """Whether a Supabase Auth access token opens it."""

    @property
    def pages(self) -> bool:
        return LIMIT in self.parameters


Routes = dict[str, Route]
"""By method and path: `GET /v1/keys/{id}`."""

LIMIT = Parameter(
    "limit",
    "query",
    "How many to answer with at most.",
    {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
)
CURSOR = Parameter(
    "cursor",
    "query",
    "The `next_cursor` of the page before.",
    {"type": "string", "pattern": "^[0-9]{1,18}$"},
    "1042",
)
PAGE = (LIMIT, CURSOR)
PAGE_REFUSALS = (
    Unprocessable(f"limit must be a number from 1 to {MAX_LIMIT}.", param="limit"),
    Unprocessable("cursor must be the next_cursor of another page.", param="cursor"),
)


def path_id(what: str) -> Parameter:
    """Return the parameter `{id}` of a path."""
    return Parameter("id", "path", f"The {what}'s id.", ID, 42)


def unknown(what: str, *, param: str | None = None, code: str | None = None) -> NotFound:
    """Return the refusal for an object that is not there, or not the caller's."""
    return NotFound(f"There is no such {what}.", code=code or f"{what}_not_found", param=param)
