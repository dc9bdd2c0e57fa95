"""Every view of the dashboard over a month of figures: whole, still, readable by everybody, in both schemes.

With SLUICE_PICTURES the pictures of the views are kept in that folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.fixtures.browser import Dashboard, browser, dashboard
from tests.fixtures.dashboard import Demo, seed
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Locator, Page

__all__ = ["browser", "dashboard", "gateway", "module_gateway"]

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
VIEWS = ["overview", "usage", "keys", "requests", "limits", "billing", "start"]
DIALOGS: tuple[tuple[str, Callable[[Page], Locator], str], ...] = (
    ("keys", lambda page: page.get_by_role("button", name="New key"), "new-key"),
    ("requests", lambda page: page.locator("tr.leads").first, "request"),
    ("billing", lambda page: page.locator("tr.leads").first, "statement"),
)
PICTURES = os.environ.get("SLUICE_PICTURES")


@pytest.fixture(scope="module")
def demo(module_gateway: RunningGateway) -> Demo:
    return seed(module_gateway)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_every_view(dashboard: Dashboard, demo: Demo, scheme: str, size: str) -> None:
    page = dashboard.open(*SIZES[size], scheme=scheme)
    page.goto(dashboard.url)
    picture(dashboard, "sign-in", size, scheme)
    assert dashboard.barriers() == []
    dashboard.sign_in(demo.key)
    for view in VIEWS:
        dashboard.visit(view)
        picture(dashboard, view, size, scheme)
        assert dashboard.barriers() == [], view
        assert dashboard.overflow() == 0, view
    for view, opener, name in DIALOGS:
        dashboard.visit(view)
        opener(page).click()
        expect(page.get_by_role("dialog")).to_be_visible()
        dashboard.settle()
        picture(dashboard, name, size, scheme)
        assert dashboard.barriers() == [], name
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
    assert dashboard.layout_shift() < 0.01
    assert dashboard.faults == []


def picture(dashboard: Dashboard, view: str, size: str, scheme: str) -> None:
    whole = size == "desktop" and view in VIEWS
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        dashboard.page.screenshot(path=f"{PICTURES}/{view}-{size}-{scheme}.png", full_page=whole)
