"""The catalogue, prices by their day, the settings, and the proof of the books."""

from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from gateway import webhook_endpoint
from tests.fixtures.management import MASTER_KEYS, Management, assert_error, management

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["management"]

SETTINGS = {
    "commission_percent": "5",
    "billing_mode": "markup",
    "flat_usd_per_1k_tokens": "0.02",
    "credit_value_usd": "0.00002",
    "default_max_output_tokens": 8192,
    "default_requests_per_minute": 60,
    "default_tokens_per_minute": None,
    "expired_hold_policy": "release",
    "auth_sign_up": "link",
    "webhook_url": None,
    "unsupported_parameters": "refuse",
    "webhook_secret_set": False,
    "log_retention_months": None,
    "usage_detail_days": 93,
    "top_up_amounts_usd": ["10", "25", "50", "100"],
    "top_up_minimum_usd": "5",
    "top_up_maximum_usd": "1000",
    "low_balance_usd": "1",
}
SETTINGS_COLUMNS = [name.removesuffix("_set") for name in SETTINGS]
# By number, so that no test asks a resolver.
HOOK = "https://8.8.8.8"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()


async def test_model_is_added_with_its_offers_and_prices(management: Management) -> None:
    body = {
        "name": "maker/model-1:free",
        "display_name": "Model 1",
        "context_length": 128000,
        "max_output_tokens": 4096,
        "input_modalities": ["text", "image"],
        "offers": [
            {"provider": "Grok", "upstream_model": "model-1"},
            {
                "provider": "openai",
                "prices": {
                    "input": "0.15",
                    "output": 0.6,
                    "cached_input": 0.075,
                    "per_request": 1e-10,
                    "source": "https://example.org/prices",
                    "source_date": "2026-11-01",
                },
            },
        ],
    }
    made = await management.ok("POST", "/admin/models", body, status=201)
    assert set(made) == {
        "id",
        "name",
        "display_name",
        "context_length",
        "max_output_tokens",
        "input_modalities",
        "output_modalities",
        "active",
        "created_at",
        "offers",
    }
    assert made["input_modalities"] == ["text", "image"]
    assert made["output_modalities"] == ["text"]
    openai, xai = made["offers"]
    assert (openai["provider"], openai["upstream_model"]) == ("openai", "maker/model-1:free")
    assert (xai["provider"], xai["upstream_model"], xai["prices"]) == ("xai", "model-1", None)
    prices = openai["prices"]
    assert {name: prices[name] for name in ("input", "output", "cached_input", "per_request")} == {
        "input": "0.15",
        "output": "0.6",
        "cached_input": "0.075",
        "per_request": "0.0000000001",
    }
    assert (prices["source"], prices["source_date"]) == ("https://example.org/prices", "2026-11-01")
    assert "per_image" not in prices
    listed = await management.ok("GET", f"/admin/models?cursor={made['id'] - 1}")
    assert listed == {"data": [made], "next_cursor": None}
    assert_error(await management.admin("POST", "/admin/models", body), 409, "name_taken", "name")


OFFER = {"provider": "openai", "prices": {"input": "1", "output": "1"}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "-x"}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "x\n"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "x", "context_length": 0}, "context_length"),
        ({"name": "x", "context_length": "4096"}, "context_length"),
        ({"name": "x", "max_output_tokens": 10**9}, "max_output_tokens"),
        ({"name": "x", "input_modalities": []}, "input_modalities"),
        ({"name": "x", "input_modalities": ["smell"]}, "input_modalities.0"),
        ({"name": "x", "offers": [{"provider": "nobody"}]}, "offers.0.provider"),
        ({"name": "x", "offers": [OFFER, {**OFFER, "provider": "OpenAI"}]}, "offers"),
        ({"name": "x", "offers": [{"provider": "openai", "prices": {"input": 1}}]}, "offers.0.prices.output"),
        ({"name": "x", "offers": [{**OFFER, "upstream_model": "y" * 301}]}, "offers.0.upstream_model"),
        (
            {"name": "x", "offers": [{"provider": "openai", "prices": {"input": -1, "output": 1}}]},
            "offers.0.prices.input",
        ),
        (
            {"name": "x", "offers": [{"provider": "openai", "prices": {"input": 1, "output": 1, "tea": 1}}]},
            "offers.0.prices.tea",
        ),
        ({"name": "x", "price": 1}, "price"),
    ],
)
async def test_bad_model_is_422_and_makes_nothing(
    management: Management, body: dict[str, Any], param: str
) -> None:
    before = management.value("select count(*) from gateway.models")
    assert_error(await management.admin("POST", "/admin/models", body), 422, param=param)
    assert management.value("select count(*) from gateway.models") == before


