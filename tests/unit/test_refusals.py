"""What the database refuses becomes the contract's error, and tells nothing of the tables."""

from __future__ import annotations

import pytest

from gateway.database.client import DatabaseAwayError, DatabaseError
from gateway.errors import Conflict, InternalError, NotFound
from gateway.refusals import accept, database_refused, found

INTERNAL = 'new row for relation "api_keys" violates check constraint "api_keys_name_check"'


@pytest.mark.parametrize(
    ("code", "status", "public"),
    [
        ("23505", 409, "conflict"),
        ("23514", 422, "invalid_value"),
        ("23502", 422, "invalid_value"),
        ("22003", 422, "invalid_value"),
        ("22P02", 422, "invalid_value"),
        ("42501", 500, "internal_error"),
        ("PGRST202", 500, "internal_error"),
        (None, 500, "internal_error"),
    ],
)
def test_failure_of_a_call_is_told_without_its_internals(code: str | None, status: int, public: str) -> None:
    error = database_refused(DatabaseError("create_key", code, INTERNAL))
    assert (error.status, error.code) == (status, public)
    assert "api_keys" not in str(error.body())
    # The log has what the client has not.
    assert error.detail is not None
    assert INTERNAL in error.detail


def test_database_that_is_away_is_503() -> None:
    error = database_refused(DatabaseAwayError("create_key", "57P03", "the database is starting up"))
    assert (error.status, error.code) == (503, "database_unavailable")
    assert error.headers["retry-after"] == "1"


def test_refusal_is_the_error_that_its_caller_names() -> None:
    refusal = Conflict("This email is taken.")
    assert accept({"id": 1}, email_taken=refusal) == {"id": 1}
    with pytest.raises(Conflict) as raised:
        accept({"error": "email_taken"}, email_taken=refusal)
    assert raised.value is refusal
    with pytest.raises(InternalError) as unforeseen:
        accept({"error": "moon_phase"}, email_taken=refusal)
    assert "moon_phase" not in str(unforeseen.value.body())
    assert "moon_phase" in (unforeseen.value.detail or "")


def test_nothing_found_is_the_error_that_its_caller_names() -> None:
    assert found(0, NotFound("none")) == 0
    with pytest.raises(NotFound):
        found(None, NotFound("none"))
