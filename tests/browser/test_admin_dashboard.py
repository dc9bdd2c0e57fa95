"""The dashboard in an operator's hands, and its part that is in nobody else's.

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
MAX_SCRIPT_BYTES = 100_000
HOSTILE = "<img src=x onerror=window.hacked=1>"
MODEL = "gpt-4o-mini"
FAILING = "test/failing"

# The view that is left is marked: the next one's module may have to come first.
_GO = """(hash) => {
  if (location.hash === hash) return;
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
    demo = seed(gateway, calls=420 if PICTURES else 60)
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
    dashboard.shown()
    return page


# Each scheme and each size once, for the sake of time; for the pictures, all.
LOOKS = [
    ("desktop", "light"),
    ("phone", "dark"),
    *([("desktop", "dark"), ("phone", "light")] if PICTURES else []),
]


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_every_view(
    dashboard: Dashboard, gateway: RunningGateway, world: World, size: str, scheme: str
) -> None:
    """Whole, still, readable by everybody; and what anybody is called is text."""
    page = dashboard.open(*SIZES[size], scheme=scheme)
    page.goto(dashboard.url)
    dashboard.sign_in(world.admin_key)
    places = {
        **{view: view for view in VIEWS},
        "customer": f"customers?id={world.demo.customer.id}",
        "hostile": f"customers?id={world.hostile.id}",
        "service": f"services?id={world.failing_service}",
        "model": f"models?id={model_id(gateway, MODEL)}",
    }
    for name, place in places.items():
        go(dashboard, place)
        picture(dashboard, name, size, scheme)
        assert dashboard.barriers() == [], name
        assert dashboard.overflow() == 0, name
    assert page.evaluate("() => window.hacked") is None
    assert dashboard.layout_shift() < 0.01
    assert dashboard.faults == []


def model_id(gateway: RunningGateway, name: str) -> int:
    row = gateway.connection.execute("select id from gateway.models where name = %s", [name]).fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
def desk(dashboard: Dashboard, world: World) -> Page:
    """The dashboard of an operator who has signed in."""
    page = dashboard.open()
    page.goto(dashboard.url)
    dashboard.sign_in(world.admin_key)
    return page


def row(page: Page, name: str) -> Locator:
    return page.locator(".table tbody tr").filter(has_text=name)


def press(where: Page | Locator, name: str) -> None:
    where.get_by_role("button", name=name, exact=True).click()


def fill(dialog: Locator, **values: str) -> None:
    """By the name of the field, which is the API's."""
    for name, value in values.items():
        field = dialog.locator(f'[name="{name}"]')
        if field.evaluate("(node) => node.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)


def look(dashboard: Dashboard, name: str) -> None:
    """At a dialog: for barriers, and for its picture."""
    picture(dashboard, f"dialog-{name}", "desktop", "light")
    assert dashboard.barriers() == [], name


def call(gateway: RunningGateway, customer: Customer, model: str = MODEL) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    return gateway.http(customer).post("/v1/chat/completions", json=body).status_code


def test_a_request_among_all_says_whose_it_is(
    dashboard: Dashboard, gateway: RunningGateway, desk: Page
) -> None:
    customer = gateway.customer("3")
    assert call(gateway, customer) == 200
    go(dashboard, "requests")
    desk.locator(".table tbody tr").first.get_by_role("link", name=f"Customer {customer.id}").click()
    expect(desk.locator(".pairs")).to_contain_text(customer.username)


def test_a_suspended_customers_next_call_is_refused(
    dashboard: Dashboard, gateway: RunningGateway, desk: Page
) -> None:
    customer = gateway.customer("3")
    assert call(gateway, customer) == 200
    go(dashboard, "customers")
    desk.get_by_label("Search").fill(customer.username)
    expect(desk.locator(".table tbody tr")).to_have_count(1)
    row(desk, customer.username).get_by_role("button").click()
    press(desk, "Suspend")
    dialog = desk.get_by_role("dialog")
    expect(dialog).to_contain_text("Its next call is refused")
    press(dialog, "Cancel")
    assert call(gateway, customer) == 200
    press(desk, "Suspend")
    press(desk.get_by_role("dialog"), "Suspend")
    expect(desk.locator(".headline")).to_contain_text("suspended")
    assert call(gateway, customer) == 403
    press(desk, "Resume")
    press(desk.get_by_role("dialog"), "Resume")
    expect(desk.locator(".headline")).to_contain_text("active")
    assert call(gateway, customer) == 200
    assert dashboard.faults == []


def test_credits_under_one_reference_are_credited_once(
    dashboard: Dashboard, gateway: RunningGateway, desk: Page
) -> None:
    customer = gateway.customer(None)
    go(dashboard, f"customers?id={customer.id}")
    references = set()
    for told in ("$25.00 added", "was booked before"):
        press(desk, "Add credits")
        dialog = desk.get_by_role("dialog")
        references.add(dialog.locator('[name="reference"]').input_value())
        fill(dialog, usd="25", reference="invoice 7")
        look(dashboard, "credits")
        press(dialog, "Add credits")
        expect(desk.locator("#toasts")).to_contain_text(told)
        expect(desk.locator(".stat").first).to_contain_text("$25.00")
    assert gateway.balance(customer) == (Decimal(25), 0)
    # Made anew for each dialog, and once for each.
    assert len(references) == 2
    press(desk, "Add credits")
    dialog = desk.get_by_role("dialog")
    dashboard.expected |= {409, 422}
    fill(dialog, usd="30", reference="invoice 7")
    press(dialog, "Add credits")
    error = dialog.locator('[data-field="reference"] .error')
    expect(error).to_have_text("Another amount was booked under this reference.")
    fill(dialog, usd="a lot")
    press(dialog, "Add credits")
    expect(dialog.locator('[data-field="usd"] .error')).not_to_be_empty()
    expect(dialog.locator('[name="usd"]')).to_be_focused()
    assert gateway.balance(customer) == (Decimal(25), 0)
    assert dashboard.faults == []


def test_a_request_that_was_sent_twice_by_one_dialog_is_booked_once(
    dashboard: Dashboard, gateway: RunningGateway, desk: Page
) -> None:
    """The answer is lost on its way: the operator presses again."""
    customer = gateway.customer(None)
    go(dashboard, f"customers?id={customer.id}")
    lost: list[str] = []

    def lose(route: Any) -> None:
        if lost:
            route.continue_()
            return
        lost.append(str(route.fetch().status))
        route.abort()

    desk.route("**/admin/add_credits", lose)
    press(desk, "Add credits")
    dialog = desk.get_by_role("dialog")
    fill(dialog, usd="12.5")
    press(dialog, "Add credits")
    expect(dialog).to_contain_text("can't be reached")
    press(dialog, "Add credits")
    expect(desk.locator("#toasts")).to_contain_text("was booked before")
    assert lost == ["200"]
    assert gateway.balance(customer) == (Decimal("12.5"), 0)


def test_limits_are_set_and_one_is_hit(dashboard: Dashboard, gateway: RunningGateway, desk: Page) -> None:
    customer = gateway.customer("3")
    go(dashboard, f"customers?id={customer.id}")
    desk.locator(".headline + .actions").get_by_role("button", name="More about").click()
    desk.get_by_role("menuitem", name="Set limits").click()
    dialog = desk.get_by_role("dialog")
    dashboard.expected.add(422)
    fill(dialog, **{"rate_limits.requests_per_day": "-1"})
    press(dialog, "Set limits")
    expect(dialog.locator('[data-field="rate_limits.requests_per_day"] .error')).not_to_be_empty()
    look(dashboard, "limits")
    fill(dialog, **{"rate_limits.requests_per_day": "1"})
    press(dialog, "Set limits")
    expect(desk.locator(".meter")).to_contain_text("0 of 1")
    assert [call(gateway, customer), call(gateway, customer)] == [200, 429]
    assert dashboard.faults == []


def test_a_person_is_erased_only_by_its_name(
    dashboard: Dashboard, gateway: RunningGateway, desk: Page
) -> None:
    customer = gateway.customer("3")
    go(dashboard, f"customers?id={customer.id}")
    desk.locator(".headline + .actions").get_by_role("button", name="More about").click()
    desk.get_by_role("menuitem", name="Erase").click()
    dialog = desk.get_by_role("dialog")
    fill(dialog, typed="somebody else")
    press(dialog, "Erase for good")
    expect(dialog.locator('[data-field="typed"] .error')).not_to_be_empty()
    look(dashboard, "erase")
    assert call(gateway, customer) == 200
    fill(dialog, typed=customer.username)
    press(dialog, "Erase for good")
    expect(desk.locator(".headline")).to_contain_text("erased")
    assert call(gateway, customer) == 401
    assert dashboard.faults == []


def test_a_customer_is_added_and_its_dashboard_looked_at(dashboard: Dashboard, desk: Page) -> None:
    go(dashboard, "customers")
    press(desk, "New customer")
    dialog = desk.get_by_role("dialog")
    dashboard.expected.add(422)
    fill(dialog, name=HOSTILE, email="nobody")
    press(dialog, "Add customer")
    expect(dialog.locator('[data-field="email"] .error')).not_to_be_empty()
    fill(dialog, email="new@example.org")
    press(dialog, "Add customer")
    expect(desk.locator(".headline h2")).to_have_text(HOSTILE)
    press(desk, "Its dashboard")
    expect(desk.locator(".who")).to_have_text(HOSTILE)
    assert re.search(r"/dashboard/\d+#/overview$", desk.url)
    assert desk.evaluate("() => window.hacked") is None
    assert dashboard.faults == []


def test_a_service_is_added_tried_out_and_put_right(
    dashboard: Dashboard, gateway: RunningGateway, desk: Page
) -> None:
    simulator = gateway.simulator
    name = f"simulator {time.monotonic_ns()}"
    go(dashboard, "services")
    press(desk, "New service")
    dialog = desk.get_by_role("dialog")
    dashboard.expected |= {409, 422}
    fill(dialog, name=name, provider="openai-compatible", provider_key="a-wrong-key-of-nobody")
    press(dialog, "Add service")
    expect(dialog.locator('[data-field="base_url"] .error')).not_to_be_empty()
    fill(dialog, base_url=simulator.base_url, enabled_models="no-such-model")
    press(dialog, "Add service")
    expect(dialog.locator('[data-field="enabled_models"] .error')).to_contain_text("does not have")
    look(dashboard, "service")
    press(dialog, "All that the catalogue has from it")
    expect(dialog.locator('[name="enabled_models"]')).to_have_value(re.compile(MODEL))
    fill(dialog, enabled_models=f"{MODEL}\n{FAILING}")
    press(dialog, "Add service")
    expect(desk.locator(".headline h2")).to_have_text(name)

    press(desk, "Test")
    expect(dialog).to_contain_text("unauthorized")
    look(dashboard, "tested")
    press(dialog.locator("footer"), "Close")
    press(desk, "Change")
    field = dialog.locator('[name="provider_key"]')
    expect(field).to_have_value("")
    expect(dialog).to_contain_text("ends in body")
    fill(dialog, provider_key=simulator.key)
    press(dialog, "Save")
    expect(desk.locator(".pairs").first).to_contain_text(f"ends in {simulator.key[-4:]}")
    press(desk, "Test")
    expect(dialog).to_contain_text("It answers")
    press(dialog.locator("footer"), "Close")
    assert simulator.key not in desk.content()

    desk.locator(".headline + .actions").get_by_role("button", name="More about").click()
    desk.get_by_role("menuitem", name="Switch off").click()
    expect(dialog).to_contain_text("refused where there is none")
    press(dialog, "Switch off")
    expect(desk.locator(".headline")).to_contain_text("off")
    go(dashboard, "services")
    expect(row(desk, name).get_by_text("off", exact=True)).to_be_visible()
    assert dashboard.faults == []


@pytest.fixture
def still_aside(module_gateway: RunningGateway, world: World) -> None:
    """However long the test had to wait for its turn; before the desk is opened, which shows it."""
    module_gateway.connection.execute(
        "update gateway.service_health set set_aside_until = now() + interval '10 minutes'"
        " where service_id = %s",
        [world.failing_service],
    )


@pytest.mark.usefixtures("still_aside")
def test_a_failing_provider_shows_as_set_aside_and_since_when(
    dashboard: Dashboard, world: World, desk: Page
) -> None:
    go(dashboard, "overview")
    expect(desk.locator(".banner")).to_contain_text(f"service {world.failing_service}")
    name = f"service {world.failing_service}"
    expect(row(desk, name)).to_contain_text(re.compile("set aside failing since .+ until"))
    go(dashboard, "services")
    row(desk, name).get_by_role("button").click()
    expect(desk.get_by_role("region", name="What fails just now")).to_contain_text("HTTP 500")
    assert dashboard.faults == []


def test_a_new_price_is_in_force_and_the_old_one_in_the_history(
    dashboard: Dashboard, gateway: RunningGateway, desk: Page
) -> None:
    name = gateway.model("echo", prices={"input": "1", "cached_input": "0.5", "output": "2"})
    go(dashboard, f"models?id={model_id(gateway, name)}")
    press(desk, "New price")
    dialog = desk.get_by_role("dialog")
    expect(dialog.locator('[name="cached_input"]')).to_have_value("0.5")
    dashboard.expected.add(422)
    fill(dialog, output="free")
    press(dialog, "Set the price")
    expect(dialog.locator('[data-field="output"] .error')).not_to_be_empty()
    fill(dialog, output="2.125")
    press(dialog, "Add a tier")
    press(dialog, "Add a tier")
    press(dialog.locator(".tier").first, "Remove this tier")
    tier = {"above_input_tokens": "200000", "input": "2", "cached_input": "1", "output": "x"}
    fill(dialog, **{f"tiers.1.{name}": value for name, value in tier.items()})
    press(dialog, "Set the price")
    expect(dialog.locator('[data-field="tiers.1.output"] .error')).not_to_be_empty()
    look(dashboard, "price")
    fill(dialog, **{"tiers.1.output": "4"})
    press(dialog, "Set the price")
    history = desk.get_by_role("region", name="History of its prices").locator("tbody tr")
    expect(history).to_have_count(2)
    expect(history.nth(0)).to_contain_text("$2.125")
    expect(history.nth(1)).to_contain_text("$2.00")
    prices = desk.get_by_role("region", name="Prices", exact=True)
    expect(prices).to_contain_text("Above 200,000 in")
    expect(prices.locator("tr", has_text="output")).to_contain_text(re.compile(r"\$2\.125\s*\$4\.00"))
    assert dashboard.faults == []


def test_a_price_list_shows_its_difference_before_it_is_applied(
    dashboard: Dashboard, gateway: RunningGateway, desk: Page
) -> None:
    name = gateway.model("echo", prices={"input": "1", "output": "2"})
    line = "model,provider,upstream_model,input,output\n"
    go(dashboard, "models")
    press(desk, "Import a price list")
    dialog = desk.get_by_role("dialog")
    dashboard.expected.add(422)
    fill(dialog, lines=f"{line}{name},openai-compatible,echo,1,much\n")
    press(dialog, "Show the difference")
    expect(dialog).to_contain_text("line 2")
    fill(dialog, lines=f"{line}{name},openai-compatible,echo,1,3\n{name}-2,openai-compatible,echo,1,3\n")
    press(dialog, "Show the difference")
    expect(dialog.locator("tbody tr")).to_have_text(re.compile(rf"{name}.*output.*\$2\.00.*\$3\.00"))
    expect(dialog).to_contain_text("Nothing is changed yet")
    look(dashboard, "import")

    def prices() -> list[str]:
        told = gateway.call("list_prices", p_limit=10, p_model=name)
        return [row["output"] for row in told]

    assert prices() == ["2"]
    press(dialog, "Apply it")
    expect(desk.locator("#toasts")).to_contain_text("Prices changed: 1. Offers added: 1.")
    assert prices() == ["3", "2"]
    assert dashboard.faults == []


def test_a_settings_error_stands_at_its_field_and_a_change_is_shown_before_it_is_made(
    dashboard: Dashboard, gateway: RunningGateway, world: World, desk: Page
) -> None:
    settings = gateway.call("change_settings", p_changes={}, p_actor="a test")
    go(dashboard, "settings")
    form = desk.locator("form.settings")
    names = set(settings) - {"webhook_secret_set"} | {"webhook_secret"}
    fields = form.locator("[data-field]").evaluate_all("(all) => all.map((each) => each.dataset.field)")
    assert sorted(fields) == sorted(names)
    for name in names:
        # Each in words, not in the API's name alone.
        assert form.locator(f'[data-field="{name}"] label').inner_text() not in {"", name}
    dashboard.expected.add(422)
    fill(form, commission_percent="plenty", default_requests_per_minute="")
    press(form, "Review changes")
    dialog = desk.get_by_role("dialog")
    expect(dialog.locator("tbody tr")).to_have_count(2)
    look(dashboard, "settings")
    press(dialog, "Save")
    expect(form.locator('[data-field="commission_percent"] .error')).not_to_be_empty()
    expect(form.locator('[name="commission_percent"]')).to_be_focused()
    expect(form.locator('[name="commission_percent"]')).to_have_attribute("aria-invalid", "true")
    fill(form, commission_percent="6.5")
    press(form, "Review changes")
    expect(dialog.locator("tbody tr").first).to_have_text(re.compile("Commission.*5.*6.5"))
    press(dialog, "Save")
    expect(desk.locator("#toasts")).to_contain_text("The settings are saved.")
    told = gateway.call("change_settings", p_changes={}, p_actor="a test")
    assert (told["commission_percent"], told["default_requests_per_minute"]) == ("6.5", None)
    assert {**told, "commission_percent": "5", "default_requests_per_minute": 60} == settings
    press(desk, "Who changed them")
    expect(row(desk, "settings").first).to_contain_text(auth.key_prefix(world.admin_key))
    row(desk, "settings").first.get_by_role("button").click()
    expect(dialog.locator("tbody tr", has_text="commission_percent")).to_contain_text("6.5")
    look(dashboard, "change")
    assert dashboard.faults == []


def test_the_books_are_checked_and_what_does_not_add_up_is_named(
    dashboard: Dashboard, gateway: RunningGateway, desk: Page
) -> None:
    customer = gateway.customer("3")
    go(dashboard, "ledger")
    expect(desk.locator(".card")).to_contain_text("The books add up")

    def falsify(usd: int) -> None:
        with gateway.connection.transaction():
            gateway.connection.execute("set local session_replication_role = replica")
            gateway.connection.execute(
                "update gateway.accounts set balance_usd = %s where customer_id = %s", [usd, customer.id]
            )

    falsify(4)
    press(desk, "Check from the first entry")
    expect(desk.locator(".card")).to_contain_text("The books do not add up")
    expect(desk.locator("tbody tr")).to_have_text(re.compile(rf"{customer.id}.*\$4\.00.*\$3\.00"))
    falsify(3)
    press(desk, "Check again")
    expect(desk.locator(".card")).to_contain_text("The books add up")
    assert dashboard.faults == []


def test_an_event_that_was_given_up_is_sent_again(
    dashboard: Dashboard, gateway: RunningGateway, desk: Page
) -> None:
    gateway.connection.execute(
        "update gateway.settings set webhook_url = 'https://hooks.example.com', webhook_secret = 'v1.a.b.c'"
    )
    raised = gateway.connection.execute(
        "select gateway.raise_event('provider.recovered', 'service:1', '{}')"
    ).fetchone()
    assert raised is not None
    gateway.connection.execute(
        "update gateway.event_deliveries set attempts = 20, next_attempt_at = null, last_status = 500,"
        " last_error = %s where event_id = %s",
        [HOSTILE, raised[0]],
    )
    try:
        go(dashboard, "events?state=given_up")
        expect(desk.locator(".card").first).to_contain_text("1 given up")
        row(desk, "provider.recovered").get_by_role("button").click()
        dialog = desk.get_by_role("dialog")
        expect(dialog).to_contain_text(HOSTILE)
        look(dashboard, "event")
        press(dialog, "Send now")
        expect(dialog).to_have_count(0)
        expect(desk.locator(".card").first).to_contain_text(re.compile("1 waiting.*, 0 given up"))
        state = gateway.connection.execute(
            "select next_attempt_at <= now() from gateway.event_deliveries where event_id = %s", [raised[0]]
        ).fetchone()
        assert state == (True,)
    finally:
        gateway.connection.execute("update gateway.settings set webhook_url = null, webhook_secret = null")
        gateway.connection.execute("delete from gateway.event_deliveries where event_id = %s", [raised[0]])
    assert dashboard.faults == []


def test_a_customers_key_sees_no_admin_view_and_gets_403(
    dashboard: Dashboard, gateway: RunningGateway, world: World
) -> None:
    page = dashboard.open()
    page.goto(f"{dashboard.url}#/admin/customers")
    dashboard.sign_in(world.hostile.key)
    expect(page.get_by_text("There is no such page")).to_be_visible()
    assert page.locator('a[href*="admin"]').count() == 0
    assert world.demo.customer.username not in page.content()
    for method, path in (
        ("GET", "/admin/customers"),
        ("GET", "/admin/monitor"),
        ("GET", "/admin/services"),
        ("GET", "/admin/providers"),
        ("GET", "/admin/models"),
        ("GET", "/admin/prices"),
        ("GET", "/admin/settings"),
        ("GET", "/admin/audit"),
        ("GET", "/admin/events"),
        ("GET", "/admin/top_customers"),
        ("GET", "/admin/payments"),
        ("GET", "/admin/ledger/check"),
        ("PATCH", f"/admin/customers/{world.hostile.id}"),
        ("POST", "/admin/add_credits"),
    ):
        assert gateway.http(world.hostile).request(method, path, json={}).status_code == 403, path
    # Nor is any of the operator's modules asked for.
    asked = page.evaluate("() => performance.getEntriesByType('resource').map(({ name }) => name)")
    assert [name for name in asked if "/admin/" in name and not name.endswith("/admin/index.js")] == []
    assert dashboard.faults == []


def test_a_customer_is_suspended_by_the_keyboard_alone(
    dashboard: Dashboard, gateway: RunningGateway, desk: Page
) -> None:
    customer = gateway.customer("3")
    go(dashboard, f"customers?id={customer.id}")
    keyboard = desk.keyboard
    more = desk.locator(".headline + .actions").get_by_role("button", name="More about")
    more.focus()
    keyboard.press("Enter")
    expect(desk.get_by_role("menuitem").first).to_be_focused()
    keyboard.press("ArrowUp")
    expect(desk.get_by_role("menuitem", name="Erase")).to_be_focused()
    keyboard.press("Escape")
    expect(more).to_be_focused()
    keyboard.press("Shift+Tab")
    suspend = desk.get_by_role("button", name="Suspend", exact=True)
    expect(suspend).to_be_focused()
    keyboard.press("Enter")
    expect(desk.get_by_role("dialog").get_by_role("heading")).to_be_focused()
    keyboard.press("Escape")
    expect(suspend).to_be_focused()
    keyboard.press("Enter")
    for _ in range(3):
        keyboard.press("Tab")
    expect(desk.get_by_role("dialog").get_by_role("button", name="Suspend", exact=True)).to_be_focused()
    keyboard.press("Enter")
    expect(desk.locator(".headline")).to_contain_text("suspended")
    # What was pressed is gone with what it said: on goes it from the name.
    expect(desk.locator(".headline h2")).to_be_focused()
    assert call(gateway, customer) == 403


def test_the_whole_script_is_small() -> None:
    """Compressed, with the operator's views; what a customer's browser loads is counted as it is."""
    scripts = [file.body for name, file in assets.dashboard().files.items() if name.endswith(".js")]
    assert sum(len(gzip.compress(body)) for body in scripts) < MAX_SCRIPT_BYTES
