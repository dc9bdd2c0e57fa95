"""What the queries of the operator's lists may name. An unknown name is refused: it would filter nothing."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from gateway.schemas.usage_queries import Flag, Moment  # noqa: TC001 - pydantic reads them
from gateway.schemas.values import Body, Day

Text = Annotated[str, StringConstraints(min_length=1, max_length=320, pattern=r"^[^\x00]*$")]
Entity = Literal[
    "settings", "customers", "api_keys", "services", "routes", "models", "offers", "prices", "limits"
]
"""The tables whose changes the audit log keeps."""


EventState = Literal["unsent", "waiting", "delivered", "given_up"]


QueryDay = Annotated[Day, Field(ge=date(1970, 1, 1), lt=date(2200, 1, 1))]


class _List(Body):
    """`limit` and `cursor` are read by `gateway.paging`."""

    limit: str | None = None
    cursor: str | None = None


class SearchQuery(_List):
    """The query of GET /admin/customers and GET /admin/models."""

    q: Text | None = None
    """To be found, in any case, in what the rows are called."""
    active: Flag | None = None


class AuditQuery(_List):
    """The query of GET /admin/audit. `from` is inclusive, `to` is not; a date begins in UTC."""

    entity: Entity | None = None
    entity_id: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,19}$")] | None = None
    actor: Text | None = None
    from_: Moment | None = Field(default=None, alias="from")
    to: Moment | None = None


class EventsQuery(_List):
    """The query of GET /admin/events."""

    state: EventState | None = None
    type: Annotated[str, StringConstraints(max_length=100, pattern=r"^[a-z_]+(\.[a-z_]+)+$")] | None = None


class TopCustomersQuery(Body):
    """The query of GET /admin/top_customers. `from` is inclusive, `to` is not; days are UTC's."""

    limit: str | None = None
    from_: QueryDay | None = Field(default=None, alias="from")
    to: QueryDay | None = None


class LedgerQuery(Body):
    """The query of GET /admin/ledger/check. `full`: from the first entry on, not from the last checkpoint."""

    full: Flag = False