async def test_a_changed_price_is_a_new_version(management: Management) -> None:
    model = await management.model()
    body = {"model": model["name"], "provider": "openai-compatible", "input": "2.5", "output": 10.1}
    made = await management.ok("POST", "/admin/prices", body, status=201)
    assert set(made) == {
        "id",
        "model",
        "provider",
        "service_id",
        "effective_from",
        "input",
        "output",
        "source",
        "source_date",
    }
    assert (made["input"], made["output"], made["service_id"]) == ("2.5", "10.1", None)
    later = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    body |= {"output": "11", "effective_from": later.isoformat()}
    future = await management.ok("POST", "/admin/prices", body, status=201)
    assert datetime.fromisoformat(future["effective_from"]) == later
    listed = await management.ok("GET", f"/admin/prices?model={model['name']}&limit=2")
    assert listed["data"] == [future, made]
    oldest = await management.ok(
        "GET", f"/admin/prices?model={model['name']}&limit=2&cursor={listed['next_cursor']}"
    )
    assert [row["output"] for row in oldest["data"]] == ["8"]
    assert oldest["next_cursor"] is None
    # What is in force is what was set now, not what is to come.
    shown = await management.ok("GET", f"/admin/models?cursor={model['id'] - 1}&limit=1")
    assert shown["data"][0]["offers"][0]["prices"]["output"] == "10.1"
    # The same moment twice would be two prices for one request.
    assert_error(await management.admin("POST", "/admin/prices", body), 409, "conflict")


TIERS = [
    {"above_input_tokens": 200_000, "input": "4", "cached_input": "0.4", "output": "12"},
    {"above_input_tokens": 400_000, "input": "5", "cached_input": "0.5", "output": "20"},
]


async def test_prices_go_by_the_length_of_the_prompt(management: Management) -> None:
    prices: dict[str, Any] = {
        "input": 2,
        "cached_input": "0.2",
        "output": 8,
        "tiers": [*reversed(TIERS)],
    }
    body: dict[str, Any] = {
        "name": f"tiered-{uuid.uuid4().hex}",
        "offers": [{"provider": "openai", "prices": prices}],
    }
    made = await management.ok("POST", "/admin/models", body, status=201)
    assert made["offers"][0]["prices"]["tiers"] == TIERS
    assert await management.ok("GET", f"/admin/models/{made['id']}") == made
    versions = await management.ok("GET", f"/admin/prices?model={made['name']}")
    assert versions["data"][0]["tiers"] == TIERS

    offers = [{"provider": "openai", "prices": prices | {"tiers": TIERS[:1]}}]
    told = await management.ok("PATCH", f"/admin/models/{made['id']}", {"offers": offers})
    assert told["offers"][0]["prices"]["tiers"] == TIERS[:1]
    body = {"model": made["name"], "provider": "openai", "input": 2, "output": 8, "tiers": []}
    assert "tiers" not in await management.ok("POST", "/admin/prices", body, status=201)
    body["tiers"] = [{"above_input_tokens": 1, "input": "0.0000000001", "output": 1e9}]
    (tier,) = (await management.ok("POST", "/admin/prices", body, status=201))["tiers"]
    assert tier == {"above_input_tokens": 1, "input": "0.0000000001", "output": "1000000000"}


@pytest.mark.parametrize(
    ("tiers", "param"),
    [
        ("long", "tiers"),
        ([7], "tiers.0"),
        ([{**TIERS[0], "above_input_tokens": 0}], "tiers.0.above_input_tokens"),
        ([{**TIERS[0], "above_input_tokens": "200000"}], "tiers.0.above_input_tokens"),
        ([{**TIERS[0], "above_input_tokens": 1.5}], "tiers.0.above_input_tokens"),
        ([{**TIERS[0], "above_input_tokens": 10**9}], "tiers.0.above_input_tokens"),
        ([{"input": 1, "output": 1}], "tiers.0.above_input_tokens"),
        ([{"above_input_tokens": 5, "cached_input": 1, "output": 1}], "tiers.0.input"),
        ([TIERS[0], {**TIERS[1], "output": -1}], "tiers.1.output"),
        ([{**TIERS[0], "per_request": 1}], "tiers.0.per_request"),
        # the classes of the price, all of them and no other
        ([{"above_input_tokens": 5, "input": 1, "output": 1}], "tiers"),
        ([{**TIERS[0], "cache_write": 1}], "tiers"),
        ([*TIERS, {**TIERS[1], "above_input_tokens": 200_000}], "tiers"),
        ([{**TIERS[0], "above_input_tokens": number} for number in range(1, 18)], "tiers"),
    ],
)
async def test_a_tier_that_makes_no_sense_is_refused_by_name(
    management: Management, tiers: Any, param: str
) -> None:
    model = await management.model()
    prices = {"input": 2, "cached_input": "0.2", "output": 8, "tiers": tiers}
    before = management.value("select count(*) from gateway.prices")
    body: dict[str, Any] = {"model": model["name"], "provider": "openai-compatible", **prices}
    assert_error(await management.admin("POST", "/admin/prices", body), 422, param=param)
    body = {"offers": [{"provider": "openai-compatible", "prices": prices}]}
    answer = await management.admin("PATCH", f"/admin/models/{model['id']}", body)
    assert_error(answer, 422, param=f"offers.0.prices.{param}")
    assert management.value("select count(*) from gateway.prices") == before


