"""Everything that the gateway may answer in place of a result.

```
GatewayError                    status  type
├── BadRequest                  400     invalid_request_error
├── Unauthorized                401     authentication_error
├── InsufficientCredits         402     insufficient_quota
├── Forbidden                   403     permission_error
├── NotFound                    404     not_found_error
├── MethodNotAllowed            405     invalid_request_error
├── Conflict                    409     conflict_error
├── PayloadTooLarge             413     invalid_request_error
├── Unprocessable               422     invalid_request_error
├── RateLimited                 429     rate_limit_error
├── InternalError               500     server_error
├── NotConfigured               501     server_error
├── ProviderFailed              502     server_error
├── Unavailable                 503     server_error
└── ProviderTimeout             504     server_error
```

An error has two texts. `message` is public: it goes to the client as it stands. `detail` is logged only.
`gateway.http` turns each into a response, in one place.
"""

# ruff: noqa: N818 - each is named as its status is, and all are raised as outcomes, not faults

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

# openai-python retries 408, 409, 429 and 5xx by itself; this header stops it where a retry can't help.
_NO_RETRY = {"x-should-retry": "false"}


class GatewayError(Exception):
    """An outcome that ends a request with a status, in OpenAI's error shape.

    `message` is public, `detail` is logged only; `code` and `param` are stable names for programs;
    `headers` are added to the response.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    default_headers: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else self.default_code
        self.param = param
        self.headers: dict[str, str] = {**self.default_headers, **(headers or {})}
        self.detail = detail

    def body(self) -> dict[str, Any]:
        """Return the response body, in the shape that OpenAI's SDKs parse."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BadRequest(GatewayError):
    """400: what arrived could not be read as a request."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(GatewayError):
    """401: no key, or one that is unknown, revoked or expired. Which of them is not told."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"
    default_headers: ClassVar[Mapping[str, str]] = {"www-authenticate": "Bearer"}


class InsufficientCredits(GatewayError):
    """402: the balance can't carry the call. A retry would meet the same balance."""

    status = 402
    type = "insufficient_quota"
    default_code = "insufficient_credits"
    default_headers: ClassVar[Mapping[str, str]] = _NO_RETRY


class Forbidden(GatewayError):
    """403: the key is good, but not for this."""

    status = 403
    type = "permission_error"
    default_code = "permission_denied"


class NotFound(GatewayError):
    """404: no such route, model or object, or none that this key may see."""

    status = 404
    type = "not_found_error"
    default_code = "not_found"


class MethodNotAllowed(GatewayError):
    """405: the path exists, the method does not. `allowed` goes out in the Allow header."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        names = ", ".join(sorted(allowed))
        super().__init__(f"{method} is not allowed here. Allowed: {names}.", headers={"allow": names})


class Conflict(GatewayError):
    """409: the state of the object forbids it. `retry=False` tells SDKs that waiting won't help."""

    status = 409
    type = "conflict_error"
    default_code = "conflict"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        detail: str | None = None,
        retry: bool = False,
    ) -> None:
        merged = {**({} if retry else _NO_RETRY), **(headers or {})}
        super().__init__(message, code=code, param=param, headers=merged, detail=detail)


class PayloadTooLarge(GatewayError):
    """413: the body exceeds the size limit."""

    status = 413
    type = "invalid_request_error"
    default_code = "payload_too_large"


class Unprocessable(GatewayError):
    """422: well-formed but invalid. `param` is the dotted path of the field."""

    status = 422
    type = "invalid_request_error"
    default_code = "invalid_value"


class RateLimited(GatewayError):
    """429: a limit is reached.

    `retry_after` is in seconds, rounded up to whole ones. None means that no window could ever admit the
    request: SDKs are then told not to retry.
    """

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        detail: str | None = None,
    ) -> None:
        merged = {
            **_retry_after(retry_after),
            **({} if retry_after is not None else _NO_RETRY),
            **(headers or {}),
        }
        super().__init__(message, code=code, param=param, headers=merged, detail=detail)
        self.retry_after = retry_after


class InternalError(GatewayError):
    """500: our fault. The public text is constant; only `detail` says what happened."""

    status = 500
    default_code = "internal_error"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(
            "The gateway failed. Quote the x-request-id of this response when you report it.", detail=detail
        )


class NotConfigured(GatewayError):
    """501: the operator has not set up what this route needs. A retry would find it as it is."""

    status = 501
    default_code = "not_configured"
    default_headers: ClassVar[Mapping[str, str]] = _NO_RETRY


class ProviderFailed(GatewayError):
    """502: the provider answered with a failure, or with something that is no answer."""

    status = 502
    default_code = "provider_failed"


class Unavailable(GatewayError):
    """503: the provider or the database can't be reached. `retry_after` in seconds, where it is known."""

    status = 503
    default_code = "unavailable"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        detail: str | None = None,
    ) -> None:
        merged = {**_retry_after(retry_after), **(headers or {})}
        super().__init__(message, code=code, param=param, headers=merged, detail=detail)
        self.retry_after = retry_after


class ProviderTimeout(GatewayError):
    """504: the provider took longer than the request may."""

    status = 504
    default_code = "provider_timeout"


def _retry_after(seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {"retry-after": str(max(1, math.ceil(seconds)))}
