"""The document and its pages over HTTP, and as Lambda sends them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from openapi_spec_validator import validate

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


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/redoc"])
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


@pytest.mark.parametrize("name", sorted(assets.FILES))
def test_lambda_sends_every_file_as_text_and_whole(function: Function, name: str) -> None:
    answer = function.handle(event(f"/docs/assets/{assets.sent_name(name)}"), None)
    assert answer["statusCode"] == 200
    assert answer["isBase64Encoded"] is False
    assert answer["body"].encode() == assets.read(assets.FILES[name]).body
    assert len(json.dumps(answer)) < LAMBDA_BYTES
