"""Embeddings through the official SDK: charged by what was sent, held by what it can't exceed."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import openai
import pytest

from infra.local.simulator.answers import count_tokens
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway
from tests.fixtures.wire import MARKUP, money, nothing_is_left_held

if TYPE_CHECKING:
    from tests.fixtures.simulator import Simulator

__all__ = ["gateway", "module_gateway", "nothing_is_left_held"]

PRICES = {"input": "0.13", "output": "0"}
TEXTS = ["The quick brown fox", "jumps over", "日本語のテキスト"]


def embedding_model(gateway: RunningGateway, behaviour: str = "echo", **given: Any) -> str:
    given = {"prices": PRICES, "context_length": 8191, "max_output_tokens": None, **given}
    return gateway.model(behaviour, output=("embedding",), **given)


def due(tokens: int) -> Decimal:
    return tokens * Decimal("0.13") / 1_000_000 * MARKUP


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        (TEXTS[0], count_tokens(TEXTS[0])),
        (TEXTS, sum(map(count_tokens, TEXTS))),
        ([1, 2, 3], 3),
        ([[1, 2, 3], [4]], 4),
    ],
)
def test_an_embedding_costs_what_was_sent(gateway: RunningGateway, given: Any, tokens: int) -> None:
    customer = gateway.customer("1")
    made = gateway.openai(customer).embeddings.create(
        model=embedding_model(gateway), input=given, dimensions=16, encoding_format="float"
    )
    count = len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1
    assert [len(entry.embedding) for entry in made.data] == [16] * count
    assert made.usage.prompt_tokens == tokens
    [row] = gateway.requests(customer)
    assert (row["endpoint"], row["input_tokens"], row["output_tokens"]) == ("embeddings", tokens, 0)
    assert money(row["charge_usd"]) == due(tokens)
    assert money(row["charge_usd"]) <= money(row["hold_usd"])
    assert gateway.balance(customer) == (1 - due(tokens), 0)
    spent = made.model_extra and made.model_extra["gateway_usage"]
    assert spent
    assert Decimal(spent["charge_usd"]) == due(tokens)


def test_base64_is_the_same_numbers(gateway: RunningGateway) -> None:
    customer = gateway.customer()
    model = embedding_model(gateway)
    client = gateway.openai(customer)
    # Without a format the SDK asks for base64, and decodes it.
    packed = client.embeddings.create(model=model, input=TEXTS)
    plain = client.embeddings.create(model=model, input=TEXTS, encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)


def test_a_batch_beyond_the_context_of_one_text_is_held_for_whole(gateway: RunningGateway) -> None:
    customer = gateway.customer()
    texts = ["word " * 60] * 200
    gateway.openai(customer).embeddings.create(model=embedding_model(gateway), input=texts)
    [row] = gateway.requests(customer)
    assert row["input_tokens"] > 8191
    assert money(row["charge_usd"]) <= money(row["hold_usd"])


def test_untold_usage_is_counted(gateway: RunningGateway) -> None:
    customer = gateway.customer()
    made = gateway.openai(customer).embeddings.create(model=embedding_model(gateway, "no-usage"), input=TEXTS)
    tokens = sum(map(count_tokens, TEXTS))
    assert made.usage.prompt_tokens == made.usage.total_tokens == tokens
    [row] = gateway.requests(customer)
    assert row["usage_estimated"]
    assert money(row["charge_usd"]) == due(tokens)


@pytest.mark.parametrize(
    ("behaviour", "status"), [("status-500", 502), ("status-401", 502), ("malformed", 502), ("cut", 502)]
)
def test_a_failure_is_free(gateway: RunningGateway, behaviour: str, status: int) -> None:
    customer = gateway.customer("1")
    with pytest.raises(openai.APIStatusError) as caught:
        gateway.openai(customer).embeddings.create(model=embedding_model(gateway, behaviour), input="x")
    assert caught.value.status_code == status
    assert gateway.balance(customer) == (1, 0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input.1"),
        ({"input": ["a", 1]}, "input.1"),
        ({"input": [[1], []]}, "input.1"),
        ({"input": [-1]}, "input.0"),
        ({"input": [True]}, "input"),
        ({"input": {"text": "x"}}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"prompt_name": "query"}, "prompt_name"),
    ],
)
def test_invalid_input_names_its_field(
    gateway: RunningGateway, simulator: Simulator, fields: dict[str, Any], param: str
) -> None:
    body = {"model": embedding_model(gateway), "input": "x", **fields}
    answer = gateway.http(gateway.customer()).post("/v1/embeddings", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert not simulator.calls.all()


def test_a_repeated_key_is_not_charged_again(gateway: RunningGateway) -> None:
    customer = gateway.customer()
    model = embedding_model(gateway)
    client = gateway.openai(customer)
    headers = {"idempotency-key": "once"}
    client.embeddings.create(model=model, input="x", extra_headers=headers)
    with pytest.raises(openai.ConflictError):
        client.embeddings.create(model=model, input="x", extra_headers=headers)
    charged = [row for row in gateway.requests(customer) if money(row["charge_usd"]) > 0]
    assert len(charged) == 1


def test_a_provider_that_is_away_gives_way_to_the_next(gateway: RunningGateway) -> None:
    customer = gateway.customer()
    model = embedding_model(gateway, base_url="http://127.0.0.1:9/v1", priority=1)
    gateway.service(model, priority=2)
    gateway.openai(customer).embeddings.create(model=model, input="x")
    [row] = gateway.requests(customer)
    assert len({failed["route_id"] for failed in row["failed_routes"]}) == 1
    assert money(row["charge_usd"]) == due(1)
