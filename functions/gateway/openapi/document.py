"""The OpenAPI 3.1 document of the routes: from their Operations, their documentation and their models."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gateway.errors import (
    BadRequest,
    Forbidden,
    GatewayError,
    InternalError,
    PayloadTooLarge,
    Unauthorized,
    Unavailable,
    Unprocessable,
)
from gateway.http import stopped
from gateway.openapi import admin, billing, chat, events, keys, media, messages, usage, web
from gateway.openapi.routes import PAGE_REFUSALS, Content, Route
from gateway.openapi.schemas import components, example, reference
from gateway.schemas.answers import ErrorAnswer
from gateway.settings import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import BaseModel

    from gateway.http import Operation

OPENAPI = "3.1.0"
JSON = "application/json"

ROUTES: Mapping[str, Route] = {
    **chat.ROUTES,
    **media.ROUTES,
    **messages.ROUTES,
    **keys.ROUTES,
    **usage.ROUTES,
    **admin.ROUTES,
    **billing.ROUTES,
    **web.ROUTES,
}

DESCRIPTION = """\
One OpenAI-compatible endpoint over every provider, metered in credits.

**Keys.** Send yours as `Authorization: Bearer sk_…`, or in the header `x-api-key` or `api-key`. A key has
scopes: `chat` calls models, `usage` reads its customer's log, `keys` makes keys, `billing` pays, `admin`
may do everything. Where it is said, an access token of Supabase Auth does as well.

**Errors** have OpenAI's shape on every route, so that its SDKs raise their own exceptions; under
/v1/messages they have Anthropic's. `code` is for programs and stays as it is; `param` names the field.
`x-should-retry: false` says that a retry can't help.

**Money.** Fields that end in `_usd` are exact decimals as text. Credits are numbers, rounded down. *Cost*
is what the provider takes, *charge* what the customer pays.

**Lists** answer with `next_cursor`: send it as `cursor` to get the next page.

**Times** are RFC 3339 in UTC.
"""

TAGS = {
    "chat": "Calls of models. Each is paid for once, and bounded before it is made.",
    "messages": "Anthropic's Messages API, over any model.",
    "images": "Images made and edited, paid for and bounded as chats are.",
    "embeddings": "Texts as vectors.",
    "models": "What can be called, and for how much.",
    "keys": "API keys.",
    "usage": "What a customer has, has used and may use.",
    "billing": "Top-ups by Stripe, and monthly statements.",
    "admin": "For operators: customers and their money, limits, services, the catalogue, the settings.",
    "pages": "What anybody may ask.",
}

SECURITY_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key: `sk_` and 40 letters and digits.",
    },
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key."},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key", "description": "The same key."},
    "supabase": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "An access token of Supabase Auth: of a customer, for that customer alone; "
        "of a user whose `app_metadata.role` is `admin`, for everything.",
    },
}
_KEY = ("bearer", "x-api-key", "api-key")

_TEXT = {"type": "string"}
_WHOLE = {"type": "integer", "minimum": 0}
HEADERS: Mapping[str, Mapping[str, Any]] = {
    "x-request-id": {
        "description": "The request's id. A paid call's record is at /v1/requests/{id}.",
        "schema": {"type": "string", "pattern": "^req_[0-9a-f]{32}$"},
        "example": "req_01a1fd2ab32670e3815c293832e5f73a",
    },
    "request-id": {
        "description": "The same, where Anthropic's SDKs look for it.",
        "schema": {"type": "string", "pattern": "^req_[0-9a-f]{32}$"},
        "example": "req_01a1fd2ab32670e3815c293832e5f73a",
    },
    "retry-after": {"description": "Whole seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
    "x-should-retry": {
        "description": "`false`: a retry can't help. OpenAI's SDKs obey it.",
        "schema": {"type": "string", "enum": ["false"]},
    },
    "www-authenticate": {"description": "How to authenticate.", "schema": _TEXT, "example": "Bearer"},
    "x-ratelimit-warning": {
        "description": "The soft limits that are crossed.",
        "schema": _TEXT,
        "example": "key tokens_per_day",
    },
    "x-gateway-dropped-parameters": {
        "description": "The parameters that the provider can't be told, and that were left out: the setting "
        "`unsupported_parameters` is `drop`.",
        "schema": _TEXT,
        "example": "logit_bias, seed",
    },
    **{
        f"x-ratelimit-{part}-{what}": {"description": text.format(what), "schema": schema, "example": shown}
        for what in ("requests", "tokens")
        for part, text, schema, shown in (
            ("limit", "How many {} the tightest window takes.", _WHOLE, 60),
            ("remaining", "How many {} it has left.", _WHOLE, 59),
            ("reset", "When the window of {} ends.", _TEXT, "12s"),
        )
    },
}
_RATE_LIMITS = tuple(name for name in HEADERS if name.startswith("x-ratelimit-"))
_METERED = (*_RATE_LIMITS, "x-gateway-dropped-parameters")

_NO_KEY = 401
"""The one answer to a metered call that can't tell how much of the limits is left."""

