"""The dashboard in an operator's hands: customers, services, prices, settings, the books; and in nobody else's.

With SLUICE_PICTURES the pictures of the views are kept in that folder.
"""

from __future__ import annotations

import gzip
import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from gateway import assets, auth
from tests.fixtures.browser import Dashboard, browser, dashboard
from tests.fixtures.dashboard import Demo, seed
from tests.fixtures.gateway import Customer, RunningGateway, gateway, module_gateway

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

__all__ = ["browser", "dashboard", "gateway", "module_gateway"]

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
VIEWS = (
    "overview",
    "customers",
    "requests",
    "services",
    "models",
    "payments",
    "events",
    "ledger",
    "settings",
    "audit",
)
PICTURES = os.environ.get("SLUICE_PICTURES")
MAX_SCRIPT_BYTES = 150_000
HOSTILE = "<img src=x onerror=window.hacked=1>"
MODEL = "gpt-4o-mini"
FAILING = "test/failing"

# The view that is left is marked: the next one's module may have to come first.
_GO = """(hash) => {
  document.querySelector("main > .view")?.setAttribute("data-left", "");
  location.hash = hash;
}"""


@dataclass(frozen=True, slots=True)
class World:
    """What an operator looks after: a month of calls, a failing provider, a customer with a hostile name."""

    demo: Demo
    hostile: Customer
    failing_service: int
    admin_key: str


@pytest.fixture(scope="module")
def world(module_gateway: RunningGateway) -> World:
    gateway = module_gateway
    demo = seed(gateway, calls=160)
    hostile = gateway.customer("7", p_scopes=["chat", "usage", "keys", "billing"])
    gateway.connection.execute(
        "update gateway.customers set name = %s, company = %s where id = %s", [HOSTILE, HOSTILE, hostile.id]
    )
    gateway.call(
        "create_price",
        p_model=MODEL,
        p_provider="openai-compatible",
        p_prices={
            "input": "0.12",
            "output": "0.48",
            "tiers": [{"above_input_tokens": 200_000, "input": "0.24", "output": "0.96"}],
        },
        p_effective_from=datetime.now(UTC) + timedelta(days=9),
    )
    failing = fail(gateway)
    for kind, subject in (
        ("limit.soft_crossed", "key:1"),
        ("provider.cost_differs", f"service:{failing}"),
        ("ledger.mismatch", HOSTILE),
    ):
        gateway.connection.execute(
            "select gateway.raise_event(%s, %s, jsonb_build_object('name', %s::text))",
            [kind, subject, HOSTILE],
        )
    return World(demo, hostile, failing, gateway.admin_key())


def fail(gateway: RunningGateway) -> int:
    """A service that has failed so often that it is set aside; its id."""
    gateway.model("status-500", name=FAILING)
    row = gateway.connection.execute(
        "select s.id from gateway.services as s where s.name = (select max(name) from gateway.services)"
    ).fetchone()
    caller = gateway.customer("1")
    body = {"model": FAILING, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    for _ in range(3):
        assert gateway.http(caller).post("/v1/chat/completions", json=body).status_code == 502
    found = gateway.connection.execute(
        "select service_id from gateway.service_health where set_aside_until > now()"
    ).fetchone()
    assert found is not None, row
    return int(found[0])


def picture(dashboard: Dashboard, view: str, size: str, scheme: str) -> None:
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        dashboard.page.screenshot(
            path=f"{PICTURES}/admin-{view}-{size}-{scheme}.png", full_page=size == "desktop"
        )


def go(dashboard: Dashboard, place: str) -> Page:
    """To a place below #/admin/, which may have a query."""
    page = dashboard.page
    page.evaluate(_GO, f"#/admin/{place}")
    expect(page.locator("main > .view:not([data-left]) > *").first).to_be_attached()
    dashboard.settle()
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_every_view(dashboard: Dashboard, world: World, scheme: str, size: str) -> None:
    page = dashboard.open(*SIZES[size], scheme=scheme)
    page.goto(dashboard.url)
    dashboard.sign_in(world.admin_key)
    model = world_model(page, dashboard, world)
    places = {
        **{view: view for view in VIEWS},
        "customer": f"customers?id={world.demo.customer.id}",
        "service": f"services?id={world.failing_service}",
        "model": f"models?id={model}",
        "hostile": f"customers?id={world.hostile.id}",
    }
    for name, place in places.items():
        go(dashboard, place)
        picture(dashboard, name, size, scheme)
        assert dashboard.barriers() == [], name
        assert dashboard.overflow() == 0, name
        assert page.evaluate("() => window.hacked") is None, name
    assert dashboard.layout_shift() < 0.01
    assert dashboard.faults == []


def world_model(page: Page, dashboard: Dashboard, world: World) -> int:
    told = page.request.get(
        f"{dashboard.origin}/admin/models?q={MODEL}&limit=1",
        headers={"authorization": f"Bearer {world.admin_key}"},
    ).json()
    return int(told["data"][0]["id"])
