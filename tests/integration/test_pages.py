"""The document and its pages over HTTP, and as Lambda sends them."""

from __future__ import annotations

import base64
import dataclasses
import json
import posixpath
import re
from typing import TYPE_CHECKING, Any

import pytest
from openapi_spec_validator import validate
from pydantic import SecretStr

from gateway import assets, openapi
from gateway.runtime.function import Function
from tests.fixtures.management import Management, assert_error, management

if TYPE_CHECKING:
    import httpx

__all__ = ["management"]

LAMBDA_BYTES = 6 * 1024 * 1024
FOR_GOOD = "public, max-age=31536000, immutable"


async def get(management: Management, path: str, **headers: str) -> httpx.Response:
    return await management.call("GET", path, None, headers=headers)


async def files_of(management: Management, page: str) -> list[str]:
    text = (await get(management, page)).text
    return [f"/{found}" for found in re.findall(r'(?:href|src)="(docs/assets/[^"]+)"', text)]


async def test_the_document_is_served_whole(management: Management) -> None:
    response = await get(management, "/openapi.json")
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    validate(document)
    assert document["servers"] == [{"url": "/"}]
    assert document["info"]["version"] == management.process.settings.version
    assert {"/v1/chat/completions", "/v1/keys", "/user/balance", "/admin/settings", "/"} <= set(
        document["paths"]
    )


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/redoc", "/dashboard", "/dashboard/config.json"])
async def test_what_the_client_has_is_not_sent_again(management: Management, path: str) -> None:
    first = await get(management, path)
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = await get(management, path, **{"if-none-match": known})
        assert again.status_code == 304
        assert again.content == b""
        assert again.headers["etag"] == tag
    assert (await get(management, path, **{"if-none-match": '"other"'})).status_code == 200


@pytest.mark.parametrize(("page", "count"), [("/docs", 4), ("/redoc", 3)])
async def test_files_may_be_kept_for_good(management: Management, page: str, count: int) -> None:
    files = await files_of(management, page)
    assert len(files) == count
    for path in files:
        response = await get(management, path)
        assert response.status_code == 200
        assert response.headers["cache-control"] == FOR_GOOD
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-type"].partition(";")[0] in {"text/css", "text/javascript"}
        assert response.headers["etag"].strip('"') in path


async def test_a_file_of_another_version_is_given_and_not_kept(management: Management) -> None:
    """While a deployment goes on, one version's page may meet the other's files."""
    response = await get(management, f"/docs/assets/docs.{'0' * 16}.js")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "name",
    [
        "docs.js",
        "docs.html",
        f"handler.{'0' * 16}.py",
        f"..%2Fdocs.{'0' * 16}.js",
        f"..%2F..%2F..%2Fweb%2Fhandler.{'0' * 16}.py",
        f"%2Fetc%2Fpasswd.{'0' * 16}.js",
        f"docs.{'0' * 16}.js%0A",
        f"__init__.{'0' * 16}.py",
    ],
)
async def test_no_other_file_can_be_had(management: Management, name: str) -> None:
    assert_error(await get(management, f"/docs/assets/{name}"), 404)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_policy_of_a_page(management: Management, page: str) -> None:
    headers = (await get(management, page)).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


async def dashboard_files(management: Management, page: str) -> list[str]:
    text = (await get(management, page)).text
    return [
        posixpath.normpath(posixpath.join(posixpath.dirname(page), found))
        for found in re.findall(r'(?:href|src)="([^"]+)"', text)
    ]


@pytest.mark.parametrize("page", ["/dashboard", "/dashboard/7"])
async def test_files_of_the_dashboard_may_be_kept_for_good(management: Management, page: str) -> None:
    """And each is found from either page by a relative address: API Gateway's stage stands before both."""
    assert 'href="/' not in (await get(management, page)).text
    files = await dashboard_files(management, page)
    assert len(files) > 10
    bundle = assets.dashboard()
    for path in files:
        response = await get(management, path)
        assert response.status_code == 200, path
        assert response.headers["cache-control"] == FOR_GOOD
        assert response.headers["x-content-type-options"] == "nosniff"
        assert path.startswith(f"/dashboard/assets/{bundle.digest}/")
    old = await get(management, f"/dashboard/assets/{'0' * 16}/app.js")
    assert (old.status_code, old.headers["cache-control"]) == (200, "no-cache")


