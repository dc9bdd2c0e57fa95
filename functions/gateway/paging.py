"""Lists by the page: `?limit=&cursor=` in, `next_cursor` out. Also other values of paths and queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from gateway.errors import NotFound, Unprocessable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
_MAX_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted: at most `limit` rows beyond the row with the id `cursor`."""

    limit: int
    cursor: int | None

    @classmethod
    def read(cls, request: Request) -> Self:
        """Read the query. Raises Unprocessable (422)."""
        size = page_size(request)
        cursor = request.query_params.get("cursor")
        after = None if cursor is None else _number(cursor)
        if cursor is not None and after is None:
            raise Unprocessable("cursor must be the next_cursor of another page.", param="cursor")
        return cls(limit=size, cursor=after)

    @property
    def wanted(self) -> int:
        """How many rows to ask for: one more than are shown tells whether there are more."""
        return self.limit + 1

    def cut(
        self, rows: Sequence[dict[str, Any]], *, by: str = "id"
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return the rows of this page and the cursor of the next, None where there is none."""
        shown = list(rows[: self.limit])
        return shown, str(shown[-1][by]) if len(rows) > self.limit else None

    def listed(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the body of a list."""
        shown, cursor = self.cut(rows)
        return {"data": shown, "next_cursor": cursor}


def page_size(request: Request) -> int:
    """Return how many rows are wanted at most. Raises Unprocessable (422)."""
    size = _number(request.query_params.get("limit", str(DEFAULT_LIMIT)))
    if size is None or not 1 <= size <= MAX_LIMIT:
        raise Unprocessable(f"limit must be a number from 1 to {MAX_LIMIT}.", param="limit")
    return size


def path_id(request: Request, what: str) -> int:
    """Return the id in the path. Raises NotFound (404) for what can't be one."""
    number = _number(request.path_params["id"])
    if number is None:
        raise NotFound(f"There is no such {what}.")
    return number


def query_id(request: Request, param: str) -> int | None:
    """Return an id in the query, None where it is not named. Raises Unprocessable (422)."""
    text = request.query_params.get(param)
    number = None if text is None else _number(text)
    if text is not None and number is None:
        raise Unprocessable(f"{param} must be an id.", param=param)
    return number


def query_flag(request: Request, param: str) -> bool | None:
    """Return a flag in the query, None where it is not named. Raises Unprocessable (422)."""
    text = request.query_params.get(param)
    if text not in {None, "true", "false"}:
        raise Unprocessable(f"{param} must be true or false.", param=param)
    return None if text is None else text == "true"


def _number(text: str) -> int | None:
    # isdecimal() alone takes digits of every script.
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):  # noqa: PLR2004 - digits of 2**63
        return None
    number = int(text)
    return number if number <= _MAX_ID else None
