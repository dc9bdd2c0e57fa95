"""The gateway's HTTP API, as the commands call it: with an admin key, its errors in one line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import httpx

from infra.local.processes import HOST
from infra.local.stack import local_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PAGE = 200
_TIMEOUT = httpx.Timeout(130, connect=10)
"""A recomputation of the whole ledger may take two minutes."""


class OperatorError(Exception):
    """Something that the operator can put right; its text is all that is printed."""


class RefusedError(OperatorError):
    """The gateway answered with an error of the contract."""

    def __init__(self, message: str, *, status: int, code: str | None, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the gateway is, and the admin key that opens it."""

    url: str
    admin_key: str

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read SLUICE_URL and SLUICE_ADMIN_KEY; by default the local stack's. Raises OperatorError."""
        environ = os.environ if environ is None else environ
        url = environ.get("SLUICE_URL", "").strip().rstrip("/")
        key = environ.get("SLUICE_ADMIN_KEY", "").strip() or environ.get("ADMIN_KEY", "").strip()
        local = f"http://{HOST}:{environ.get('PORT', '').strip() or '8000'}"
        if url and urlsplit(url).scheme not in {"http", "https"}:
            raise OperatorError(f"SLUICE_URL must be an http or https URL, not {url!r}")
        if not key:
            if url:
                # A key of the local stack is nobody else's business.
                raise OperatorError("set SLUICE_ADMIN_KEY to an admin key of the gateway at SLUICE_URL")
            state = local_state(environ)
            if state is None:
                raise OperatorError("set SLUICE_URL and SLUICE_ADMIN_KEY, or start `make dev` first")
            key = state.admin_key
        return cls(url or local, key)


class Api:
    """Calls of the gateway. Each raises OperatorError, RefusedError where the gateway has answered."""

    def __init__(self, connection: Connection, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = connection.url
        self._client = httpx.Client(
            base_url=connection.url,
            headers={"authorization": f"Bearer {connection.admin_key}"},
            timeout=_TIMEOUT,
            transport=transport,
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        """GET; parameters that are None are left out."""
        params = {name: value for name, value in query.items() if value is not None}
        return self.send("GET", path, params=params).json()

    def post(self, path: str, body: Any) -> Any:
        return self.send("POST", path, json=body).json()

    def patch(self, path: str, body: Any) -> Any:
        return self.send("PATCH", path, json=body).json()

    def delete(self, path: str) -> Any:
        return self.send("DELETE", path).json()

    def rows(self, path: str, *, name: str = "data", most: int | None = None, **query: Any) -> Iterator[Any]:
        """Yield the rows of a list, page after page, `most` of them."""
        cursor: str | None = None
        left = most
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = self.get(path, limit=size, cursor=cursor, **query)
            yield from page[name]
            cursor = page["next_cursor"]
            if cursor is None:
                return
            left = None if left is None else left - size

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send a request; return its answer if that is a good one."""
        try:
            response = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise OperatorError(
                f"the gateway at {self.url} does not answer ({str(error) or type(error).__name__}): "
                "is it running, and is SLUICE_URL right?"
            ) from error
        if response.is_success:
            return response
        raise _refusal(response)


def _refusal(response: httpx.Response) -> OperatorError:
    try:
        error = response.json()["error"]
        message, code, param = error["message"], error["code"], error["param"]
    except (ValueError, KeyError, TypeError):
        return OperatorError(
            f"{response.request.url} answered {response.status_code}, and not as this gateway does"
        )
    where = f" ({param})" if param and param not in message else ""
    return RefusedError(f"{message}{where}", status=response.status_code, code=code, param=param)
