"""What the queries of the operator's lists may name. An unknown name is refused: it would filter nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from gateway.schemas.usage_queries import Flag, Moment  # noqa: TC001 - pydantic reads them
from gateway.schemas.values import Body

Text = Annotated[str, StringConstraints(min_length=1, max_length=320, pattern=r"^[^\x00]*$")]
Entity = Literal[
    "settings", "customers", "api_keys", "services", "routes", "models", "offers", "prices", "limits"
]
"""The tables whose changes the audit log keeps."""


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


class LedgerQuery(Body):
    """The query of GET /admin/ledger/check. `full`: from the first entry on, not from the last checkpoint."""

    full: Flag = False
