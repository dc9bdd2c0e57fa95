"""Credits bought from the dashboard at a stand-in of Stripe, and a debt as its customer sees it."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.fixtures.browser import Dashboard, browser
from tests.fixtures.gateway import RunningGateway, serve
from tests.fixtures.stripe_server import PUBLIC_URL, StripeServer, sign, stripe_server, stripe_server_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from infra.local.postgrest import PostgRest
    from tests.fixtures.database import Database
    from tests.fixtures.simulator import Simulator

__all__ = ["browser", "stripe_server", "stripe_server_process"]

SCOPES = ["chat", "usage", "keys", "billing"]
POLLED_MS = 16_000


@pytest.fixture(scope="module")
def gateway_that_sells(
    module_database: Database,
    module_postgrest: PostgRest,
    simulator_server: Simulator,
    stripe_server_process: StripeServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningGateway]:
    spool = tmp_path_factory.mktemp("spool")
    settings = stripe_server_process.settings
    with serve(module_database, module_postgrest, simulator_server, spool, **settings) as gateway:
        yield gateway


@pytest.fixture
def dashboard(
    browser: Browser, gateway_that_sells: RunningGateway, stripe_server: StripeServer
) -> Iterator[Dashboard]:
    stripe_server.webhook_url = f"{gateway_that_sells.url}/stripe/webhook"
    made = Dashboard(browser, gateway_that_sells.url)
    yield made
    made.close()


def tell(gateway: RunningGateway, event: dict[str, Any]) -> None:
    body = json.dumps(event).encode()
    told = gateway.http().post("/stripe/webhook", content=body, headers=sign(body))
    assert told.status_code == 200, told.text


def test_credits_are_bought_and_show_without_a_reload(
    dashboard: Dashboard, gateway_that_sells: RunningGateway
) -> None:
    customer = gateway_that_sells.customer("1", p_scopes=SCOPES)
    page = dashboard.open()
    # Where Stripe sends the browser back to: this gateway by its public name.
    page.context.route(f"{PUBLIC_URL}/**", lambda route: route.fulfill(status=200, body="back"))
    page.clock.install()
    page.goto(dashboard.url)
    dashboard.sign_in(customer.key)
    dashboard.visit("billing")
    page.get_by_role("button", name="Buy credits").click()
    assert dashboard.barriers() == []
    page.get_by_label("Amount, USD").fill("12.50")
    page.get_by_role("button", name="Go on to payment").click()
    link = page.get_by_role("link", name="Pay $12.50")
    expect(link).to_be_focused()
    with page.expect_popup() as opened:
        link.click()
    payment = opened.value
    expect(payment.get_by_role("heading")).to_have_text("Pay $12.50")
    assert payment.evaluate("() => window.opener") is None
    payment.get_by_role("button", name="Pay").click()
    payment.wait_for_url(f"{PUBLIC_URL}/**")
    payment.close()
    assert gateway_that_sells.balance(customer)[0] == Decimal("13.5")
    page.clock.fast_forward(POLLED_MS)
    expect(page.locator("header .balance")).to_have_text("$13.50")
    expect(page.get_by_role("region", name="Payments")).to_contain_text("$12.50")
    assert dashboard.faults == []
    assert dashboard.layout_shift() < 0.1


def test_an_amount_that_is_not_sold_is_told_at_its_field(
    dashboard: Dashboard, gateway_that_sells: RunningGateway
) -> None:
    dashboard.expected = {422}
    customer = gateway_that_sells.customer("1", p_scopes=SCOPES)
    page = dashboard.open()
    page.goto(dashboard.url)
    dashboard.sign_in(customer.key)
    dashboard.visit("billing")
    page.get_by_role("button", name="Buy credits").click()
    page.get_by_label("Amount, USD").fill("0.01")
    page.get_by_role("button", name="Go on to payment").click()
    expect(page.get_by_label("Amount, USD")).to_have_attribute("aria-invalid", "true")
    assert dashboard.faults == []


def test_a_debt_is_shown_with_the_way_out_of_it(
    dashboard: Dashboard, gateway_that_sells: RunningGateway, stripe_server: StripeServer
) -> None:
    customer = gateway_that_sells.customer(None, p_scopes=SCOPES)
    session = stripe_server.session(customer.id, 1000)
    tell(gateway_that_sells, stripe_server.pay(session))
    gateway_that_sells.call("add_credits", p_customer_id=customer.id, p_usd=Decimal(-6))
    tell(gateway_that_sells, stripe_server.charge_refunded(session, 1000))
    page = dashboard.open()
    page.goto(dashboard.url)
    dashboard.sign_in(customer.key)
    dashboard.visit("billing")
    expect(page.locator(".banner.bad")).to_contain_text("until the debt is paid")
    expect(page.locator(".figures")).to_contain_text("$6.00")
    assert dashboard.barriers() == []
    page.get_by_role("button", name="Buy credits").click()
    expect(page.get_by_role("dialog")).to_contain_text("The debt of $6.00 is paid first.")
    assert dashboard.faults == []