async def test_price_makes_an_offer_where_it_names_the_upstream_model(management: Management) -> None:
    model = await management.model()
    body = {"model": model["name"], "provider": "mistral", "input": 1, "output": 2}
    assert_error(await management.admin("POST", "/admin/prices", body), 404, "offer_not_found", "provider")
    body["upstream_model"] = "mistral-model"
    assert (await management.ok("POST", "/admin/prices", body, status=201))["provider"] == "mistral"


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"model": "no-such-model"}, 404, "model"),
        ({"service_id": 2**62}, 404, "service_id"),
        ({"provider": "nobody"}, 422, "provider"),
        ({"effective_from": "2020-01-01T00:00:00Z"}, 422, "effective_from"),
        ({"effective_from": "2999-01-01"}, 422, "effective_from"),
        ({"effective_from": "2999-02-30T00:00:00Z"}, 422, "effective_from"),
        ({"input": None}, 422, "input"),
        ({"input": "free"}, 422, "input"),
        ({"input": "0.00000000001"}, 422, "input"),
        ({"input": 1e10}, 422, "input"),
        ({"source": "s" * 501}, 422, "source"),
        ({"source_date": "yesterday"}, 422, "source_date"),
        ({"per_token": 1}, 422, "per_token"),
    ],
)
async def test_bad_price_is_refused(
    management: Management, changes: dict[str, Any], status: int, param: str
) -> None:
    model = await management.model()
    body = {"model": model["name"], "provider": "openai-compatible", "input": 1, "output": 2, **changes}
    before = management.value("select count(*) from gateway.prices")
    assert_error(await management.admin("POST", "/admin/prices", body), status, param=param)
    assert management.value("select count(*) from gateway.prices") == before


@pytest.fixture
def default_settings(management: Management) -> Iterator[None]:
    """The module's database is shared: what a test changes of the settings it puts back."""
    yield
    assignments = ", ".join(f"{name} = default" for name in SETTINGS_COLUMNS)
    management.connection.execute(f"update gateway.settings set {assignments}".encode())


@pytest.mark.usefixtures("default_settings")
async def test_settings_change_as_named(management: Management) -> None:
    assert await management.ok("GET", "/admin/settings") == SETTINGS
    changes = {
        "commission_percent": 7.25,
        "billing_mode": "flat",
        "flat_usd_per_1k_tokens": "0.0300000001",
        "credit_value_usd": 0.001,
        "default_max_output_tokens": 16,
        "default_requests_per_minute": None,
        "default_tokens_per_minute": 1000,
        "expired_hold_policy": "charge",
        "auth_sign_up": "create",
        "unsupported_parameters": "drop",
        "webhook_url": HOOK + "/events/?tenant=7",
        "webhook_secret": WEBHOOK_SECRET,
        "log_retention_months": 2,
        "usage_detail_days": None,
        "top_up_amounts_usd": ["0.75", 2000],
        "top_up_minimum_usd": "0.75",
        "top_up_maximum_usd": "2000.5",
        "low_balance_usd": "2.5",
    }
    expected = {
        **changes,
        "commission_percent": "7.25",
        "credit_value_usd": "0.001",
        "top_up_amounts_usd": ["0.75", "2000"],
        "webhook_secret_set": True,
    }
    del expected["webhook_secret"]
    assert await management.ok("PATCH", "/admin/settings", changes) == expected
    assert await management.ok("PATCH", "/admin/settings", {}) == expected
    assert await management.ok("GET", "/admin/settings") == expected
    one = await management.ok("PATCH", "/admin/settings", {"commission_percent": "0"})
    assert one == {**expected, "commission_percent": "0"}
    actor = management.value(
        "select actor from gateway.audit_log where entity = 'settings' order by id desc limit 1"
    )
    assert actor == f"key {management.admin_key[:9]}…"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("commission_percent", -1),
        ("commission_percent", 1000.1),
        ("commission_percent", "0.0000001"),
        ("commission_percent", None),
        ("billing_mode", "free"),
        ("unsupported_parameters", "ignore"),
        ("top_up_amounts_usd", []),
        ("top_up_amounts_usd", ["4.99"]),
        ("top_up_amounts_usd", ["10"] * 13),
        ("top_up_minimum_usd", "0.49"),
        ("top_up_minimum_usd", "1000000"),
        ("top_up_maximum_usd", None),
        ("top_up_maximum_usd", "NaN"),
        ("billing_mode", None),
        ("flat_usd_per_1k_tokens", -0.01),
        ("credit_value_usd", 0),
        ("credit_value_usd", "0"),
        ("default_max_output_tokens", 15),
        ("default_max_output_tokens", 10_000_001),
        ("default_max_output_tokens", 100.0),
        ("default_requests_per_minute", 0),
        ("default_tokens_per_minute", "10"),
        ("expired_hold_policy", "keep"),
        ("auth_sign_up", "open"),
        ("auth_sign_up", None),
        ("webhook_url", "https://user:pass@hooks.example/"),
        ("webhook_url", "https://hooks.example/#part"),
        ("webhook_url", "ftp://hooks.example/"),
        ("webhook_url", "https://hooks.example/?a=b c"),
        ("webhook_secret", "too-short"),
        ("webhook_secret", "whsec_" + "A" * 30),
        ("webhook_secret", "whsec_" + "not*base64" * 5),
        ("webhook_secret", "x" * 65),
        ("webhook_secret", "tabs\tin a secret of length"),
        ("log_retention_months", 1),
        ("log_retention_months", 2.0),
        ("usage_detail_days", 34),
        ("webhook_secret_set", True),
        ("singleton", False),
        ("comission_percent", 5),
    ],
)
async def test_bad_setting_is_422_and_named(management: Management, name: str, value: Any) -> None:
    body = {"default_max_output_tokens": 100, name: value}
    assert_error(await management.admin("PATCH", "/admin/settings", body), 422, param=name)
    assert await management.ok("GET", "/admin/settings") == SETTINGS


