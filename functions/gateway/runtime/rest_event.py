"""Requests of an API Gateway REST API (Lambda proxy integration) as ASGI has them, and responses back.

https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html

What API Gateway does, and this follows: `path` arrives percent-encoded as the client wrote it, without the
stage but with a custom domain's base path; names and values of the query arrive decoded; any field may be
null.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from starlette.types import Scope

    from gateway.runtime.lambda_context import LambdaContext

MAX_METADATA_BYTES = 16 * 1024
"""Metadata and delimiter have to lie within the first so many bytes of a streamed response."""

_DELIMITER = b"\0" * 8
# What a path may hold unescaped (RFC 3986, pchar and "/"); "%" stays, as it begins an escape.
_PATH_SAFE = "/%:@!$&'()*+,;=-._~"
_PLACEHOLDER = re.compile(r"\{[^{}/+]+(\+?)\}")
# Of one connection, and not of the response that travels over it (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})


class RestEventError(ValueError):
    """The event is none of a REST API's proxy integration."""


def request_scope(event: Any, context: LambdaContext | None = None) -> Scope:
    """Return the ASGI scope of the request. Raises RestEventError.

    `root_path` is what stands before the API's own routes in the URL that the client used: the stage, or the
    base path of a custom domain. As ASGI has it, `path` begins with it.
    """
    if not isinstance(event, dict) or not isinstance(event.get("httpMethod"), str):
        raise RestEventError("the event is no request to a REST API: it has no httpMethod")
    request = event.get("requestContext") or {}
    headers = _headers(event)
    prefix, route = _split_path(event, request)
    raw_path = quote(prefix + route, safe=_PATH_SAFE)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": str(request.get("protocol") or "HTTP/1.1").rpartition("/")[2],
        "method": event["httpMethod"].upper(),
        "scheme": _last(headers, b"x-forwarded-proto") or "https",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("ascii"),
        "root_path": unquote(prefix),
        "query_string": _query_string(event),
        "headers": headers,
        "client": _client(request),
        "server": _server(headers, request),
        "state": {},
        "aws.event": event,
        "aws.context": context,
    }


def request_body(event: Mapping[str, Any]) -> bytes:
    """Return the request's body. Raises RestEventError where it is not what the event says it is."""
    body = event.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise RestEventError("the event's body is no text")
    if not event.get("isBase64Encoded"):
        # A lone surrogate is no UTF-8; whoever parses the body is to say so, not this.
        return body.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RestEventError("the event's body is no base64") from error


def response_metadata(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the beginning of a streamed response: its metadata and the delimiter after it.

    Headers of one name stay several, in their order. Raises ValueError where they are too many: nothing has
    been sent by then.
    """
    several: dict[str, list[str]] = {}
    cookies: list[str] = []
    for name, value in headers:
        lowered = bytes(name).lower()
        if lowered == b"set-cookie":
            cookies.append(bytes(value).decode("latin-1"))
        elif lowered not in _HOP_BY_HOP:
            several.setdefault(lowered.decode("latin-1"), []).append(bytes(value).decode("latin-1"))
    metadata: dict[str, Any] = {"statusCode": status, "multiValueHeaders": several}
    if cookies:
        metadata["cookies"] = cookies
    # As ASCII, in which no byte can be mistaken for the delimiter.
    beginning = json.dumps(metadata, separators=(",", ":")).encode("ascii") + _DELIMITER
    if len(beginning) > MAX_METADATA_BYTES:
        raise ValueError(f"the response's headers exceed {MAX_METADATA_BYTES} bytes")
    return beginning


def _pairs(event: Mapping[str, Any], several: str, single: str) -> Iterator[tuple[str, str]]:
    """Yield names and values in their order: all of `several`, and what only `single` has."""
    lists = event.get(several) or {}
    for name, values in lists.items():
        for value in values or ():
            yield name, "" if value is None else str(value)
    for name, value in (event.get(single) or {}).items():
        if name not in lists:
            yield name, "" if value is None else str(value)


def _headers(event: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    return [
        (_header_bytes(name.lower()), _header_bytes(value))
        for name, value in _pairs(event, "multiValueHeaders", "headers")
    ]


def _header_bytes(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _query_string(event: Mapping[str, Any]) -> bytes:
    pairs = _pairs(event, "multiValueQueryStringParameters", "queryStringParameters")
    return "&".join(
        f"{quote_plus(name, errors='surrogatepass')}={quote_plus(value, errors='surrogatepass')}"
        for name, value in pairs
    ).encode("ascii")


def _client(request: Mapping[str, Any]) -> tuple[str, int] | None:
    address = (request.get("identity") or {}).get("sourceIp")
    return (str(address), 0) if address else None


def _server(headers: list[tuple[bytes, bytes]], request: Mapping[str, Any]) -> tuple[str, int]:
    host = _last(headers, b"host") or request.get("domainName") or "localhost"
    name, _, port = str(host).rpartition(":")
    if name and port.isascii() and port.isdigit():
        return name, int(port)
    return str(host), 443


def _last(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    found = [value for header, value in headers if header == name]
    return found[-1].decode("latin-1") if found else None


def _split_path(event: Mapping[str, Any], request: Mapping[str, Any]) -> tuple[str, str]:
    """Return what stands before the API's routes, and the route's own path, both as they arrived."""
    path = str(event.get("path") or "/")
    if not path.startswith("/"):
        path = f"/{path}"
    whole = request.get("path")
    stage = request.get("stage")
    # On the API's own host the whole path has the stage before it. On a custom domain it has no stage, and
    # both have the base path; only the resource tells where the route begins.
    own = f"/{stage}{path}".rstrip("/")
    if isinstance(whole, str) and stage and unquote(whole).rstrip("/") == unquote(own):
        return f"/{stage}", path
    base = _base_path(path, event.get("resource"), event.get("pathParameters"))
    return base, path[len(base) :] or "/"


def _base_path(path: str, resource: Any, parameters: Any) -> str:
    """Return the part of the path before its resource, such as `/v1/models/{name+}`; "" if there is none."""
    if not isinstance(resource, str) or not resource.startswith("/"):
        return ""
    template = [part for part in resource.split("/") if part]
    parts = path.split("/")[1:]
    matches = [start for start in range(len(parts) + 1) if _matches(parts[start:], template)]
    if not matches:
        return ""
    start = next((start for start in matches if _agrees(parts[start:], template, parameters)), matches[0])
    return "".join(f"/{part}" for part in parts[:start])


def _matches(parts: list[str], template: list[str]) -> bool:
    """Return whether the end of a path is of this resource, whatever its parameters."""
    if parts and not parts[-1]:
        parts = parts[:-1]  # a slash at the end
    greedy = bool(template) and template[-1].endswith("+}")
    if len(parts) < len(template) or (len(parts) > len(template) and not greedy):
        return False
    return all(
        bool(part) if _PLACEHOLDER.fullmatch(segment) else unquote(part) == segment
        for part, segment in zip(parts, template, strict=False)
    )


def _agrees(parts: list[str], template: list[str], parameters: Any) -> bool:
    """Return whether the event's own parameters are what this split of the path would give."""
    given = parameters if isinstance(parameters, dict) else {}
    for position, segment in enumerate(template):
        if not (found := _PLACEHOLDER.fullmatch(segment)):
            continue
        value = given.get(segment.strip("{+}"))
        actual = "/".join(parts[position:]) if found[1] else parts[position]
        if not isinstance(value, str) or unquote(value).strip("/") != unquote(actual).strip("/"):
            return False
    return True
