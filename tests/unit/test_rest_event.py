"""Events of a REST API as ASGI requests, and responses as the metadata of a stream."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette._utils import get_route_path
from starlette.requests import Request
from starlette.routing import Route

from gateway.runtime.rest_event import (
    MAX_METADATA_BYTES,
    RestEventError,
    request_body,
    request_scope,
    response_metadata,
)

# Text of every script, without lone surrogates: no URL and no header can carry those.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_HOPS = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
tokens = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=1, max_size=12)
latin = st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]), max_size=20)
segments = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda segment: segment not in {".", ".."}
)


def event(**fields: Any) -> dict[str, Any]:
    return {"httpMethod": "GET", "path": "/", **fields}


# The query


@given(st.dictionaries(text, st.lists(text, min_size=1, max_size=4), max_size=5))
def test_a_query_is_what_it_was_with_duplicates_and_order(query: dict[str, list[str]]) -> None:
    scope = request_scope(
        event(
            multiValueQueryStringParameters=query,
            queryStringParameters={name: values[-1] for name, values in query.items()},
        )
    )
    pairs = parse_qsl(scope["query_string"].decode(), keep_blank_values=True)
    assert pairs == [(name, value) for name, values in query.items() for value in values]


@given(st.dictionaries(text, text, max_size=5))
def test_a_query_of_single_values_alone_is_read(query: dict[str, str]) -> None:
    scope = request_scope(event(queryStringParameters=query, multiValueQueryStringParameters=None))
    assert parse_qsl(scope["query_string"].decode(), keep_blank_values=True) == list(query.items())


def test_what_only_the_single_values_have_is_read_too() -> None:
    scope = request_scope(
        event(queryStringParameters={"a": "2", "b": "3"}, multiValueQueryStringParameters={"a": ["1", "2"]})
    )
    assert scope["query_string"] == b"a=1&a=2&b=3"


# Headers


@given(st.dictionaries(tokens, st.lists(latin, min_size=1, max_size=3), max_size=5))
def test_headers_are_what_they_were_with_duplicates_and_order(headers: dict[str, list[str]]) -> None:
    expected = [
        (name.lower().encode(), value.encode("latin-1"))
        for name, values in headers.items()
        for value in values
    ]
    several = request_scope(event(multiValueHeaders=headers, headers=None))
    assert several["headers"] == expected
    single = request_scope(event(headers={name: values[0] for name, values in headers.items()}))
    assert single["headers"] == [
        (name.lower().encode(), values[0].encode("latin-1")) for name, values in headers.items()
    ]


def test_a_header_that_latin_1_cannot_carry_is_utf_8() -> None:
    assert request_scope(event(headers={"X": "\N{SNOWMAN}"}))["headers"] == [(b"x", b"\xe2\x98\x83")]


# The path


@given(st.lists(segments, max_size=4), tokens, st.booleans())
def test_a_path_is_decoded_once_and_kept_as_it_came(
    parts: list[str], stage: str, on_the_apis_own_host: bool
) -> None:
    path = "/" + "/".join(quote(part, safe="") for part in parts)
    context = {"stage": stage, "path": f"/{stage}{path}" if on_the_apis_own_host else path}
    scope = request_scope(event(path=path, requestContext=context))
    assert scope["root_path"] == (f"/{stage}" if on_the_apis_own_host else "")
    assert scope["raw_path"].decode() == scope["root_path"] + path
    assert scope["path"] == scope["root_path"] + "/" + "/".join(parts)
    assert get_route_path(scope) == unquote(path)


@given(
    base=st.lists(tokens, max_size=3),
    fixed=st.lists(tokens, min_size=1, max_size=3),
    rest=st.lists(segments, max_size=3),
)
def test_a_base_path_is_told_from_the_route_by_the_resource(
    base: list[str], fixed: list[str], rest: list[str]
) -> None:
    """On a custom domain, whatever the base path, even where it looks like the route."""
    resource = "/" + "/".join([*fixed, "{rest+}"] if rest else fixed)
    route = "/" + "/".join([*fixed, *(quote(part, safe="") for part in rest)])
    prefix = "".join(f"/{part}" for part in base)
    scope = request_scope(
        event(
            path=prefix + route,
            resource=resource,
            pathParameters={"rest": "/".join(rest)} if rest else None,
            requestContext={"stage": "prod", "path": prefix + route},
        )
    )
    assert scope["root_path"] == prefix
    assert get_route_path(scope) == unquote(route)


@pytest.mark.parametrize(
    ("path", "resource", "parameters", "root", "route"),
    [
        ("/", "/", None, "", "/"),
        ("/gw", "/", None, "/gw", "/"),
        ("/gw/", "/", None, "/gw", "/"),
        ("/v1/models", "/v1/models", None, "", "/v1/models"),
        ("/v1/models/", "/v1/models", None, "", "/v1/models/"),
        ("/gw/v1/keys/7", "/v1/keys/{id}", {"id": "7"}, "/gw", "/v1/keys/7"),
        ("/v1/v1/models", "/v1/{proxy+}", {"proxy": "models"}, "/v1", "/v1/models"),
        ("/v1/v1/models", "/v1/{proxy+}", {"proxy": "v1/models"}, "", "/v1/v1/models"),
        ("/gw/v1/models", "/{proxy+}", {"proxy": "v1/models"}, "/gw", "/v1/models"),
        ("/gw/v1/models/a%2Fb", "/{proxy+}", {"proxy": "v1/models/a/b"}, "/gw", "/v1/models/a/b"),
        ("/gw/v1/models/a%2Fb", "/{proxy+}", {"proxy": "v1/models/a%2Fb"}, "/gw", "/v1/models/a/b"),
        ("/v1/models", "/{proxy+}", None, "", "/v1/models"),
        ("/what/ever", "/v1/models", None, "", "/what/ever"),
        ("/v1/models", None, None, "", "/v1/models"),
        ("/v1/models", "odd", None, "", "/v1/models"),
        ("v1/models", "/v1/models", None, "", "/v1/models"),
        (None, None, None, "", "/"),
        ("", None, None, "", "/"),
    ],
)
def test_base_paths(path: Any, resource: Any, parameters: Any, root: str, route: str) -> None:
    scope = request_scope(event(path=path, resource=resource, pathParameters=parameters))
    assert (scope["root_path"], get_route_path(scope)) == (root, route)


def test_starlette_routes_behind_a_stage() -> None:
    scope = request_scope(
        event(path="/v1/models/a%2Fb", requestContext={"stage": "prod", "path": "/prod/v1/models/a%2Fb"})
    )
    match, child = Route("/v1/models/{name:path}", lambda _: None).matches(scope)
    assert match.name == "FULL"
    assert child["path_params"] == {"name": "a/b"}


def test_the_client_sees_its_own_url() -> None:
    scope = request_scope(
        event(
            path="/v1/models",
            headers={"Host": "abc.execute-api.eu-central-1.amazonaws.com", "X-Forwarded-Proto": "https"},
            requestContext={"stage": "prod", "path": "/prod/v1/models"},
            multiValueQueryStringParameters={"q": ["a b"]},
        )
    )
    url = "https://abc.execute-api.eu-central-1.amazonaws.com/prod/v1/models?q=a+b"
    assert str(Request(scope).url) == url


# The rest


@pytest.mark.parametrize("null", [{}, {"identity": None}, None])
def test_everything_may_be_null(null: Any) -> None:
    nothing = dict.fromkeys(
        [
            "headers",
            "multiValueHeaders",
            "queryStringParameters",
            "multiValueQueryStringParameters",
            "pathParameters",
            "stageVariables",
            "resource",
            "body",
            "isBase64Encoded",
        ]
    )
    scope = request_scope(event(**nothing, requestContext=null))
    assert (scope["headers"], scope["query_string"], scope["client"]) == ([], b"", None)
    assert (scope["scheme"], scope["http_version"], scope["server"]) == ("https", "1.1", ("localhost", 443))
    assert request_body(event(**nothing)) == b""


def test_who_asks_whom() -> None:
    scope = request_scope(
        event(
            headers={"Host": "gw.example.org:8443"},
            requestContext={"protocol": "HTTP/2.0", "identity": {"sourceIp": "2001:db8::1"}},
        )
    )
    assert scope["client"] == ("2001:db8::1", 0)
    assert scope["server"] == ("gw.example.org", 8443)
    assert scope["http_version"] == "2.0"


@given(st.binary(max_size=200))
def test_a_binary_body_is_what_it_was(body: bytes) -> None:
    assert request_body({"body": base64.b64encode(body).decode(), "isBase64Encoded": True}) == body


@given(st.text(max_size=200))
def test_a_text_body_is_utf_8_whatever_it_holds(body: str) -> None:
    assert request_body({"body": body, "isBase64Encoded": False}).decode("utf-8", "surrogatepass") == body


@pytest.mark.parametrize("broken", [None, [], "x", {}, {"httpMethod": None}, {"httpMethod": 1}])
def test_what_is_no_request_is_refused(broken: Any) -> None:
    with pytest.raises(RestEventError):
        request_scope(broken)


@pytest.mark.parametrize("broken", [{"body": {}}, {"body": "a", "isBase64Encoded": True}])
def test_a_body_that_is_none_is_refused(broken: Any) -> None:
    with pytest.raises(RestEventError):
        request_body(broken)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
maps = st.none() | st.dictionaries(text, st.none() | text, max_size=3)
lists = st.none() | st.dictionaries(text, st.none() | st.lists(st.none() | text, max_size=3), max_size=3)


@given(
    st.fixed_dictionaries(
        {"httpMethod": tokens},
        optional={
            "path": st.none() | text,
            "resource": st.none() | text,
            "pathParameters": maps,
            "headers": maps,
            "multiValueHeaders": lists,
            "queryStringParameters": maps,
            "multiValueQueryStringParameters": lists,
            "requestContext": st.none()
            | st.fixed_dictionaries(
                {},
                optional={"path": st.none() | text, "stage": st.none() | text, "protocol": st.none() | text},
            ),
        },
    )
)
def test_any_request_has_a_scope_that_starlette_can_read(found: dict[str, Any]) -> None:
    scope = request_scope(json.loads(json.dumps(found)))
    assert scope["path"].startswith("/")
    assert scope["path"].startswith(scope["root_path"])
    assert unquote(scope["raw_path"].decode("ascii")) == scope["path"]
    Request(scope).query_params.multi_items()


# The response


@given(
    st.integers(100, 599),
    st.lists(st.tuples(tokens.filter(lambda name: name.lower() not in _HOPS), latin), max_size=6),
)
def test_metadata_has_every_header_in_its_order(status: int, headers: list[tuple[str, str]]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    beginning = response_metadata(status, raw)
    document, delimiter, rest = beginning.partition(b"\0" * 8)
    assert (len(delimiter), rest) == (8, b"")
    assert b"\0" not in document
    metadata = json.loads(document)
    assert metadata["statusCode"] == status
    told = [(name, value) for name, values in metadata["multiValueHeaders"].items() for value in values]
    told += [("set-cookie", value) for value in metadata.get("cookies", ())]
    # Between names the order is free; within one it is not.
    expected = [(name.lower(), value) for name, value in headers]
    assert sorted(told, key=lambda pair: pair[0]) == sorted(expected, key=lambda pair: pair[0])


def test_headers_of_the_connection_do_not_travel() -> None:
    raw = [(name.encode(), b"x") for name in _HOPS]
    assert json.loads(response_metadata(200, raw)[:-8]) == {"statusCode": 200, "multiValueHeaders": {}}


def test_a_nul_in_a_header_is_no_delimiter() -> None:
    assert response_metadata(200, [(b"x", b"\0" * 8)]).count(b"\0") == 8


def test_metadata_is_bounded_before_anything_is_sent() -> None:
    room = MAX_METADATA_BYTES - len(response_metadata(200, [(b"x", b"")]))
    assert len(response_metadata(200, [(b"x", b"y" * room)])) == MAX_METADATA_BYTES
    with pytest.raises(ValueError, match="exceed 16384 bytes"):
        response_metadata(200, [(b"x", b"y" * (room + 1))])
