"""Every view of the dashboard over a month of figures: whole, still, readable by everybody, in both schemes.

With SLUICE_PICTURES the pictures of the views are kept in that folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fixtures.browser import Dashboard, browser, dashboard
from tests.fixtures.dashboard import Demo, seed
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway

__all__ = ["browser", "dashboard", "gateway", "module_gateway"]

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
VIEWS = ["overview", "usage", "keys", "requests", "limits", "billing", "start"]
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
    assert dashboard.layout_shift() < 0.01
    assert dashboard.faults == []


def picture(dashboard: Dashboard, view: str, size: str, scheme: str) -> None:
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        dashboard.page.screenshot(path=f"{PICTURES}/{view}-{size}-{scheme}.png", full_page=size == "desktop")
