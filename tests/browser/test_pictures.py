"""The README's pictures, from the demo's month: each can be made, is small, and is shown.

With SLUICE_PICTURES they are kept in that folder: infra/docs/pictures, to make them anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.test_admin_dashboard import go
from tests.fixtures.browser import Dashboard, browser, dashboard
from tests.fixtures.dashboard import Demo, seed
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser", "dashboard", "gateway", "module_gateway"]

KEPT = Path(__file__).parents[2] / "infra" / "docs" / "pictures"
DESKTOP, PHONE = (1280, 900), (390, 844)
MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def demo(module_gateway: RunningGateway) -> Demo:
    return seed(module_gateway)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_readmes_pictures(
    dashboard: Dashboard, gateway: RunningGateway, demo: Demo, scheme: str, tmp_path: Path
) -> None:
    folder = Path(os.environ.get("SLUICE_PICTURES") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    made = []

    def keep(page: Page, name: str) -> None:
        path = folder / f"{name}-{scheme}.png"
        page.screenshot(path=path)
        made.append(path)

    page = dashboard.open(*DESKTOP, scheme=scheme)
    page.goto(dashboard.url)
    dashboard.sign_in(demo.key)
    dashboard.visit("overview")
    keep(page, "overview")
    page = dashboard.open(*PHONE, scheme=scheme)
    page.goto(dashboard.url)
    dashboard.sign_in(demo.key)
    for view in ("overview", "limits"):
        dashboard.visit(view)
        keep(page, f"{view}-phone")
    page = dashboard.open(*DESKTOP, scheme=scheme)
    page.goto(dashboard.url)
    dashboard.sign_in(gateway.admin_key())
    go(dashboard, "overview")
    keep(page, "operator")
    assert dashboard.faults == []
    assert [path.name for path in made if path.stat().st_size >= MOST_BYTES] == []
    assert {path.name for path in made} == {path.name for path in KEPT.glob(f"*-{scheme}.png")}
