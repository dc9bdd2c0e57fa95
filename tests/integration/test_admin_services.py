"""Services: a provider key comes in and never goes out, least of all to a stranger."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway import admin
from gateway.http import create_app
from gateway.runtime.process import Process
from gateway.service_keys import open_sealed
from tests.fixtures.management import (
    MASTER_KEYS,
    URL,
    Management,
    assert_error,
    management,
    settings,
)

if TYPE_CHECKING:
    from pathlib import Path

    from infra.local.postgrest import PostgRest

__all__ = ["management"]

SHOWN = {
    "id",
    "name",
    "provider",
    "base_url",
    "provider_key_set",
    "provider_key_last4",
    "enabled_models",
    "routes",
    "health",
    "limits",
    "priority",
    "active",
    "created_at",
}
SECRET = "provider-secret-0123456789-abcd"
# Addresses by number, so that no test asks a resolver.
HERE = "https://8.8.8.8/v1"
THERE = "https://1.1.1.1/v1"


def opened(management: Management, service_id: int, *, provider: str, base_url: str) -> str:
    """The provider key as the chat path opens it."""
    sealed = management.value("select provider_key from gateway.services where id = %s", service_id)
    assert sealed.startswith("v1.second.")
    return open_sealed(
        sealed, master_keys=MASTER_KEYS, service_id=service_id, provider=provider, base_url=base_url
    )


async def new_service(management: Management, **fields: Any) -> dict[str, Any]:
    number = management.value("select count(*) from gateway.services")
    body = {
        "name": f"service {number}",
        "provider": "openai-compatible",
        "base_url": HERE,
        "provider_key": SECRET,
        **fields,
    }
    made: dict[str, Any] = await management.ok("POST", "/admin/services", body, status=201)
    return made


async def test_service_is_added_read_listed_and_deleted(management: Management) -> None:
    model = await management.model()
    made = await new_service(
        management,
        name="mine",
        base_url="HTTPS://8.8.8.8:443/v1/",
        enabled_models=[model["name"]],
        priority=5,
        limits={"requests_per_minute": 10, "spend_usd_per_day": "2.5"},
    )
    assert set(made) == SHOWN
    assert made["name"] == "mine"
    assert made["provider"] == "openai-compatible"
    assert made["base_url"] == HERE
    assert made["provider_key_set"] is True
    assert made["provider_key_last4"] == "abcd"
    assert made["enabled_models"] == [model["name"]]
    assert made["limits"] == {"requests_per_minute": 10, "spend_usd_per_day": "2.5"}
    assert (made["priority"], made["active"]) == (5, True)
    assert opened(management, made["id"], provider="openai-compatible", base_url=HERE) == SECRET
    path = f"/admin/services/{made['id']}"
    assert await management.ok("GET", path) == made
    listed = await management.ok("GET", f"/admin/services?cursor={made['id'] - 1}")
    assert listed == {"data": [made], "next_cursor": None}
    assert await management.ok("DELETE", path) == {"id": made["id"], "deleted": True}
    for method in ("GET", "DELETE"):
        assert_error(await management.admin(method, path), 404, "service_not_found")
    assert_error(await management.admin("PATCH", path, {"active": True}), 404, "service_not_found")
    assert management.value("select provider_key from gateway.services where id = %s", made["id"]) is None


async def test_provider_key_is_in_no_answer_no_audit_row_and_no_log(management: Management) -> None:
    other = "another-secret-9876543210-wxyz"
    made = await new_service(management)
    path = f"/admin/services/{made['id']}"
    answers = [
        await management.admin("GET", path),
        await management.admin("PATCH", path, {"provider_key": other}),
        await management.admin("GET", "/admin/services?limit=200"),
        # Refused ones as well.
        await management.admin("POST", "/admin/services", {"name": 1, "provider_key": other}),
        await management.admin(
            "POST", "/admin/services", {"name": "x", "provider": other, "provider_key": other}
        ),
        await management.admin("PATCH", path, {"provider_key": [other]}),
        await management.admin("PATCH", path, {"provider_key": f"{other}\n"}),
        await management.admin(
            "PATCH", path, {"provider_key": other, "base_url": f"https://u:{other}@8.8.8.8/"}
        ),
    ]
    told = json.dumps(made) + "".join(answer.text for answer in answers[:4] + answers[5:])
    sealed = management.value("select provider_key from gateway.services where id = %s", made["id"])
    books = management.value("select string_agg(a::text, '') from gateway.audit_log as a")
    for secret in (SECRET, other, sealed):
        assert secret not in told
        assert secret not in books
        assert secret not in management.log.text
    assert opened(management, made["id"], provider="openai-compatible", base_url=HERE) == other
    assert (await management.ok("GET", path))["provider_key_last4"] == "wxyz"
    assert "(not shown)" in books


async def test_of_a_short_key_nothing_is_shown(management: Management) -> None:
    made = await new_service(management, provider_key="short-key")
    assert (made["provider_key_set"], made["provider_key_last4"]) == (True, None)


async def test_another_origin_demands_the_key_anew(management: Management) -> None:
    made = await new_service(management)
    path = f"/admin/services/{made['id']}"
    for stranger in (THERE, "https://8.8.8.8:8443/v1"):
        refused = await management.admin("PATCH", path, {"base_url": stranger, "name": "moved"})
        assert_error(refused, 422, "provider_key_required", "provider_key")
    assert await management.ok("GET", path) == made
    # Another path of the same origin is no other place.
    told = await management.ok("PATCH", path, {"base_url": "https://8.8.8.8/v2"})
    assert told["base_url"] == "https://8.8.8.8/v2"
    assert opened(management, made["id"], provider="openai-compatible", base_url=told["base_url"]) == SECRET
    told = await management.ok("PATCH", path, {"base_url": THERE, "provider_key": "the-new-key-0000"})
    assert told["base_url"] == THERE
    assert opened(management, made["id"], provider="openai-compatible", base_url=THERE) == "the-new-key-0000"
    # A service without a key has none to lose.
    told = await management.ok("PATCH", path, {"provider_key": None})
    assert (told["provider_key_set"], told["provider_key_last4"]) == (False, None)
    assert (await management.ok("PATCH", path, {"base_url": HERE}))["base_url"] == HERE


async def test_provider_with_an_address_of_its_own_needs_no_base_url(management: Management) -> None:
    made = await new_service(management, provider="TogetherAI", base_url=None)
    assert (made["provider"], made["base_url"]) == ("together", None)
    assert (
        opened(management, made["id"], provider="together", base_url="https://api.together.xyz/v1") == SECRET
    )
    path = f"/admin/services/{made['id']}"
    refused = await management.admin("PATCH", path, {"base_url": HERE})
    assert_error(refused, 422, "provider_key_required", "provider_key")
    await management.ok("PATCH", path, {"base_url": HERE, "provider_key": SECRET})
    # And back: the provider's own address is another origin, too.
    assert_error(await management.admin("PATCH", path, {"base_url": None}), 422, "provider_key_required")
    told = await management.ok("PATCH", path, {"base_url": None, "provider_key": SECRET})
    assert told["base_url"] is None
    assert (
        opened(management, made["id"], provider="together", base_url="https://api.together.xyz/v1") == SECRET
    )
    assert_error(await management.admin("PATCH", path, {"provider_key": None}), 422, "provider_key_required")


async def test_patch_changes_what_it_names_alone(management: Management) -> None:
    first, second = [(await management.model())["name"] for _ in range(2)]
    made = await new_service(management, enabled_models=[first], limits={"tokens_per_day": 5})
    path = f"/admin/services/{made['id']}"
    sealed = management.value("select provider_key from gateway.services where id = %s", made["id"])
    told = await management.ok("PATCH", path, {"active": False, "priority": -1, "enabled_models": [second]})
    routes = {shown["model"]: shown["active"] for shown in told.pop("routes")}
    assert routes == {first: False, second: True}
    del made["routes"]
    assert told == {**made, "active": False, "priority": -1, "enabled_models": [second]}
    told = await management.ok("PATCH", path, {"limits": {"tokens_per_day": None, "tokens_per_hour": 3}})
    assert told["limits"] == {"tokens_per_hour": 3}
    assert await management.ok("PATCH", path, {}) == told
    assert management.value("select provider_key from gateway.services where id = %s", made["id"]) == sealed


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"active": None}, "active"),
        ({"active": "yes"}, "active"),
        ({"priority": None}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"enabled_models": None}, "enabled_models"),
        ({"enabled_models": ["no-such-model"]}, "enabled_models"),
        ({"limits": None}, "limits"),
        ({"limits": {"x": 1}}, "limits"),
        ({"provider_key": ""}, "provider_key"),
        ({"provider_key": "two words"}, "provider_key"),
        ({"provider_key": "ключ"}, "provider_key"),
        ({"provider_key": "k" * 4001}, "provider_key"),
        ({"base_url": None}, "base_url"),
        ({"provider": "openai"}, "provider"),
        ({"id": 1}, "id"),
    ],
)
async def test_bad_change_is_422_and_changes_nothing(
    management: Management, changes: dict[str, Any], param: str
) -> None:
    made = await new_service(management)
    path = f"/admin/services/{made['id']}"
    assert_error(await management.admin("PATCH", path, changes), 422, param=param)
    assert await management.ok("GET", path) == made


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8/v1",
        "https://127.0.0.1/v1",
        "https://169.254.169.254/latest",
        "https://[::1]/v1",
        "https://[::ffff:10.0.0.1]/",
        "https://2130706433/",
        "https://localhost/v1",
        "https://metadata.google.internal/",
        "https://user:password@8.8.8.8/",
        "https://8.8.8.8/?to=1",
        "ftp://8.8.8.8/",
        "8.8.8.8",
        "https://8.8.8.8/" + "a" * 512,
    ],
)
async def test_base_url_that_leads_inside_is_refused(management: Management, url: str) -> None:
    body = {"name": "inside", "provider": "openai-compatible", "base_url": url, "provider_key": SECRET}
    assert_error(await management.admin("POST", "/admin/services", body), 422, param="base_url")
    made = await new_service(management)
    changes = {"base_url": url, "provider_key": SECRET}
    refused = await management.admin("PATCH", f"/admin/services/{made['id']}", changes)
    assert_error(refused, 422, param="base_url")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, "name"),
        ({"name": "x", "provider": "nobody"}, 422, "provider"),
        ({"name": "x", "provider": "openai-compatible"}, 422, "base_url"),
        ({"name": "x", "provider": "openai"}, 422, "provider_key"),
        # A provider whose own address is this machine.
        ({"name": "x", "provider": "ollama"}, 422, "base_url"),
        (
            {"name": "x", "provider": "openai", "provider_key": SECRET, "enabled_models": ["no"]},
            422,
            "enabled_models",
        ),
        (
            {"name": "x", "provider": "openai", "provider_key": SECRET, "enabled_models": [1]},
            422,
            "enabled_models.0",
        ),
        ({"name": "x", "provider": "openai", "provider_key": SECRET, "weight": 1}, 422, "weight"),
    ],
)
async def test_bad_service_is_422_and_makes_nothing(
    management: Management, body: dict[str, Any], status: int, param: str
) -> None:
    before = management.value("select count(*) from gateway.services")
    assert_error(await management.admin("POST", "/admin/services", body), status, param=param)
    assert management.value("select count(*) from gateway.services") == before


async def test_name_is_taken_once(management: Management) -> None:
    first, second = await new_service(management, name="the name"), await new_service(management)
    body = {"name": "the name", "provider": "openai", "provider_key": SECRET}
    assert_error(await management.admin("POST", "/admin/services", body), 409, "name_taken", "name")
    path = f"/admin/services/{second['id']}"
    assert_error(await management.admin("PATCH", path, {"name": "the name"}), 409, "name_taken", "name")
    await management.ok("DELETE", f"/admin/services/{first['id']}")
    assert (await management.ok("PATCH", path, {"name": "the name"}))["name"] == "the name"


async def test_service_that_studio_has_moved_does_not_give_its_key_away(management: Management) -> None:
    made = await new_service(management)
    management.query("update gateway.services set base_url = null where id = %s returning id", made["id"])
    refused = await management.admin("PATCH", f"/admin/services/{made['id']}", {"base_url": HERE})
    assert_error(refused, 422, "provider_key_required", "provider_key")


async def test_service_of_a_provider_that_is_no_longer_known_can_be_switched_off(
    management: Management,
) -> None:
    made = await new_service(management)
    management.query("update gateway.services set provider = 'gone' where id = %s returning id", made["id"])
    path = f"/admin/services/{made['id']}"
    assert (await management.ok("PATCH", path, {"active": False}))["active"] is False
    assert_error(
        await management.admin("PATCH", path, {"base_url": HERE}), 422, "unknown_provider", "provider"
    )


async def test_local_stack_may_call_itself(
    management: Management, module_postgrest: PostgRest, tmp_path: Path
) -> None:
    local = Process.start(
        settings(
            module_postgrest.url,
            module_postgrest.token("service_role"),
            tmp_path,
            allow_private_urls=True,
        )
    )
    transport = httpx.ASGITransport(create_app(admin.operations(local)))
    async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
        made = await client.post(
            "/admin/services",
            headers={"x-api-key": management.admin_key},
            json={"name": "simulator", "provider": "ollama"},
        )
    await local.aclose()
    assert made.status_code == 201
    assert made.json()["base_url"] is None


async def test_a_model_is_given_its_place_among_the_services(management: Management) -> None:
    first, second = (await management.model())["name"], (await management.model())["name"]
    made = await new_service(
        management, enabled_models=[first, {"model": second, "priority": 3, "weight": 2.5, "active": False}]
    )
    assert made["enabled_models"] == [first]
    routes = {shown["model"]: shown for shown in made["routes"]}
    assert [routes[second][name] for name in ("priority", "weight", "active")] == [3, 2.5, False]
    assert [routes[first][name] for name in ("priority", "weight", "active")] == [None, 1, True]
    changed = await management.ok(
        "PATCH", f"/admin/services/{made['id']}", {"enabled_models": [{"model": second, "weight": 7}]}
    )
    assert changed["enabled_models"] == [second]
    routes = {shown["model"]: shown for shown in changed["routes"]}
    assert [routes[second][name] for name in ("priority", "weight", "active")] == [3, 7, True]
    assert routes[first]["active"] is False


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"weight": 0}, "enabled_models.0.weight"),
        ({"weight": -1}, "enabled_models.0.weight"),
        ({"weight": "2"}, "enabled_models.0.weight"),
        ({"weight": 1.00001}, "enabled_models.0.weight"),
        ({"priority": 1.5}, "enabled_models.0.priority"),
        ({"prio": 1}, "enabled_models.0.prio"),
    ],
)
async def test_a_place_that_is_none_is_422(management: Management, said: dict[str, Any], param: str) -> None:
    model = (await management.model())["name"]
    body = {"name": "x", "provider": "openai-compatible", "enabled_models": [{"model": model, **said}]}
    assert_error(await management.admin("POST", "/admin/services", body), 422, param=param)


async def test_the_known_providers_are_those_that_a_service_can_be_made_of(management: Management) -> None:
    told = (await management.ok("GET", "/admin/providers"))["data"]
    known = {row["name"]: row for row in told}
    assert known["openai"] == {
        "name": "openai",
        "title": "OpenAI",
        "base_url": "https://api.openai.com/v1",
        "key_needed": True,
    }
    assert known["openai-compatible"]["base_url"] is None
    customer = management.customer()
    assert_error(await management.call("GET", "/admin/providers", customer.key), 403)
