"""The document is valid, leaves nothing out, and costs the other functions nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from gateway.http import Operation
from gateway.openapi.document import HEADERS, ROUTES, build, refusals, route_name, template_path, told
from gateway.openapi.routes import Route
from gateway.openapi.schemas import components, example, reference
from gateway.schemas.admin import ChangeSettingsRequest, UpdateServiceRequest
from gateway.schemas.answers import Answer
from gateway.schemas.keys import CreateKeyRequest
from tests.fixtures.contract import contract

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.responses import Response

REPOSITORY = Path(__file__).parents[2]


def document() -> dict[str, Any]:
    return dict(contract().document)


def operations() -> list[Operation]:
    return [route.operation for route in contract().routes if route.operation.in_schema]


OPERATIONS = [operation for operation in operations() if route_name(operation) in ROUTES]
"""One that is missing in ROUTES is told by one test, not by all."""


def entries() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document()["paths"].items():
        for method, entry in methods.items():
            yield f"{method.upper()} {path}", entry


def resolved(entry: dict[str, Any]) -> dict[str, Any]:
    return dict(contract()._resolved(entry))


def assert_valid(value: Any, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document()["components"]}).validate(value)


def test_it_is_valid() -> None:
    validate(document())


def test_it_is_json_of_a_size_that_lambda_sends() -> None:
    assert len(json.dumps(document())) < 1024 * 1024


def test_every_route_is_documented_and_nothing_else() -> None:
    """A new route needs an entry in gateway/openapi, and an answer in gateway/schemas/answers."""
    assert {route_name(operation) for operation in operations()} == set(ROUTES)
    assert {name for name, _ in entries()} == set(ROUTES)


def test_each_operation_has_a_name_of_its_own() -> None:
    names = [entry["operationId"] for _, entry in entries()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)


def test_every_tag_says_what_it_is() -> None:
    used = {tag for _, entry in entries() for tag in entry["tags"]}
    assert used == {tag["name"] for tag in document()["tags"]}
    assert all(len(entry["tags"]) == 1 for _, entry in entries())


@pytest.mark.parametrize("name", sorted(ROUTES))
def test_the_parameters_of_a_path_are_named(name: str) -> None:
    method, path = name.split(" ")
    entry = document()["paths"][path][method.lower()]
    named = [parameter["name"] for parameter in entry["parameters"] if parameter["in"] == "path"]
    assert sorted(named) == sorted(re.findall(r"\{(\w+)\}", path))
    assert all(parameter["description"] for parameter in entry["parameters"])


@pytest.mark.parametrize("name", sorted(ROUTES))
def test_examples_are_what_they_are_examples_of(name: str) -> None:
    method, path = name.split(" ")
    entry = document()["paths"][path][method.lower()]
    contents = [resolved(response).get("content", {}) for response in entry["responses"].values()]
    contents.append(entry.get("requestBody", {}).get("content", {}))
    for content in contents:
        for media_type, body in content.items():
            for shown in [body, *body.get("examples", {}).values()]:
                value = shown.get("example", shown.get("value"))
                if value is not None and media_type == "application/json":
                    assert_valid(value, body["schema"])
    for parameter in entry["parameters"]:
        if "example" in parameter:
            assert_valid(parameter["example"], parameter["schema"])


@pytest.mark.parametrize("operation", OPERATIONS, ids=route_name)
def test_example_of_a_body_is_taken(operation: Operation) -> None:
    """By the model itself, which checks more than its schema can say."""
    route = ROUTES[route_name(operation)]
    if operation.body is None:
        assert route.request is None
        return
    assert route.request is not None, "a route with a body needs an example of it"
    operation.body.model_validate(route.request)


@pytest.mark.parametrize("operation", OPERATIONS, ids=route_name)
def test_every_error_of_a_route_has_its_status_and_an_example(operation: Operation) -> None:
    route = ROUTES[route_name(operation)]
    responses = document()["paths"][template_path(operation.path)][operation.method.lower()]["responses"]
    for error in refusals(operation, route):
        status, body = told(operation, error)
        if status in route.others:
            continue
        response = resolved(responses[str(status)])
        examples = [shown["value"] for shown in response["content"]["application/json"]["examples"].values()]
        assert body in examples
        assert set(error.headers) <= set(response["headers"])
    assert str(operation.status) in responses


@pytest.mark.parametrize("operation", OPERATIONS, ids=route_name)
def test_a_route_that_wants_a_key_says_so(operation: Operation) -> None:
    name = route_name(operation)
    entry = dict(entries())[name]
    public = ROUTES[name].public
    assert (entry["security"] == []) is public
    assert ("401" not in entry["responses"]) is public
    if operation.scope is not None:
        assert not public
        assert f"`{operation.scope}`" in entry["description"]


@pytest.mark.parametrize("operation", OPERATIONS, ids=route_name)
def test_a_route_that_streams_says_so(operation: Operation) -> None:
    entry = dict(entries())[route_name(operation)]
    content = resolved(entry["responses"][str(operation.status)]).get("content", {})
    assert ("text/event-stream" in content) is operation.streams


@pytest.mark.parametrize("operation", OPERATIONS, ids=route_name)
def test_headers_are_described(operation: Operation) -> None:
    for response in dict(entries())[route_name(operation)]["responses"].values():
        headers = resolved(response)["headers"]
        assert "x-request-id" in headers
        assert set(headers) <= set(HEADERS)


def test_models_that_share_a_name_are_told() -> None:
    twin = type("Health", (Answer,), {"__module__": "elsewhere"})
    from gateway.schemas.answers.web import Health

    with pytest.raises(ValueError, match="Health"):
        components([twin, Health])


def test_fields_are_described_where_they_are_declared() -> None:
    fields = components([CreateKeyRequest])["CreateKeyRequest"]["properties"]
    assert fields["limits"]["description"] == "Over all models together."
    assert "title" not in fields["name"]


def test_null_is_allowed_where_it_means_something_alone() -> None:
    schemas = components([UpdateServiceRequest, ChangeSettingsRequest])
    service = schemas["UpdateServiceRequest"]["properties"]
    settings = schemas["ChangeSettingsRequest"]["properties"]
    null = {"type": "null"}
    assert null in service["base_url"]["anyOf"]
    assert null in settings["default_tokens_per_minute"]["anyOf"]
    assert service["name"]["type"] == "string"
    assert null not in settings["commission_percent"]["anyOf"]
    assert all(
        null not in field.get("anyOf", ()) or name in model.nullable
        for model in (UpdateServiceRequest, ChangeSettingsRequest)
        for name, field in schemas[model.__name__]["properties"].items()
    )


def test_what_may_be_missing_has_no_default_in_an_answer() -> None:
    answers = {
        name
        for entry in dict(entries()).values()
        for response in entry["responses"].values()
        for name in re.findall(r"schemas/(\w+)", json.dumps(resolved(response)))
    }
    for name in answers:
        for field in document()["components"]["schemas"][name].get("properties", {}).values():
            assert "default" not in field


def test_example_of_a_list_has_an_item() -> None:
    from gateway.schemas.answers.admin import BalanceList

    schemas = components([BalanceList])
    shown = example(reference(BalanceList), schemas)
    assert shown["users"][0]["api_keys"][0]["prefix"].startswith("sk_")


async def test_an_undocumented_route_stays_out_and_breaks_nothing() -> None:
    async def endpoint(_request: Request) -> Response:
        raise AssertionError

    stranger = Operation("GET", "/stranger", endpoint, "A stranger")
    made = build([*operations(), stranger], version="1")
    assert "/stranger" not in made["paths"]
    assert Route(answer=Answer).public is False


@pytest.mark.parametrize("function", ["chat", "keys", "usage", "admin", "web", "maintenance"])
def test_a_cold_start_pays_for_none_of_it(function: str) -> None:
    """What builds the document is imported when it is first asked for, and by the web function alone."""
    program = f"import sys, {function}.handler; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "functions")},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert f"{function}.handler" in loaded
    forbidden = {"gateway.openapi.document", "gateway.schemas.answers"}
    if function == "web":
        forbidden |= {"gateway.chat", "gateway.keys", "gateway.usage", "gateway.admin"}
    else:
        forbidden |= {"gateway.openapi", "gateway.assets"}
    assert not loaded & forbidden
