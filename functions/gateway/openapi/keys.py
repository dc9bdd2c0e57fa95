"""The documentation of the keys function's routes."""

from __future__ import annotations

from gateway.errors import Conflict, Forbidden, NotFound, Unprocessable
from gateway.openapi.routes import ID, PAGE, Parameter, Route, Routes, path_id, unknown
from gateway.schemas.answers import keys as answers

_KEY = (path_id("key"),)
_IN_THE_PAST = Unprocessable("expires_at must lie in the future.", param="expires_at")
_NO_KEY = unknown("key")
_NO_CUSTOMER = unknown("customer", param="customer_id")
_REVOKED = Conflict("This key is revoked, for good.", code="key_revoked")
_ADMIN_KEY = Forbidden("Only an admin may change an admin key.", code="scope_missing")
_ERASED = Conflict("This customer is erased.", code="customer_erased")
_EXCEEDS_MAKER = Forbidden(
    "The scopes of this key must lie within what the caller has itself.", code="exceeds_maker", param="scopes"
)
_TOO_MANY_MAKERS = Forbidden(
    "This key was made by a key that was made by a key, and so on: it can make no more.",
    code="too_many_makers",
)
_LIST = (
    *PAGE,
    Parameter("customer_id", "query", "Of this customer alone; another than one's own is for admins.", ID),
    Parameter("active", "query", "Those alone that are on, or off.", {"type": "boolean"}),
)
_UNKNOWN_SERVICE = Unprocessable(
    "allowed_services names a service that is unknown.", param="allowed_services"
)
_UNKNOWN_MODEL = Unprocessable("allowed_models names a model that is unknown.", param="allowed_models")
_USER = Parameter(
    "user", "header", "The username of the customer that the key is for. For admins.", {"type": "string"}
)

ROUTES: Routes = {
    "POST /v1/keys": Route(
        answer=answers.CreatedKey,
        tokens=True,
        description="The answer has the whole `key`, this once. Its scopes, models, services and limits lie "
        "within those of the key that makes it, and what it does counts under the limits of that one, too. "
        "Only an admin makes an admin key.",
        request={
            "name": "production",
            "scopes": ["chat", "usage"],
            "allowed_models": [1, 2],
            "expires_at": "2027-12-31T23:59:59Z",
            "limits": {"requests_per_minute": 600, "spend_usd_per_day": "5"},
        },
        refusals=(
            _EXCEEDS_MAKER,
            _TOO_MANY_MAKERS,
            _NO_CUSTOMER,
            _ERASED,
            _UNKNOWN_MODEL,
            _UNKNOWN_SERVICE,
            _IN_THE_PAST,
        ),
    ),
    "GET /v1/keys": Route(
        answer=answers.KeyList,
        tokens=True,
        description="The customer's keys, by id; an admin's: all.",
        parameters=_LIST,
        refusals=(_NO_CUSTOMER,),
    ),
    "GET /v1/keys/{id}": Route(answer=answers.Key, tokens=True, parameters=_KEY, refusals=(_NO_KEY,)),
    "PATCH /v1/keys/{id}": Route(
        answer=answers.Key,
        tokens=True,
        description="A field that is absent stays as it is. Limits merge; null removes one. The key stays "
        "within what the caller has itself.",
        parameters=_KEY,
        request={"name": "staging", "limits": {"requests_per_minute": 60}},
        refusals=(
            _NO_KEY,
            _ADMIN_KEY,
            _REVOKED,
            _EXCEEDS_MAKER,
            _UNKNOWN_MODEL,
            _UNKNOWN_SERVICE,
            _IN_THE_PAST,
        ),
    ),
    "POST /v1/keys/{id}/rotate": Route(
        answer=answers.RotatedKey,
        tokens=True,
        description="The answer has the new `key`, this once. The old secret works on for `grace_seconds`; "
        "without them it stops at once, and every older one with it.",
        parameters=_KEY,
        request={"grace_seconds": 3600},
        request_required=False,
        refusals=(_NO_KEY, _ADMIN_KEY, _REVOKED, _EXCEEDS_MAKER),
    ),
    "DELETE /v1/keys/{id}": Route(
        answer=answers.RevokedKey,
        tokens=True,
        description="It is off from the next request on, and for good.",
        parameters=_KEY,
        refusals=(_NO_KEY, _ADMIN_KEY),
    ),
    "POST /v1/keys/{id}/toggle": Route(
        answer=answers.ToggledKey,
        tokens=True,
        parameters=_KEY,
        refusals=(_NO_KEY, _ADMIN_KEY, _REVOKED),
    ),
    "POST /api/keys": Route(
        answer=answers.OlderKey,
        tokens=True,
        description="For the caller's own customer, unless an admin names another by `customer_email` or the "
        "header `user`.",
        parameters=(_USER,),
        request={"name": "production", "rate_limit": 600, "customer_email": "ada@example.com"},
        refusals=(
            _EXCEEDS_MAKER,
            _TOO_MANY_MAKERS,
            NotFound("There is no such customer.", code="customer_not_found", param="customer_email"),
            _ERASED,
            _UNKNOWN_MODEL,
        ),
    ),
    "GET /api/keys": Route(
        answer=answers.KeyList,
        tokens=True,
        description="As GET /v1/keys.",
        parameters=_LIST,
        refusals=(_NO_CUSTOMER,),
    ),
    "DELETE /api/keys": Route(
        answer=answers.RevokedKey,
        tokens=True,
        description="As DELETE /v1/keys/{id}, of a key that is named by itself.",
        request={"key": "sk_" + "0" * 40},
        refusals=(_NO_KEY, _ADMIN_KEY),
    ),
    "POST /api/keys/{id}/toggle": Route(
        answer=answers.ToggledKey,
        tokens=True,
        description="As POST /v1/keys/{id}/toggle.",
        parameters=_KEY,
        refusals=(_NO_KEY, _ADMIN_KEY, _REVOKED),
    ),
}
