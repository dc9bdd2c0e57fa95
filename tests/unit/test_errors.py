from __future__ import annotations

import pytest

from gateway import errors
from gateway.errors import (
    Conflict,
    GatewayError,
    InsufficientCredits,
    InternalError,
    MethodNotAllowed,
    RateLimited,
    Unauthorized,
    Unavailable,
)

STATUSES = {
    "BadRequest": 400,
    "Unauthorized": 401,
    "InsufficientCredits": 402,
    "Forbidden": 403,
    "NotFound": 404,
    "MethodNotAllowed": 405,
    "Conflict": 409,
    "PayloadTooLarge": 413,
    "Unprocessable": 422,
    "RateLimited": 429,
    "InternalError": 500,
    "NotConfigured": 501,
    "ProviderFailed": 502,
    "Unavailable": 503,
    "ProviderTimeout": 504,
}


def test_every_error_has_the_status_of_the_contract_and_stands_in_the_drawn_tree() -> None:
    classes = {cls.__name__: cls for cls in vars(errors).values() if isinstance(cls, type)}
    del classes["GatewayError"]
    named = {name: cls.status for name, cls in classes.items() if issubclass(cls, GatewayError)}
    assert named == STATUSES
    drawn = errors.__doc__ or ""
    for name, cls in classes.items():
        if issubclass(cls, GatewayError):
            line = next(line for line in drawn.splitlines() if f"── {name} " in line)
            assert line.split()[-2:] == [str(cls.status), cls.type]


def test_body_has_openais_shape_and_no_detail() -> None:
    error = errors.NotFound("No model x.", code="model_not_found", param="model", detail="row 7")
    assert error.body() == {
        "error": {
            "message": "No model x.",
            "type": "not_found_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    assert "row 7" not in str(error.body())


def test_an_internal_error_never_shows_its_cause() -> None:
    error = InternalError("password=hunter2")
    assert "hunter2" not in str(error)
    assert "hunter2" not in str(error.body())
    assert error.detail == "password=hunter2"


def test_errors_that_no_retry_helps_say_so() -> None:
    assert InsufficientCredits("No.").headers["x-should-retry"] == "false"
    assert InsufficientCredits("No.").code == "insufficient_credits"
    assert Conflict("No.").headers["x-should-retry"] == "false"
    assert "x-should-retry" not in Conflict("Still running.", retry=True).headers


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (12.0, "12"), (12.1, "13")])
def test_retry_after_is_in_whole_seconds_rounded_up(seconds: float, header: str) -> None:
    assert RateLimited("Slow down.", retry_after=seconds).headers == {"retry-after": header}
    assert Unavailable("Out.", retry_after=seconds).headers == {"retry-after": header}


def test_a_request_that_no_window_admits_is_not_to_be_retried() -> None:
    error = RateLimited("Larger than the limit.", retry_after=None)
    assert error.headers == {"x-should-retry": "false"}
    assert error.code == "rate_limit_exceeded"


def test_errors_do_not_share_their_headers() -> None:
    first = Unauthorized("No key.")
    first.headers["x"] = "y"
    assert Unauthorized("No key.").headers == {"www-authenticate": "Bearer"}


def test_405_names_what_is_allowed() -> None:
    error = MethodNotAllowed("PUT", ("POST", "GET"))
    assert error.headers["allow"] == "GET, POST"
    assert "PUT" in error.message