_REASONS = {
    200: "OK",
    201: "Made",
    304: "As the client has it",
    400: "What arrived could not be read as a request",
    401: "No key, or one that is unknown, revoked or expired",
    402: "The balance can't carry the call",
    403: "The key is good, but not for this",
    404: "There is no such thing, or none that this key may see",
    409: "The state of things forbids it",
    413: "The body is too large",
    422: "Well-formed, but invalid: `param` names the field",
    429: "A limit is reached",
    500: "The gateway's fault",
    501: "The operator has not set up what this needs",
    502: "The provider failed",
    503: "The provider or the database can't be reached",
    504: "The provider took too long",
}


def build(operations: Iterable[Operation], *, version: str) -> dict[str, Any]:
    """Return the document of those operations that ROUTES documents."""
    shown = [
        (operation, ROUTES[name])
        for operation in operations
        if operation.in_schema and (name := route_name(operation)) in ROUTES
    ]
    schemas = components(_models(shown))
    paths: dict[str, dict[str, Any]] = {}
    for operation, route in shown:
        path = paths.setdefault(template_path(operation.path), {})
        path[operation.method.lower()] = _operation(operation, route, schemas)
    shared = _share_responses(paths)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "Sluice",
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "webhooks": events.webhooks(schemas),
        "components": {
            "schemas": schemas,
            "responses": shared,
            "headers": {name: dict(header) for name, header in HEADERS.items()},
            "securitySchemes": SECURITY_SCHEMES,
        },
    }


def _share_responses(paths: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Move error responses that several routes have, word for word, to where all refer to them."""
    texts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in paths.values():
        for operation in path.values():
            for status in operation["responses"]:
                text = json.dumps(operation["responses"][status])
                texts.setdefault((status, text), []).append(operation["responses"])
    shared: dict[str, Any] = {}
    by_use = sorted(texts.items(), key=lambda entry: -len(entry[1]))
    for (status, text), places in by_use:
        name = HTTPStatus(int(status)).name.title().replace("_", "")
        if len(places) > 1 and name not in shared and int(status) >= HTTPStatus.BAD_REQUEST:
            shared[name] = json.loads(text)
            for responses in places:
                responses[status] = {"$ref": f"#/components/responses/{name}"}
    return dict(sorted(shared.items()))


def route_name(operation: Operation) -> str:
    """Return how ROUTES names an operation."""
    return f"{operation.method} {template_path(operation.path)}"


def template_path(path: str) -> str:
    """Return Starlette's path as OpenAPI writes it: `{name:path}` is `{name}` there."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def refusals(operation: Operation, route: Route) -> list[GatewayError]:
    """Return every error that the route may answer with."""
    found: list[GatewayError] = [BadRequest("The URL holds a NUL character.")]
    if not route.public:
        found += [
            Unauthorized("No API key was given.", code="missing_api_key"),
            Unauthorized("The API key is not valid."),
            Forbidden("This account is suspended.", code="customer_suspended"),
        ]
    if operation.scope is not None and not route.metered:
        found.append(
            Forbidden(
                "Only an admin key may do this."
                if operation.scope == "admin"
                else f"This key may not do this: it lacks the scope '{operation.scope}'.",
                code="scope_missing",
            )
        )
    if operation.body is not None:
        found += [
            BadRequest(
                "The request body is not valid JSON: Expecting value (line 1, column 1).", code="invalid_json"
            ),
            PayloadTooLarge(f"The request body exceeds {MAX_BODY_BYTES} bytes."),
            Unprocessable("name: Field required", param="name"),
        ]
    if route.upload is not None:
        found.append(PayloadTooLarge(f"The request body exceeds {MAX_BODY_BYTES} bytes."))
    if route.pages:
        found += PAGE_REFUSALS
    found += route.refusals
    if route.metered:
        found += chat.METERED_REFUSALS
    return [
        *found,
        InternalError(),
        Unavailable(
            "The gateway's database can't be reached. Try again shortly.",
            code="database_unavailable",
            retry_after=1,
        ),
        stopped(),
    ]


def told(operation: Operation, error: GatewayError) -> tuple[int, dict[str, Any]]:
    """Return the status and the body by which the route's clients are told of an error."""
    return operation.dialect.error(error, HEADERS["x-request-id"]["example"])


def _models(shown: Sequence[tuple[Operation, Route]]) -> set[type[BaseModel]]:
    models: set[type[BaseModel]] = {ErrorAnswer}
    for operation, route in shown:
        if operation.body is not None:
            models.add(operation.body)
        if not isinstance(route.answer, Content):
            models.add(route.answer)
        models.add(route.errors)
        models.update(other for other in route.others.values() if other is not None)
    models.update(event.data for event in events.EVENTS.values())
    return models


def _operation(operation: Operation, route: Route, schemas: Mapping[str, Any]) -> dict[str, Any]:
    scope = "" if operation.scope is None else f"Takes the scope `{operation.scope}`."
    described = "\n\n".join(filter(None, (route.description, operation.description, scope)))
    made: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", operation.summary.lower()).strip("_"),
        "summary": operation.summary,
        "description": described,
        "tags": list(operation.tags),
        "security": [{name: []} for name in (*_KEY, *(["supabase"] if route.tokens else []))],
        "parameters": [
            {
                "name": parameter.name,
                "in": parameter.where,
                "description": parameter.description,
                "required": parameter.where == "path",
                "schema": dict(parameter.schema),
                **({} if parameter.example is None else {"example": parameter.example}),
            }
            for parameter in route.parameters
        ],
        "responses": _responses(operation, route, schemas),
    }
    if route.public:
        made["security"] = []
    bodies: dict[str, Any] = {}
    if operation.body is not None:
        shown = example(reference(operation.body), schemas) if route.request is None else route.request
        bodies[JSON] = {"schema": reference(operation.body), "example": shown}
    if route.upload is not None:
        bodies |= _content(route.upload, schemas)
    if bodies:
        made["requestBody"] = {"required": route.request_required, "content": bodies}
    return made


