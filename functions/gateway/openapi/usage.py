"""The documentation of the usage function's routes."""

from __future__ import annotations

from gateway.errors import Forbidden, NotFound, Unauthorized, Unprocessable
from gateway.openapi.routes import ID, LIMIT, Parameter, Route, Routes, unknown
from gateway.schemas.answers import usage as answers

_NO_CUSTOMER_KEY = Forbidden("This key belongs to no customer, so it has no balance.", code="no_customer")
_NO_CUSTOMER = unknown("customer", code="not_found")
_UNKNOWN_CUSTOMER = unknown("customer", param="customer_id")
_UNKNOWN_KEY = unknown("key", param="key_id")
_UNKNOWN_PARAMETER = Unprocessable("form: Extra inputs are not permitted", param="form")
_BAD_FROM = Unprocessable("from: must be a time such as 2026-12-31T23:59:59Z", param="from")
_OWN_REQUESTS = "A key with `chat` alone sees its own requests, others their customer's, admins all."

_MOMENT = {"type": "string", "anyOf": [{"format": "date"}, {"format": "date-time"}]}
_KEY_ID = Parameter("key_id", "query", "Of this key alone.", ID, 42)
_CUSTOMER_ID = Parameter("customer_id", "query", "Of this customer alone. For admins.", ID, 42)


def _label(name: str, description: str, shown: str) -> Parameter:
    return Parameter(name, "query", description, {"type": "string", "minLength": 1, "maxLength": 300}, shown)


ROUTES: Routes = {
    "GET /v1/me": Route(
        answer=answers.Caller,
        tokens=True,
        description="Any key will do, and an access token.",
    ),
    "GET /user/balance": Route(
        answer=answers.Balance,
        tokens=True,
        description="Any key of the customer will do.",
        parameters=(_CUSTOMER_ID,),
        refusals=(
            _NO_CUSTOMER_KEY,
            unknown("customer", code="not_found"),
            _UNKNOWN_CUSTOMER,
            _UNKNOWN_PARAMETER,
        ),
    ),
    "GET /user/monitor": Route(
        answer=answers.Monitor,
        tokens=True,
        description="A key with `chat` alone sees what it has used itself, others what their customer has.",
        parameters=(_CUSTOMER_ID,),
        refusals=(_NO_CUSTOMER_KEY, _NO_CUSTOMER, _UNKNOWN_CUSTOMER, _UNKNOWN_PARAMETER),
    ),
    "GET /user/limit": Route(
        answer=answers.Limits,
        tokens=True,
        description="What admission would say right now. A person sees the customer's limits alone: the "
        "others are a key's.",
        parameters=(
            _label("model", "Asks about this model. By default: about all.", "gpt-4o-mini"),
            Parameter("key_id", "query", "Asks about this key. By default: about the calling one.", ID, 42),
            _CUSTOMER_ID,
        ),
        refusals=(
            _NO_CUSTOMER_KEY,
            _NO_CUSTOMER,
            _UNKNOWN_CUSTOMER,
            _UNKNOWN_KEY,
            NotFound("The model 'gpt-5-min' does not exist here.", code="model_not_found", param="model"),
            _UNKNOWN_PARAMETER,
        ),
    ),
    "GET /v1/usage": Route(
        answer=answers.UsageSeries,
        tokens=True,
        description="Requests, tokens, cost, charge, errors and latencies by the hour (31 days at most), the "
        "day (400) or the month (10 years). Hours, and days in another time zone than the customer's, are "
        f"known as far back as the setting `usage_detail_days`. {_OWN_REQUESTS}",
        parameters=(
            Parameter(
                "from",
                "query",
                "A time, or a day in the time zone. By default 24 hours, 30 days or 12 months ago.",
                _MOMENT,
                "2026-11-01",
            ),
            Parameter(
                "to",
                "query",
                "A time that is left out, or a day that is included. By default now.",
                _MOMENT,
                "2026-11-30",
            ),
            Parameter(
                "interval",
                "query",
                "What the figures are of.",
                {"type": "string", "enum": ["hour", "day", "month"], "default": "day"},
            ),
            Parameter(
                "group_by",
                "query",
                "A series for each of these; `key` of one customer alone.",
                {"type": "string", "enum": ["model", "key", "provider"]},
            ),
            Parameter(
                "time_zone",
                "query",
                "In which days and months begin. By default the customer's; UTC for all customers.",
                {"type": "string", "maxLength": 64},
                "Asia/Kolkata",
            ),
            _KEY_ID,
            _CUSTOMER_ID,
        ),
        refusals=(
            _NO_CUSTOMER_KEY,
            _UNKNOWN_CUSTOMER,
            _UNKNOWN_KEY,
            _BAD_FROM,
            Unprocessable("from must lie before to.", param="from"),
            _UNKNOWN_PARAMETER,
        ),
    ),
    "GET /v1/requests": Route(
        answer=answers.RequestList,
        tokens=True,
        description="The newest first; never what was said. A page costs the same however long the log is: "
        f"under a filter it may be short, or empty, and `next_cursor` says where to go on. {_OWN_REQUESTS}",
        parameters=(
            LIMIT,
            Parameter(
                "cursor",
                "query",
                "The `next_cursor` of the page before.",
                {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
            ),
            Parameter(
                "from", "query", "A time, or a day in the customer's time zone.", _MOMENT, "2026-11-01"
            ),
            Parameter(
                "to", "query", "A time that is left out, or a day that is included.", _MOMENT, "2026-11-30"
            ),
            _label("model", "As the catalogue or the client named it.", "gpt-4o-mini"),
            _label("provider", "Who answered.", "openai"),
            Parameter(
                "status",
                "query",
                "What became of it.",
                {
                    "type": "string",
                    "enum": ["succeeded", "failed", "cancelled", "cut", "refused", "expired", "running"],
                },
            ),
            Parameter(
                "errors",
                "query",
                "Only those that failed or expired.",
                {"type": "string", "enum": ["true", "false"], "default": "false"},
            ),
            _KEY_ID,
            _CUSTOMER_ID,
        ),
        refusals=(_NO_CUSTOMER_KEY, _UNKNOWN_CUSTOMER, _UNKNOWN_KEY, _BAD_FROM, _UNKNOWN_PARAMETER),
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
    "GET /v1/key": Route(
        answer=answers.CallingKey,
        description="In OpenRouter's shape, with its field names.",
        refusals=(_NO_CUSTOMER_KEY, unknown("key", code="not_found")),
    ),
    "GET /v1/credits": Route(
        answer=answers.CreditTotals,
        tokens=True,
        description="In OpenRouter's shape: USD as numbers.",
        refusals=(_NO_CUSTOMER_KEY, _NO_CUSTOMER),
    ),
    "GET /api/usage": Route(
        answer=answers.PriceToPay,
        tokens=True,
        parameters=(
            Parameter(
                "user",
                "header",
                "If it is sent, it has to be the caller's own username.",
                {"type": "string"},
                "ada@example.com",
            ),
        ),
        refusals=(_NO_CUSTOMER_KEY, _NO_CUSTOMER, Unauthorized("The API key is not valid.")),
    ),
}
