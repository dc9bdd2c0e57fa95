"""Signing in to the dashboard by a link that was mailed: whose it is, and that it leaves no trace."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect
from pydantic import SecretStr

from tests.fixtures.browser import Dashboard, browser
from tests.fixtures.gateway import RunningGateway, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page, Route

    from infra.local.postgrest import PostgRest
    from tests.fixtures.auth_server import AuthServer
    from tests.fixtures.database import Database
    from tests.fixtures.simulator import Simulator

__all__ = ["browser"]

PUBLISHABLE = "sb_publishable_AbC123"
CORS = {"access-control-allow-origin": "*", "access-control-allow-headers": "*"}


@pytest.fixture(scope="module")
def gateway_with_auth(
    module_database: Database,
    module_postgrest: PostgRest,
    simulator_server: Simulator,
    auth_server_process: AuthServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningGateway]:
    settings = {**auth_server_process.settings, "auth_publishable_key": SecretStr(PUBLISHABLE)}
    spool = tmp_path_factory.mktemp("spool")
    with serve(module_database, module_postgrest, simulator_server, spool, **settings) as gateway:
        yield gateway


@pytest.fixture
def dashboard(
    browser: Browser, gateway_with_auth: RunningGateway, auth_server: AuthServer
) -> Iterator[Dashboard]:
    made = Dashboard(browser, gateway_with_auth.url, also=(auth_server.url,))
    yield made
    made.close()


class Mail:
    """What the Auth server is asked in a page, and what it answers."""

    def __init__(self, page: Page, auth: AuthServer) -> None:
        self.asked: list[tuple[str, Any, str | None]] = []
        self.renewed = ""
        page.route(f"{auth.issuer}/**", self._answer)

    @property
    def link(self) -> str:
        """Where the last mail leads back to."""
        [url] = [url for url, _, _ in self.asked if "/otp" in url][-1:]
        return parse_qs(urlsplit(url).query)["redirect_to"][0]

    def _answer(self, route: Route) -> None:
        request = route.request
        if request.method == "OPTIONS":
            return route.fulfill(status=204, headers=CORS)
        path = urlsplit(request.url).path.rpartition("/")[2]
        self.asked.append((request.url, request.post_data_json, request.headers.get("apikey")))
        told = {"token": {"access_token": self.renewed, "refresh_token": "r2", "expires_in": 3600}}
        return route.fulfill(status=200, headers=CORS, body=json.dumps(told.get(path, {})))


def fragment(token: str, *, expires_in: int = 3600) -> str:
    return f"#access_token={token}&expires_in={expires_in}&refresh_token=r1&token_type=bearer&type=magiclink"


def person(gateway: RunningGateway, auth: AuthServer) -> tuple[Any, str]:
    customer = gateway.customer("1")
    email = gateway.connection.execute(
        "select email from gateway.customers where id = %s", [customer.id]
    ).fetchone()
    assert email is not None
    return customer, auth.token(auth.user(gateway.connection, email[0]))


def test_a_link_signs_in_the_browser_that_asked_for_it(
    dashboard: Dashboard, gateway_with_auth: RunningGateway, auth_server: AuthServer
) -> None:
    customer, token = person(gateway_with_auth, auth_server)
    page = dashboard.open()
    mail = Mail(page, auth_server)
    page.goto(dashboard.url)
    assert dashboard.barriers() == []
    page.get_by_label("Email").fill("ada@example.org")
    page.get_by_role("button", name="Mail me a link").click()
    expect(page.locator("#sign-in-note")).to_contain_text("a link is on its way")
    [(_, asked, api_key)] = mail.asked
    assert asked == {"email": "ada@example.org", "create_user": False}
    assert api_key == PUBLISHABLE
    page.goto("about:blank")
    page.goto(mail.link + fragment(token))
    expect(page.locator(".who")).to_contain_text("Customer")
    dashboard.settle()
    # Out of the address, the history and every store at once.
    assert page.evaluate("() => [location.search, localStorage.length, sessionStorage.length]") == ["", 0, 0]
    assert token not in page.evaluate("() => location.href + document.documentElement.outerHTML")
    dashboard.visit("keys")
    page.get_by_role("button", name="New key").click()
    page.get_by_label("Name").fill("mine")
    page.get_by_role("button", name="Make key").click()
    expect(page.locator(".secret code")).to_contain_text("sk_")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_focused()
    expect(page.locator(".who")).to_have_count(0)
    assert [path for path, *_ in mail.asked if "logout" in path]
    assert customer.id
    assert dashboard.faults == []


@pytest.mark.parametrize("state", ["", "?state=0123456789abcdef0123456789abcdef"])
def test_a_link_that_nobody_here_asked_for_is_not_followed_unasked(
    dashboard: Dashboard, gateway_with_auth: RunningGateway, auth_server: AuthServer, state: str
) -> None:
    """Else whoever mails a link to an account of their own would see what is done in it."""
    _, token = person(gateway_with_auth, auth_server)
    page = dashboard.open()
    page.goto(f"{dashboard.url}{state}{fragment(token)}")
    expect(page.get_by_role("dialog")).to_contain_text("did not ask for the link")
    assert dashboard.barriers() == []
    assert page.url == dashboard.url
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.locator("header.bar")).to_have_count(0)
    page.goto("about:blank")
    page.goto(f"{dashboard.url}{state}{fragment(token)}")
    page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    expect(page.locator(".who")).to_contain_text("Customer")
    assert dashboard.faults == []


def test_a_token_is_renewed_before_it_ends(
    dashboard: Dashboard, gateway_with_auth: RunningGateway, auth_server: AuthServer
) -> None:
    _, token = person(gateway_with_auth, auth_server)
    page = dashboard.open()
    mail = Mail(page, auth_server)
    mail.renewed = token
    page.goto(f"{dashboard.url}{fragment('worn.out.token', expires_in=5)}")
    page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    expect(page.locator(".who")).to_contain_text("Customer")
    [(url, asked, _)] = mail.asked
    assert "grant_type=refresh_token" in url
    assert asked == {"refresh_token": "r1"}
    assert dashboard.faults == []


def test_an_admin_signs_in_by_a_link(
    dashboard: Dashboard, gateway_with_auth: RunningGateway, auth_server: AuthServer
) -> None:
    user = auth_server.user(gateway_with_auth.connection, "operator@example.com")
    page = dashboard.open()
    page.goto(f"{dashboard.url}{fragment(auth_server.token(user, admin=True))}")
    page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    expect(page.locator(".who")).to_have_text("Operator")
    expect(page.locator('.nav a[href^="#/admin/"]').first).to_be_visible()
    assert dashboard.faults == []


def test_a_link_that_has_expired_says_so(dashboard: Dashboard) -> None:
    page = dashboard.open()
    page.goto(f"{dashboard.url}#error=access_denied&error_description=Email+link+is+invalid+or+has+expired")
    expect(page.locator("#sign-in-note")).to_have_text("Email link is invalid or has expired")
    assert page.url == dashboard.url
    assert dashboard.faults == []
