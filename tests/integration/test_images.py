"""Images through the official SDK: every price exactly, every hold an upper bound, every failure free."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import openai
import pytest

from infra.local.simulator.answers import count_tokens
from infra.local.simulator.openai_media import IMAGE_TOKENS
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway
from tests.fixtures.wire import MARKUP, money, nothing_is_left_held

if TYPE_CHECKING:
    from tests.fixtures.simulator import Simulator

__all__ = ["gateway", "module_gateway", "nothing_is_left_held"]

PROMPT = "A lighthouse at dusk"
PRICES = {"input": "5", "image_input": "8", "output": "10", "image_output": "32"}
BY_IMAGE = {"input": "0", "output": "0", "per_image": "0.02"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
INPUT_IMAGE_TOKENS = 194
BY_TOKEN = Decimal("0.000001") * MARKUP


def charged(
    *, text: int = 0, images_in: int = 0, image_out: int = 0, images: Decimal = Decimal(0)
) -> Decimal:
    return (text * 5 + images_in * 8 + image_out * 32) * BY_TOKEN + images * MARKUP


def image_model(gateway: RunningGateway, behaviour: str = "echo", **given: Any) -> str:
    given = {
        "prices": PRICES,
        "context_length": None,
        "max_output_tokens": None,
        "output": ("image",),
        **given,
    }
    return gateway.model(behaviour, **given)


@pytest.mark.parametrize(("size", "quality"), list(IMAGE_TOKENS))
def test_an_image_costs_what_its_tokens_cost_and_no_more_than_was_held(
    gateway: RunningGateway, size: str, quality: Any
) -> None:
    customer = gateway.customer("5")
    model = image_model(gateway)
    made = gateway.openai(customer).images.generate(
        model=model, prompt=PROMPT, size=size, quality=quality, n=2
    )
    assert made.data is not None
    assert len({image.b64_json for image in made.data}) == 2
    assert made.usage is not None
    assert made.usage.output_tokens == 2 * IMAGE_TOKENS[size, quality]
    [row] = gateway.requests(customer)
    assert money(row["charge_usd"]) == charged(
        text=count_tokens(PROMPT), image_out=2 * IMAGE_TOKENS[size, quality]
    )
    assert money(row["charge_usd"]) <= money(row["hold_usd"])
    assert (row["endpoint"], row["images"], row["image_output_tokens"], row["output_tokens"]) == (
        "images.generations",
        2,
        2 * IMAGE_TOKENS[size, quality],
        0,
    )
    spent = made.model_extra and made.model_extra["gateway_usage"]
    assert spent
    assert Decimal(spent["charge_usd"]) == money(row["charge_usd"])
    assert spent["request_id"] == row["id"]


def test_an_image_paid_by_the_piece_costs_that(gateway: RunningGateway) -> None:
    customer = gateway.customer("5")
    model = image_model(gateway, "no-usage", prices=BY_IMAGE)
    made = gateway.openai(customer).images.generate(model=model, prompt=PROMPT, n=3)
    assert made.data is not None
    [row] = gateway.requests(customer)
    assert money(row["charge_usd"]) == money(row["hold_usd"]) == 3 * Decimal("0.02") * MARKUP
    assert (row["images"], row["usage_estimated"], row["output_tokens_bound"]) == (3, False, 0)


@pytest.mark.parametrize("several", [False, True])
def test_edits_read_the_images_that_were_sent(
    gateway: RunningGateway, simulator: Simulator, *, several: bool
) -> None:
    customer = gateway.customer("5")
    model = image_model(gateway)
    image: Any = [PNG, PNG + b"more"] if several else PNG
    made = gateway.openai(customer).images.edit(
        model=model, image=image, mask=PNG, prompt=PROMPT, n=1, size="1024x1024", quality="low"
    )
    assert made.data is not None
    [row] = gateway.requests(customer)
    given = 3 if several else 2
    assert row["endpoint"] == "images.edits"
    assert row["image_input_tokens"] == given * INPUT_IMAGE_TOKENS
    due = charged(text=count_tokens(PROMPT), images_in=given * INPUT_IMAGE_TOKENS, image_out=272)
    assert money(row["charge_usd"]) == due <= money(row["hold_usd"])
    [call] = simulator.calls.all()
    assert call.url == "/v1/images/edits"
    assert call.headers["content-type"].startswith("multipart/form-data")


def test_edits_as_json_reach_the_provider_as_the_same_files(
    gateway: RunningGateway, simulator: Simulator
) -> None:
    customer = gateway.customer("5")
    model = image_model(gateway)
    fields = {"model": model, "prompt": PROMPT, "size": "1024x1024"}
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    as_json = gateway.http(customer).post("/v1/images/edits", json={**fields, "images": [{"image_url": url}]})
    as_form = gateway.http(customer).post("/v1/images/edits", data=fields, files={"image": ("a.png", PNG)})
    assert as_json.status_code == as_form.status_code == 200, as_json.text
    assert as_json.json()["data"] == as_form.json()["data"]
    assert [call.headers["content-type"].split(";")[0] for call in simulator.calls.all()] == [
        "multipart/form-data"
    ] * 2


def test_an_image_by_its_url_goes_to_who_fetches_it_and_nobody_else(
    gateway: RunningGateway, simulator: Simulator
) -> None:
    customer = gateway.customer("5")
    body = {"prompt": PROMPT, "images": [{"image_url": "https://example.com/cat.png"}]}
    client = gateway.http(customer)
    refused = client.post("/v1/images/edits", json={**body, "model": image_model(gateway)})
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "images.0.image_url"
    assert refused.json()["error"]["code"] == "unsupported_content"
    assert not simulator.calls.all()
    passed_on = client.post(
        "/v1/images/edits", json={**body, "model": image_model(gateway, provider="openai")}
    )
    assert passed_on.status_code == 200, passed_on.text
    [call] = simulator.calls.all()
    assert json.loads(json.dumps(call.body))["images"] == body["images"]
    refused_row, row = gateway.requests(customer)
    assert money(refused_row["charge_usd"]) == 0
    assert money(row["charge_usd"]) > 0


@pytest.mark.parametrize(
    ("path", "body", "gives"),
    [
        ("/v1/images/generations", {"prompt": PROMPT}, ("text",)),
        ("/v1/images/generations", {"prompt": PROMPT}, ("embedding",)),
        ("/v1/embeddings", {"input": "x"}, ("text",)),
        ("/v1/embeddings", {"input": "x"}, ("image",)),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, ("image",)),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, ("embedding",)),
    ],
)
def test_a_model_is_called_only_for_what_it_gives(
    gateway: RunningGateway, simulator: Simulator, path: str, body: dict[str, Any], gives: tuple[str, ...]
) -> None:
    customer = gateway.customer("5")
    model = image_model(gateway, output=gives)
    answer = gateway.http(customer).post(path, json={**body, "model": model})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "model_not_suitable"
    assert answer.json()["error"]["param"] == "model"
    assert not simulator.calls.all()
    assert [row for row in gateway.requests(customer) if row["state"] != "refused"] == []


def test_a_provider_without_the_endpoint_is_not_asked(gateway: RunningGateway, simulator: Simulator) -> None:
    customer = gateway.customer("5")
    model = image_model(gateway, provider="deepseek")
    answer = gateway.http(customer).post("/v1/images/generations", json={"model": model, "prompt": PROMPT})
    assert answer.status_code == 404
    assert not simulator.calls.all()


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [("status-500", 502), ("status-401", 502), ("status-400", 400), ("status-429", 503), ("malformed", 502)],
)
def test_a_failure_is_free(gateway: RunningGateway, behaviour: str, status: int) -> None:
    customer = gateway.customer("1")
    model = image_model(gateway, behaviour)
    with pytest.raises(openai.APIStatusError) as caught:
        gateway.openai(customer).images.generate(model=model, prompt=PROMPT)
    assert caught.value.status_code == status
    [row] = gateway.requests(customer)
    assert row["outcome"] == "failed"
    assert money(row["charge_usd"]) == 0
    assert gateway.balance(customer) == (1, 0)


def test_untold_tokens_are_charged_as_they_were_agreed_and_marked(gateway: RunningGateway) -> None:
    customer = gateway.customer("5")
    model = image_model(gateway, "no-usage")
    gateway.openai(customer).images.generate(model=model, prompt=PROMPT, size="1024x1024", quality="low")
    [row] = gateway.requests(customer)
    assert row["usage_estimated"]
    assert row["image_output_tokens"] == row["output_tokens_bound"]
    assert 0 < money(row["charge_usd"]) <= money(row["hold_usd"])


def test_the_catalogue_may_tighten_the_bound(gateway: RunningGateway) -> None:
    customer = gateway.customer("5")
    gateway.openai(customer).images.generate(
        model=image_model(gateway, max_output_tokens=300), prompt=PROMPT, size="1024x1024", quality="low"
    )
    [row] = gateway.requests(customer)
    assert row["output_tokens_bound"] == 300


def test_what_the_balance_cannot_carry_is_not_made(gateway: RunningGateway, simulator: Simulator) -> None:
    customer = gateway.customer("0.05")
    model = image_model(gateway)
    with pytest.raises(openai.APIStatusError) as caught:
        gateway.openai(customer).images.generate(model=model, prompt=PROMPT, quality="high", size="1024x1024")
    assert caught.value.status_code == 402
    assert "max_tokens" not in caught.value.message
    assert not simulator.calls.all()


def test_a_form_that_is_sent_again_is_known_by_what_it_holds(gateway: RunningGateway) -> None:
    customer = gateway.customer("5")
    model = image_model(gateway)
    fields = {"model": model, "prompt": PROMPT}

    def send(image: bytes) -> Any:
        # Each call has a boundary of its own.
        return gateway.http(customer).post(
            "/v1/images/edits",
            data=fields,
            files={"image": ("a.png", image, "image/png")},
            headers={"idempotency-key": "again"},
        )

    assert send(PNG).status_code == 200
    assert send(PNG).json()["error"]["code"] == "idempotency_key_reused"
    assert send(PNG + b"x").json()["error"]["code"] == "idempotency_key_mismatch"
    assert len(gateway.requests(customer)) == 1 or all(
        row["state"] == "refused" for row in gateway.requests(customer)[1:]
    )


def test_a_provider_that_is_away_gives_way_to_the_next(gateway: RunningGateway) -> None:
    customer = gateway.customer("5")
    model = image_model(gateway, base_url="http://127.0.0.1:9/v1", priority=1)
    gateway.service(model, priority=2)
    made = gateway.openai(customer).images.generate(
        model=model, prompt=PROMPT, size="1024x1024", quality="low"
    )
    assert made.data is not None
    [row] = gateway.requests(customer)
    assert row["outcome"] == "succeeded"
    assert len({failed["route_id"] for failed in row["failed_routes"]}) == 1
    assert money(row["charge_usd"]) == charged(text=count_tokens(PROMPT), image_out=272)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True}, "stream"),
        ({"partial_images": 2}, "partial_images"),
        ({"output_format": "svg"}, "output_format"),
        ({"svg": {"model": "x"}}, "svg"),
        ({"complexity": "high"}, "complexity"),
        ({"n": 11}, "n"),
        ({"n": True}, "n"),
        ({"size": "4k"}, "size"),
        ({"quality": "best"}, "quality"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_what_could_change_the_price_unseen_is_refused(
    gateway: RunningGateway, simulator: Simulator, fields: dict[str, Any], param: str
) -> None:
    customer = gateway.customer("5")
    body = {"model": image_model(gateway), "prompt": PROMPT, **fields}
    answer = gateway.http(customer).post("/v1/images/generations", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert not simulator.calls.all()


@pytest.mark.parametrize(
    ("files", "data", "param"),
    [
        ([], {}, "image"),
        ([("image", ("a.png", b"no image"))], {}, "image"),
        ([("image", ("a.png", PNG))] * 17, {}, "image"),
        ([("image", ("a.png", PNG))], {"n": "two"}, "n"),
        ([("image", ("a.png", PNG))], {"stream": "true"}, "stream"),
        ([("image", ("a.png", PNG)), ("prompt", ("p.txt", b"x"))], {}, "prompt"),
        ([("image", ("a.png", PNG)), ("mask", ("m.png", PNG)), ("mask", ("m.png", PNG))], {}, "mask"),
        ([("image", ("a.png", PNG)), ("markup", ("m.png", PNG))], {}, "markup"),
    ],
)
def test_a_form_that_is_not_in_order_is_refused(
    gateway: RunningGateway, files: Any, data: dict[str, str], param: str
) -> None:
    customer = gateway.customer("5")
    fields = {"model": image_model(gateway), "prompt": PROMPT, **data}
    answer = gateway.http(customer).post(
        "/v1/images/edits",
        data=fields,
        files=files or [("user", (None, b"ada"))],
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


def test_a_body_that_is_no_form_is_refused(gateway: RunningGateway) -> None:
    answer = gateway.http(gateway.customer()).post(
        "/v1/images/edits", content=b"--x", headers={"content-type": "multipart/form-data; boundary=y"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_form")


def test_too_large_a_body_is_refused(gateway: RunningGateway) -> None:
    image = PNG + bytes(7 * 1024 * 1024)
    answer = gateway.http(gateway.customer()).post(
        "/v1/images/edits", data={"model": "m", "prompt": PROMPT}, files={"image": ("a.png", image)}
    )
    assert answer.status_code == 413


def test_images_carry_the_limits_in_their_headers(gateway: RunningGateway) -> None:
    customer = gateway.customer(requests_per_minute=5)
    answer = gateway.http(customer).post(
        "/v1/images/generations", json={"model": image_model(gateway), "prompt": PROMPT}
    )
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"


@pytest.mark.parametrize("edits", [False, True])
def test_another_wire_answers_in_the_same_shape(gateway: RunningGateway, *, edits: bool) -> None:
    """Gemini's images take what it is told that they may: its bound goes with the call."""
    customer = gateway.customer("5")
    prices = {"input": "0.3", "output": "2.5", "image_output": "30"}
    base_url = gateway.simulator.base_url.replace("/v1", "/gemini/v1beta")
    model = image_model(
        gateway, "image", provider="gemini", base_url=base_url, prices=prices, output=("text", "image")
    )
    images = gateway.openai(customer).images
    made = (
        images.edit(model=model, prompt=PROMPT, image=PNG)
        if edits
        else images.generate(model=model, prompt=PROMPT)
    )
    assert made.data is not None
    assert made.data[0].b64_json
    [row] = gateway.requests(customer)
    assert row["images"] == 1
    assert row["image_output_tokens"] > 0
    assert 0 < money(row["charge_usd"]) <= money(row["hold_usd"])


