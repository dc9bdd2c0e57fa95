"""The template and the package as `sam local start-api` serves them: real routes, containers, the SDK."""

from __future__ import annotations

import os
import subprocess
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from infra.sam import local, package

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infra.sam.local import LocalApi

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # the first builds the package, beside others that do
    pytest.mark.skipif(
        not os.environ.get(local.IMAGE_VARIABLE),
        reason=f"{local.IMAGE_VARIABLE} names no image of Lambda's Python for Docker",
    ),
]
HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalApi]:
    directory = tmp_path_factory.mktemp("sam")
    with local.serve(os.environ[local.IMAGE_VARIABLE], directory) as running:
        yield running
    # It takes down what it has put up.
    left = subprocess.run(
        ["docker", "network", "ls", "--quiet", "--filter", f"name=sluice-{os.getpid()}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert left.stdout == ""


@pytest.fixture
def http(api: LocalApi) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def demo(api: LocalApi) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.demo_key, max_retries=0, timeout=60) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def balance(http: httpx.Client, key: str) -> Decimal:
    return Decimal(http.get("/user/balance", headers=bearer(key)).json()["balance_usd"])


def test_package_is_what_lambda_would_get(api: LocalApi) -> None:
    assert api.url
    for name in ("ChatFunction", "MaintenanceFunction"):
        assert package.check(local.BUILD / name, local.machine_architecture()) == []


def test_chat_is_answered_and_charged_to_the_digit(
    api: LocalApi, http: httpx.Client, demo: openai.OpenAI
) -> None:
    before = balance(http, api.demo_key)
    answer = demo.chat.completions.create(model="sim/echo", messages=HELLO)
    assert answer.choices[0].message.content == "You said: Hello"
    assert answer.model_extra is not None
    told = answer.model_extra["gateway_usage"]
    assert before - balance(http, api.demo_key) == Decimal(told["charge_usd"]) > 0
    record = http.get(f"/v1/requests/{told['request_id']}", headers=bearer(api.demo_key)).json()
    assert record["model"] == "sim/echo"


def test_stream_is_answered_whole_and_charged(api: LocalApi, http: httpx.Client, demo: openai.OpenAI) -> None:
    before = balance(http, api.demo_key)
    *chunks, last = demo.chat.completions.create(
        model="sim/echo", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == "You said: Hello"
    )
    assert last.model_extra is not None
    charge = Decimal(last.model_extra["gateway_usage"]["charge_usd"])
    assert before - balance(http, api.demo_key) == charge > 0


def test_a_models_name_may_have_slashes(demo: openai.OpenAI) -> None:
    assert "sim/echo" in {model.id for model in demo.models.list()}
    assert demo.models.retrieve("sim/echo").id == "sim/echo"


def test_sdk_raises_its_own_errors(api: LocalApi, demo: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        demo.chat.completions.create(model="no/such-model", messages=HELLO)
    with (
        openai.OpenAI(base_url=f"{api.url}/v1", api_key="sk_wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_an_admin_makes_a_customer_whose_key_serves(api: LocalApi, http: httpx.Client) -> None:
    admin = bearer(api.admin_key)
    made = http.post("/admin/create_user", headers=admin, json={"name": "Ada", "email": "ada@example.com"})
    assert made.status_code == 201, made.text
    user = made.json()
    added = http.post("/admin/add_credits", headers=admin, json={"user_id": user["user_id"], "usd": "1"})
    assert added.status_code == 200, added.text
    assert balance(http, user["api_key"]) == 1
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=user["api_key"], max_retries=0) as client:
        client.chat.completions.create(model="sim/echo", messages=HELLO)
    assert balance(http, user["api_key"]) < 1


def test_a_key_is_made_read_switched_off_and_revoked(
    api: LocalApi, http: httpx.Client, demo: openai.OpenAI
) -> None:
    customer = http.get("/user/balance", headers=bearer(api.demo_key)).json()["user_id"]
    admin = bearer(api.admin_key)
    made = http.post("/api/keys", headers=admin, json={"name": "a", "customer_email": "demo@sluice.example"})
    assert made.is_success, made.text
    key = made.json()
    client = demo.with_options(api_key=key["key"])
    client.chat.completions.create(model="sim/echo", messages=HELLO)
    assert http.get("/user/balance", headers=bearer(key["key"])).json()["user_id"] == customer
    assert http.post(f"/v1/keys/{key['id']}/toggle", headers=admin).json()["active"] is False
    with pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="sim/echo", messages=HELLO)
    assert http.delete(f"/v1/keys/{key['id']}", headers=admin).is_success


def test_pages_and_what_nobody_serves(http: httpx.Client) -> None:
    assert http.get("/").json()["name"] == "Sluice"
    assert http.get("/health").json()["status"] == "ok"
    nowhere = http.get("/no/such/page")
    assert nowhere.status_code == 404
    assert nowhere.json()["error"]["code"] == "unknown_route"
    assert http.put("/health").status_code == 405
    preflight = http.options(
        "/v1/keys", headers={"origin": "https://a.example", "access-control-request-method": "POST"}
    )
    assert preflight.status_code == 204
    assert "POST" in preflight.headers["access-control-allow-methods"]


def test_maintenance_runs(api: LocalApi, tmp_path: Path) -> None:
    event = tmp_path / "event.json"
    event.write_text('{"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}')
    assert api.invoke("MaintenanceFunction", event)["holds_expired"] == 0