@pytest.mark.parametrize(
    "path",
    [
        "/dashboard/0",
        "/dashboard/-1",
        "/dashboard/x",
        "/dashboard/%3Cscript%3E",
        "/dashboard/1%0A",
        f"/dashboard/{'9' * 20}",
        "/dashboard/assets/0/index.html",
        "/dashboard/assets/0/..%2F__init__.py",
        "/dashboard/assets/0/..%2F..%2F..%2Fweb%2Fhandler.py",
        "/dashboard/assets/0/%2Fetc%2Fpasswd",
        "/dashboard/assets/0/vendor/redoc.standalone.js",
    ],
)
async def test_the_dashboard_has_no_other_page_and_no_other_file(management: Management, path: str) -> None:
    assert_error(await get(management, path), 404)


async def test_policy_of_the_dashboard(management: Management) -> None:
    headers = (await get(management, "/dashboard")).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    for name in ("script-src", "style-src", "img-src", "connect-src"):
        assert policy[name] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "'none'")
    assert headers["referrer-policy"] == "no-referrer"


def served(management: Management, **settings: Any) -> dict[str, Any]:
    """The page and its configuration, of a gateway with other settings."""
    made = management.process.settings.model_copy(update=settings)
    process = dataclasses.replace(management.process, settings=made)
    function = Function(openapi.operations, process=lambda: process)
    page = function.handle(event("/dashboard"), None)
    config = function.handle(event("/dashboard/config.json"), None)
    return {
        "policy": page["headers"]["content-security-policy"],
        "page": page["body"],
        **json.loads(config["body"]),
    }


def test_the_auth_server_is_reached_only_where_people_sign_in_by_it(management: Management) -> None:
    issuer = "https://abc.supabase.co/auth/v1"
    without = served(management, auth_issuer=issuer, auth_publishable_key=None)
    assert without["auth"] is None
    assert "supabase" not in without["policy"]
    assert 'id="by-mail" novalidate hidden' in without["page"]
    given = served(management, auth_issuer=issuer, auth_publishable_key=SecretStr("sb_publishable_x"))
    assert given["auth"] == {"url": issuer, "publishable_key": "sb_publishable_x"}
    assert "connect-src 'self' https://abc.supabase.co;" in given["policy"]
    assert 'id="by-mail" novalidate >' in given["page"]
    nobody = served(management, auth_issuer=None, auth_publishable_key=SecretStr("sb_publishable_x"))
    assert nobody["auth"] is None


def test_the_dashboard_shows_nothing_secret(management: Management) -> None:
    settings = management.process.settings
    told = json.dumps(served(management))
    assert settings.supabase_key.get_secret_value() not in told
    assert settings.rest_url not in told


def event(path: str, stage: str = "prod") -> dict[str, Any]:
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": "GET",
        "headers": {"host": "abc.execute-api.eu-west-1.amazonaws.com"},
        "multiValueHeaders": {"host": ["abc.execute-api.eu-west-1.amazonaws.com"]},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "requestContext": {"path": f"/{stage}{path}", "stage": stage, "httpMethod": "GET"},
        "body": None,
        "isBase64Encoded": False,
    }


@pytest.fixture
def function(management: Management) -> Function:
    return Function(openapi.operations, process=lambda: management.process)


def test_lambda_names_the_stage_as_the_server(function: Function) -> None:
    answer = function.handle(event("/openapi.json"), None)
    assert answer["statusCode"] == 200
    assert json.loads(answer["body"])["servers"] == [{"url": "/prod"}]
    again = function.handle(event("/openapi.json", "dev"), None)
    assert json.loads(again["body"])["servers"] == [{"url": "/dev"}]


@pytest.mark.parametrize("name", sorted(assets.dashboard().files))
def test_lambda_sends_every_file_of_the_dashboard_whole(function: Function, name: str) -> None:
    bundle = assets.dashboard()
    answer = function.handle(event(f"/dashboard/assets/{bundle.digest}/{name}"), None)
    assert answer["statusCode"] == 200
    body = base64.b64decode(answer["body"]) if answer["isBase64Encoded"] else answer["body"].encode()
    assert body == bundle.files[name].body


@pytest.mark.parametrize("name", sorted(assets.FILES))
def test_lambda_sends_every_file_as_text_and_whole(function: Function, name: str) -> None:
    answer = function.handle(event(f"/docs/assets/{assets.sent_name(name)}"), None)
    assert answer["statusCode"] == 200
    assert answer["isBase64Encoded"] is False
    assert answer["body"].encode() == assets.read(assets.FILES[name]).body
    assert len(json.dumps(answer)) < LAMBDA_BYTES