def test_who_calls_is_left_out_where_it_can_not_be_told_and_that_is_said(gateway: RunningGateway) -> None:
    client = gateway.openai(gateway.customer("5"))
    base_url = gateway.simulator.base_url.replace("/v1", "/gemini/v1beta")
    gemini: dict[str, Any] = {"provider": "gemini", "base_url": base_url}
    image = image_model(gateway, "image", output=("text", "image"), **gemini)
    embedding = gateway.model("echo", output=("embedding",), **gemini)
    made = client.images.with_raw_response.generate(model=image, prompt=PROMPT, user="u")
    embedded = client.embeddings.with_raw_response.create(model=embedding, input=PROMPT, user="u")
    for answer in (made, embedded):
        assert answer.headers["x-gateway-dropped-parameters"] == "user"
    assert made.parse().data
    assert embedded.parse().data


@pytest.mark.parametrize("stream", [False, True])
def test_an_image_in_a_chat_is_paid_for_whether_or_not_its_tokens_are_told(
    gateway: RunningGateway, *, stream: bool
) -> None:
    prices = {"input": "0.3", "output": "2.5", "image_output": "30"}
    base_url = gateway.simulator.base_url.replace("/v1", "/gemini/v1beta")
    offer: dict[str, Any] = {"provider": "gemini", "base_url": base_url, "prices": prices}
    for behaviour, estimated in (("image", False), ("image+no-usage", True)):
        customer = gateway.customer("5")
        model = image_model(gateway, behaviour, output=("text", "image"), context_length=65_536, **offer)
        body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": stream}
        answer = gateway.http(customer).post(
            "/v1/chat/completions", json={**body, "modalities": ["text", "image"], "max_tokens": 4096}
        )
        assert "data:image/png;base64," in answer.text
        [row] = gateway.requests(customer)
        assert (row["usage_estimated"], row["images"]) == (estimated, 1)
        assert row["image_output_tokens"] == 1290
        assert 1290 * 30 * BY_TOKEN < money(row["charge_usd"]) <= money(row["hold_usd"])