async def test_ledger_check_proves_the_books_and_finds_a_false_balance(management: Management) -> None:
    customer = management.customer("12.5")
    told = await management.ok("GET", "/admin/ledger/check")
    assert told["ok"] is True
    assert told["mismatches"] == []
    assert told["orphan_holds"] == 0
    assert told["accounts"] == management.value("select count(*) from gateway.accounts")
    with management.connection.transaction():
        management.query("select set_config('gateway.engine', 'on', true)")
        management.query(
            "update gateway.accounts set balance_usd = 13 where customer_id = %s returning 1", customer.id
        )
    told = await management.ok("GET", "/admin/ledger/check")
    assert told["ok"] is False
    assert told["mismatches"] == [
        {
            "customer_id": customer.id,
            "balance_usd": "13",
            "ledger_usd": "12.5",
            "held_usd": "0",
            "requests_held_usd": "0",
            "debt_usd": "0",
            "ledger_debt_usd": "0",
        }
    ]
    with management.connection.transaction():
        management.query("select set_config('gateway.engine', 'on', true)")
        management.query(
            "update gateway.accounts set balance_usd = %s where customer_id = %s returning 1",
            Decimal("12.5"),
            customer.id,
        )


@pytest.mark.usefixtures("default_settings")
async def test_webhook_secret_is_sealed_and_never_shown(management: Management) -> None:
    webhook = {"webhook_url": HOOK, "webhook_secret": WEBHOOK_SECRET}
    response = await management.admin("PATCH", "/admin/settings", webhook)
    assert WEBHOOK_SECRET not in response.text
    sealed = management.value("select webhook_secret from gateway.settings")
    assert sealed not in response.text
    audited = management.value(
        "select jsonb_agg(a)::text from gateway.audit_log as a where entity = 'settings'"
    )
    assert "(not shown)" in audited
    assert sealed not in audited
    assert WEBHOOK_SECRET not in audited
    opened = webhook_endpoint.open_secret(sealed, master_keys=MASTER_KEYS)
    assert opened == bytes(range(24))


@pytest.mark.usefixtures("default_settings")
async def test_a_webhook_is_never_unsigned(management: Management) -> None:
    url = {"webhook_url": HOOK}
    assert_error(await management.admin("PATCH", "/admin/settings", url), 422, param="webhook_secret")
    await management.ok("PATCH", "/admin/settings", {**url, "webhook_secret": WEBHOOK_SECRET})
    without = {"webhook_secret": None}
    assert_error(await management.admin("PATCH", "/admin/settings", without), 422, param="webhook_secret")
    cleared = await management.ok("PATCH", "/admin/settings", {"webhook_url": None, "webhook_secret": None})
    assert cleared == SETTINGS


async def test_by_hand_a_webhook_secret_is_never_plain_text(management: Management) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        management.connection.execute(
            "update gateway.settings set webhook_secret = 'plain text of an operator'"
        )
