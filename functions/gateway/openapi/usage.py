"""The documentation of the usage function's routes."""

from __future__ import annotations

from gateway.errors import Forbidden
from gateway.openapi.routes import Parameter, Route, Routes, unknown
from gateway.schemas.answers import usage as answers

_NO_CUSTOMER_KEY = Forbidden("This key belongs to no customer, so it has no balance.", code="no_customer")

ROUTES: Routes = {
    "GET /user/balance": Route(
        answer=answers.Balance,
        tokens=True,
        description="Any key of the customer will do.",
        refusals=(_NO_CUSTOMER_KEY, unknown("customer", code="not_found")),
    ),
    "GET /v1/requests/{id}": Route(
        answer=answers.RequestRecord,
        tokens=True,
        description="What a call was and has cost, never what was said. A key with `chat` alone sees its own "
        "requests.",
        parameters=(
            Parameter(
                "id",
                "path",
                "The `x-request-id` of the call's response.",
                {"type": "string", "pattern": "^req_[0-9a-f]{32}$"},
                "req_01a1fd2ab32670e3815c293832e5f73a",
            ),
        ),
        refusals=(unknown("request"),),
    ),
}