def _responses(operation: Operation, route: Route, schemas: Mapping[str, Any]) -> dict[str, Any]:
    identity = ("x-request-id", operation.dialect.request_id_header)
    plain = tuple(name for name in identity if name is not None)
    carried = (*plain, *(_METERED if route.metered else ()))
    good: dict[str, Any] = {
        "description": _REASONS[operation.status],
        "headers": _headers(carried),
        "content": _content(route.answer, schemas),
    }
    if route.stream is not None:
        good["content"] |= _content(route.stream, schemas)
    for form in route.forms:
        good["content"] |= _content(form, schemas)
    responses = {str(operation.status): good}
    for status, answer in route.others.items():
        responses[str(status)] = {
            "description": _REASONS[status],
            "headers": _headers(plain),
            **({} if answer is None else {"content": _content(answer, schemas)}),
        }
    by_status: dict[int, list[GatewayError]] = {}
    for error in refusals(operation, route):
        status, _ = told(operation, error)
        if status not in route.others:
            by_status.setdefault(status, []).append(error)
    for status, errors in sorted(by_status.items()):
        names = dict.fromkeys(name for error in errors for name in error.headers)
        responses[str(status)] = {
            "description": _REASONS[status],
            "headers": _headers((*(plain if status == _NO_KEY else carried), *names)),
            "content": {
                JSON: {
                    "schema": reference(route.errors),
                    "examples": {
                        _example_name(error, errors): {"value": told(operation, error)[1]} for error in errors
                    },
                }
            },
        }
    return responses


def _example_name(error: GatewayError, errors: Sequence[GatewayError]) -> str:
    name = error.code or error.type
    same = [other for other in errors if (other.code or other.type) == name]
    return name if len(same) == 1 else f"{name}_{same.index(error) + 1}"


def _content(answer: type[BaseModel] | Content, schemas: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(answer, Content):
        body: dict[str, Any] = {"schema": {**answer.schema, "description": answer.description}}
        if answer.example is not None:
            body["example"] = answer.example
        return {answer.media_type: body}
    schema = reference(answer)
    return {JSON: {"schema": schema, "example": example(schema, schemas)}}


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in dict.fromkeys(names)}
