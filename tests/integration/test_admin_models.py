"""Models of the catalogue: found, changed, hidden, and sold by one more provider."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from tests.fixtures.management import Management, assert_error, management

__all__ = ["management"]


async def test_a_model_is_read_as_it_is_listed(management: Management) -> None:
    made = await management.model()
    assert await management.ok("GET", f"/admin/models/{made['id']}") == made


@pytest.mark.parametrize("what", ["name", "display_name", "upstream_model"])
async def test_a_search_finds_by_any_name_in_any_case(management: Management, what: str) -> None:
    word = f"Zz{uuid.uuid4().hex[:8]}"
    names = {"name": uuid.uuid4().hex, "display_name": "A name", "upstream_model": "there"}
    names[what] = f"x-{word}-y"
    upstream = names.pop("upstream_model")
    body = {**names, "offers": [{"provider": "openai-compatible", "upstream_model": upstream}]}
    made = await management.ok("POST", "/admin/models", body, status=201)
    found = await management.ok("GET", f"/admin/models?q={word.upper()}")
    assert [row["id"] for row in found["data"]] == [made["id"]]
    assert (await management.ok("GET", f"/admin/models?q={word}&active=false"))["data"] == []


async def test_a_patch_changes_what_it_names(management: Management) -> None:
    made = await management.model()
    changes = {
        "display_name": "Ours",
        "context_length": 64000,
        "max_output_tokens": 2048,
        "input_modalities": ["text", "image"],
        "output_modalities": ["text", "audio"],
    }
    told = await management.ok("PATCH", f"/admin/models/{made['id']}", changes)
    assert told == {**made, **changes}
    told = await management.ok(
        "PATCH", f"/admin/models/{made['id']}", {"display_name": None, "context_length": None}
    )
    assert told == {**made, **changes, "display_name": None, "context_length": None}
    assert await management.ok("PATCH", f"/admin/models/{made['id']}", {}) == told
    actor = management.value(
        "select actor from gateway.audit_log where entity = 'models' order by id desc limit 1"
    )
    assert actor == f"key {management.admin_key[:9]}…"


async def test_a_model_that_is_not_active_is_hidden_and_shown_again(management: Management) -> None:
    made = await management.model()
    service = {
        "name": f"of {made['name']}",
        "provider": "openai-compatible",
        "base_url": "https://8.8.8.8/v1",
        "enabled_models": [made["name"]],
    }
    await management.ok("POST", "/admin/services", service, status=201)
    key = management.customer().key

    async def shown() -> bool:
        models = await management.ok("GET", "/models/simple")
        return made["name"] in models["models"]

    assert await shown()
    told = await management.ok("PATCH", f"/admin/models/{made['id']}", {"active": False})
    assert told["active"] is False
    assert not await shown()
    refused = management.value(
        "select api.admit_request(p_key_hash => encode(sha256(%s), 'hex'), p_request_id => %s,"
        " p_models => array[%s], p_endpoint => 'chat.completions', p_lease_seconds => 60,"
        " p_input_tokens_bound => 1) ->> 'refusal'",
        key.encode(),
        f"req_{uuid.uuid4().hex}",
        made["name"],
    )
    assert refused == "model_not_found"
    await management.ok("PATCH", f"/admin/models/{made['id']}", {"active": True})
    assert await shown()


async def test_an_offer_is_added_and_another_keeps_its_versions(management: Management) -> None:
    made = await management.model()
    path = f"/admin/models/{made['id']}"
    offers: list[dict[str, Any]] = [
        {"provider": "openrouter", "upstream_model": "vendor/ours", "prices": {"input": "3", "output": "9"}},
        {"provider": "openai-compatible", "prices": {"input": "2.5", "output": "8"}},
    ]
    told = await management.ok("PATCH", path, {"offers": offers})
    by_provider = {offer["provider"]: offer for offer in told["offers"]}
    assert by_provider["openrouter"]["upstream_model"] == "vendor/ours"
    assert by_provider["openrouter"]["prices"]["input"] == "3"
    kept = by_provider["openai-compatible"]
    assert (kept["id"], kept["upstream_model"]) == (made["offers"][0]["id"], made["name"])
    assert kept["prices"]["input"] == "2.5"
    versions = await management.ok("GET", f"/admin/prices?model={made['name']}")
    inputs = [row["input"] for row in versions["data"] if row["provider"] == "openai-compatible"]
    assert inputs == ["2.5", "2"]

    renamed = [{"provider": "openai-compatible", "upstream_model": "renamed"}]
    told = await management.ok("PATCH", path, {"offers": renamed})
    kept = next(offer for offer in told["offers"] if offer["provider"] == "openai-compatible")
    assert (kept["upstream_model"], kept["prices"]["input"]) == ("renamed", "2.5")
    assert len(told["offers"]) == 2


async def test_of_two_changes_at_once_none_is_lost(management: Management) -> None:
    made = await management.model()
    path = f"/admin/models/{made['id']}"
    prices = {"input": "1", "output": "1"}
    bodies: list[dict[str, Any]] = [
        {"offers": [{"provider": provider, "prices": prices} for provider in order]}
        for order in (["groq", "openai", "xai"], ["xai", "openai", "groq"])
    ]
    bodies += [{"display_name": "Both"}, {"context_length": 77}]
    answers = await asyncio.gather(*(management.admin("PATCH", path, body) for body in bodies * 3))
    assert {answer.status_code for answer in answers} == {200}
    told = await management.ok("GET", path)
    assert (told["display_name"], told["context_length"]) == ("Both", 77)
    assert {offer["provider"] for offer in told["offers"]} == {"openai-compatible", "groq", "openai", "xai"}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"name": "other"}, "name"),
        ({"active": None}, "active"),
        ({"context_length": 0}, "context_length"),
        ({"context_length": "5"}, "context_length"),
        ({"input_modalities": []}, "input_modalities"),
        ({"input_modalities": ["smell"]}, "input_modalities.0"),
        ({"output_modalities": None}, "output_modalities"),
        ({"offers": None}, "offers"),
        ({"offers": [{"provider": "nobody"}]}, "offers.0.provider"),
        ({"offers": [{"provider": "groq"}, {"provider": "groq"}]}, "offers"),
        (
            {"offers": [{"provider": "groq", "prices": {"input": "-1", "output": "1"}}]},
            "offers.0.prices.input",
        ),
    ],
)
async def test_bad_change_is_422_and_changes_nothing(
    management: Management, changes: dict[str, Any], param: str
) -> None:
    made = await management.model()
    path = f"/admin/models/{made['id']}"
    body = {"display_name": "Changed", **changes}
    assert_error(await management.admin("PATCH", path, body), 422, param=param)
    assert await management.ok("GET", path) == made


@pytest.mark.parametrize("model", ["999999", "0", "x"])
async def test_unknown_model_is_404(management: Management, model: str) -> None:
    assert_error(
        await management.admin("GET", f"/admin/models/{model}"),
        404,
        "model_not_found" if model != "x" else None,
    )
    assert_error(await management.admin("PATCH", f"/admin/models/{model}", {"active": False}), 404)


async def test_a_model_is_hidden_not_deleted(management: Management) -> None:
    made = await management.model()
    assert_error(await management.admin("DELETE", f"/admin/models/{made['id']}"), 405)


@pytest.mark.parametrize(("query", "param"), [("active=no", "active"), ("q=", "q"), ("name=x", "name")])
async def test_bad_query_is_422_and_named(management: Management, query: str, param: str) -> None:
    assert_error(await management.admin("GET", f"/admin/models?{query}"), 422, param=param)
