"""How Anthropic's clients take errors: https://platform.claude.com/docs/en/api/errors (November 2026)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.http import Dialect

if TYPE_CHECKING:
    from gateway.errors import GatewayError

_INVALID = 400
_UNPROCESSABLE = 422
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OUR_FAULTS = 500


def messages_error(error: GatewayError, request_id: str | None) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error in Anthropic's shape.

    What is well-formed but invalid is 400 there. `details` names the cause and the field, for programs.
    """
    status = _INVALID if error.status == _UNPROCESSABLE else error.status
    kind = _TYPES.get(status, "api_error" if status >= _OUR_FAULTS else "invalid_request_error")
    told: dict[str, Any] = {"type": kind, "message": error.message}
    details = {"error_code": error.code, "param": error.param}
    if any(details.values()):
        told["details"] = {name: value for name, value in details.items() if value is not None}
    return status, {"type": "error", "error": told, "request_id": request_id}


MESSAGES_DIALECT = Dialect(messages_error, error_event=b"event: error\n", request_id_header="request-id")
