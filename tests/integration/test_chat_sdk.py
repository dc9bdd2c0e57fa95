"""Chat completions through the official openai SDK, over real sockets."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import openai
import pytest

from gateway.schemas.answers.chat import Pricing
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["gateway", "module_gateway"]

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
MARKUP = Decimal("1.05")
WEATHER: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


def charge(prompt: int, completion: int, *, cached: int = 0) -> Decimal:
    """By hand, at the fixtures' prices: 0.50, 0.05 cached, 1.50 USD per million, and 5 %."""
    exact = (
        (prompt - cached) * Decimal("0.50") + cached * Decimal("0.05") + completion * Decimal("1.50")
    ) / Decimal(1_000_000)
    return exact * MARKUP


def test_answer_is_charged_to_the_last_digit(gateway: RunningGateway) -> None:
    model = gateway.model("echo")
    customer = gateway.customer("1")
    answer = gateway.openai(customer).chat.completions.create(model=model, messages=HELLO)
    assert answer.choices[0].message.content == "You said: Hello"
    assert answer.usage is not None
    due = charge(answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert gateway.balance(customer) == (1 - due, 0)
    told = answer.model_extra["gateway_usage"] if answer.model_extra else {}
    assert Decimal(told["charge_usd"]) == due
    assert Decimal(told["balance_after_usd"]) == 1 - due
    assert told["tokens_charged"] == answer.usage.total_tokens
    assert told["user_api_key"] == customer.key[:9] + "…"
    row = gateway.request(told["request_id"])
    assert row["state"] == "settled"
    assert row["outcome"] == "succeeded"
    assert not row["usage_estimated"]
    assert gateway.books_add_up()


def test_stream_without_include_usage_is_openais_chunks_and_nothing_else(gateway: RunningGateway) -> None:
    model = gateway.model("echo")
    customer = gateway.customer("1")
    with gateway.http(customer).stream(
        "POST", "/v1/chat/completions", json={"model": model, "messages": HELLO, "stream": True}
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert "usage" not in "".join(lines)
    row = gateway.request(response.headers["x-request-id"])
    assert Decimal(str(row["charge_usd"])) == charge(row["input_tokens"], row["output_tokens"])
    assert row["charge_usd"] > 0
    assert row["time_to_first_token_ms"] is not None


def test_stream_with_include_usage_ends_with_usage_and_the_gateways_own(gateway: RunningGateway) -> None:
    model = gateway.model("echo")
    customer = gateway.customer("1")
    chunks = list(
        gateway.openai(customer).chat.completions.create(
            model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "You said: Hello"
    last = chunks[-1]
    assert last.choices == []
    assert last.usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert last.model_extra is not None
    due = charge(last.usage.prompt_tokens, last.usage.completion_tokens)
    assert Decimal(last.model_extra["gateway_usage"]["charge_usd"]) == due
    assert gateway.balance(customer) == (1 - due, 0)


@pytest.mark.parametrize("behaviour", ["usage-each", "usage-last"])
def test_usage_is_found_wherever_a_provider_puts_it(gateway: RunningGateway, behaviour: str) -> None:
    customer = gateway.customer("1")
    stream = gateway.openai(customer).chat.completions.create(
        model=gateway.model(behaviour), messages=HELLO, stream=True
    )
    assert all(chunk.usage is None for chunk in stream)
    [row] = gateway.requests(customer)
    assert not row["usage_estimated"]
    assert row["input_tokens"] > 0
    assert row["output_tokens"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_missing_usage_is_counted_and_marked(gateway: RunningGateway, *, stream: bool) -> None:
    known, silent = gateway.customer("1"), gateway.customer("1")
    for customer, behaviour in ((known, "echo"), (silent, "no-usage")):
        answer: Any = gateway.openai(customer).chat.completions.create(
            model=gateway.model(behaviour), messages=HELLO, stream=stream
        )
        if stream:
            list(answer)
        else:
            assert answer.usage.total_tokens > 0
    [told], [counted] = gateway.requests(known), gateway.requests(silent)
    assert counted["usage_estimated"]
    assert not told["usage_estimated"]
    # The simulator counts by tiktoken too: the estimate is the truth.
    assert (counted["input_tokens"], counted["output_tokens"]) == (
        told["input_tokens"],
        told["output_tokens"],
    )
    assert counted["charge_usd"] == told["charge_usd"]


def test_missing_usage_is_told_in_a_stream_that_asked(gateway: RunningGateway) -> None:
    *_, last = gateway.openai(gateway.customer()).chat.completions.create(
        model=gateway.model("no-usage"),
        messages=HELLO,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens > 0


def test_cached_tokens_are_charged_at_their_own_price(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    answer = gateway.openai(customer).chat.completions.create(
        model=gateway.model("cached-4"), messages=[{"role": "user", "content": "Hello " * 40}]
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert cached == 4
    due = charge(answer.usage.prompt_tokens, answer.usage.completion_tokens, cached=4)
    assert gateway.balance(customer)[0] == 1 - due


def test_reasoning_is_inside_the_output(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    answer = gateway.openai(customer).chat.completions.create(
        model=gateway.model("reasoning-24"), messages=HELLO
    )
    [row] = gateway.requests(customer)
    assert row["reasoning_tokens"] == 24
    assert answer.usage is not None
    assert row["output_tokens"] == answer.usage.completion_tokens > 24
    assert gateway.balance(customer)[0] == 1 - charge(row["input_tokens"], row["output_tokens"])


@pytest.mark.parametrize("stream", [False, True])
def test_tools_pass_through_both_ways(gateway: RunningGateway, *, stream: bool) -> None:
    client = gateway.openai(gateway.customer())
    model = gateway.model("tools-parallel")
    tools = [*WEATHER, {"type": "function", "function": {"name": "get_time"}}]
    if stream:
        names: dict[int, str] = {}
        arguments: dict[int, str] = {}
        for chunk in client.chat.completions.create(model=model, messages=HELLO, tools=tools, stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                assert call.function is not None
                names[call.index] = names.get(call.index, "") + (call.function.name or "")
                arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
        assert set(names.values()) == {"get_weather", "get_time"}
        assert '"city"' in "".join(arguments.values())
    else:
        answer = client.chat.completions.create(model=model, messages=HELLO, tools=tools)
        calls: Any = answer.choices[0].message.tool_calls
        assert {call.function.name for call in calls} == {"get_weather", "get_time"}
        assert answer.choices[0].finish_reason == "tool_calls"


def test_whole_body_reaches_the_provider(gateway: RunningGateway) -> None:
    customer = gateway.customer()
    gateway.openai(customer).chat.completions.create(
        model=gateway.model("echo"),
        messages=HELLO,
        seed=7,
        logprobs=True,
        response_format={"type": "json_object"},
        extra_body={"some_new_field": {"deep": [1, 2, 3]}},
        max_tokens=20,
    )
    [sent] = gateway.simulator.calls.all()
    assert sent.body["seed"] == 7
    assert sent.body["logprobs"] is True
    assert sent.body["response_format"] == {"type": "json_object"}
    assert sent.body["some_new_field"] == {"deep": [1, 2, 3]}
    assert sent.body["max_tokens"] == 20


def test_bound_goes_upstream_where_the_client_named_none(gateway: RunningGateway) -> None:
    gateway.openai(gateway.customer("1")).chat.completions.create(
        model=gateway.model("echo", max_output_tokens=333), messages=HELLO
    )
    [sent] = gateway.simulator.calls.all()
    assert sent.body["max_tokens"] == 333


def test_poor_customers_answer_is_cut_short_rather_than_unpaid(gateway: RunningGateway) -> None:
    # After the input's bound there is money for some sixty tokens.
    customer = gateway.customer("0.0002")
    answer = gateway.openai(customer).chat.completions.create(
        model=gateway.model("long-4000"), messages=HELLO
    )
    assert answer.choices[0].finish_reason == "length"
    balance, held = gateway.balance(customer)
    assert balance >= 0
    assert held == 0
    [row] = gateway.requests(customer)
    assert row["uncollected_usd"] == 0
    assert row["output_tokens"] == row["output_tokens_bound"]


def test_typed_errors_of_the_sdk(gateway: RunningGateway) -> None:
    model = gateway.model("echo")
    rich = gateway.customer("1")
    client = gateway.openai(rich)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no/such-model", messages=HELLO)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(
            base_url=f"{gateway.url}/v1", api_key="sk_wrong", max_retries=0
        ).chat.completions.create(model=model, messages=HELLO)
    poor = gateway.customer(None)
    with pytest.raises(openai.APIStatusError) as refused:
        # With retries on: the gateway has to tell the SDK not to.
        gateway.openai(poor, max_retries=2).chat.completions.create(model=model, messages=HELLO)
    assert refused.value.status_code == 402
    assert refused.value.code == "insufficient_credits"
    assert refused.value.response.headers["x-should-retry"] == "false"
    limited = gateway.customer("1", requests_per_minute=1)
    gateway.openai(limited).chat.completions.create(model=model, messages=HELLO)
    with pytest.raises(openai.RateLimitError) as late:
        gateway.openai(limited).chat.completions.create(model=model, messages=HELLO)
    assert 1 <= int(late.value.response.headers["retry-after"]) <= 60
    assert late.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model=model, messages=[])


def test_402_says_what_could_be_served(gateway: RunningGateway) -> None:
    model = gateway.model("echo")
    customer = gateway.customer("0.001")
    client = gateway.openai(customer)
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model=model, messages=HELLO, max_tokens=4000)
    message = refused.value.message
    affordable = int(message.split("at most ")[1].split()[0])
    client.chat.completions.create(model=model, messages=HELLO, max_tokens=affordable)
    with pytest.raises(openai.APIStatusError):
        # One more would have been too many, had the first not been charged less than its bound.
        gateway.openai(gateway.customer("0.001")).chat.completions.create(
            model=model, messages=HELLO, max_tokens=affordable + 1
        )


def test_models_are_listed_as_openai_lists_them(gateway: RunningGateway) -> None:
    model = gateway.model("echo")
    client = gateway.openai(gateway.customer())
    assert model in {found.id for found in client.models.list()}
    found = client.models.retrieve(model)
    extra = found.model_extra or {}
    assert extra["context_length"] == 128_000
    assert extra["input_modalities"] == ["text"]
    # What the customer pays for one token: 0.50 USD per million and 5 %.
    assert Decimal(extra["pricing"]["prompt"]) == Decimal("0.000000525")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such-model")
    names = gateway.http().get("/models/simple").json()["models"]
    assert model in names


def test_long_prompts_are_priced_as_openrouter_lists_them_and_charged_so(gateway: RunningGateway) -> None:
    model = gateway.model("echo")
    prices = (
        '{"input": "1", "cached_input": "0.1", "output": "2", "tiers": ['
        '{"above_input_tokens": 20, "input": "10", "cached_input": "1", "output": "20"},'
        '{"above_input_tokens": 5, "input": "3", "cached_input": "0.3", "output": "4"}]}'
    )
    gateway.connection.execute(
        "select api.create_price(p_model => m.name, p_provider => o.provider, p_prices => %s::jsonb)"
        " from gateway.models as m join gateway.offers as o on o.model_id = m.id where m.name = %s",
        [prices, model],
    )
    client = gateway.openai(gateway.customer())
    pricing = Pricing.model_validate((client.models.retrieve(model).model_extra or {})["pricing"])
    assert (pricing.prompt, pricing.completion) == ("0.00000105", "0.0000021")
    # each by the commission of 5 %; those with more prompt tokens than that
    assert [each.model_dump(exclude_unset=True) for each in pricing.overrides] == [
        {
            "min_prompt_tokens": 5,
            "prompt": "0.00000315",
            "completion": "0.0000042",
            "input_cache_read": "0.000000315",
        },
        {
            "min_prompt_tokens": 20,
            "prompt": "0.0000105",
            "completion": "0.000021",
            "input_cache_read": "0.00000105",
        },
    ]
    costs = []
    for words in ("Hello", "Hello " * 40):
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": words}])
        assert answer.usage is not None
        charged = (answer.model_extra or {})["gateway_usage"]["cost_usd"]
        costs.append((answer.usage.prompt_tokens, answer.usage.completion_tokens, Decimal(charged)))
    (short, short_answer, short_cost), (long, long_answer, long_cost) = costs
    assert 5 < short <= 20 < long
    assert short_cost == (short * 3 + short_answer * 4) * Decimal("0.000001")
    assert long_cost == (long * 10 + long_answer * 20) * Decimal("0.000001")


def test_key_sees_and_uses_only_its_models(gateway: RunningGateway) -> None:
    allowed, other = gateway.model("echo"), gateway.model("echo")
    row = gateway.connection.execute("select id from gateway.models where name = %s", [allowed]).fetchone()
    assert row is not None
    client = gateway.openai(gateway.customer(p_allowed_models=[row[0]]))
    assert [found.id for found in client.models.list()] == [allowed]
    client.chat.completions.create(model=allowed, messages=HELLO)
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(model=other, messages=HELLO)


def test_fallback_over_models_and_routes(gateway: RunningGateway) -> None:
    good = gateway.model("echo")
    for behaviour in ("status-500", "status-503", "status-429", "status-408"):
        customer = gateway.customer()
        answer = gateway.openai(customer).chat.completions.create(
            model=gateway.model(behaviour), messages=HELLO, extra_body={"models": [good]}
        )
        assert answer.choices[0].message.content == "You said: Hello"
        [row] = gateway.requests(customer)
        assert row["outcome"] == "succeeded"
        assert row["failed_routes"][0]["status"] == int(behaviour[-3:])
    # A second service of the same model stands in where the first can't be reached.
    name = gateway.model("echo", base_url="http://127.0.0.1:9/v1", priority=1)
    gateway.service(name, priority=2)
    chunks = gateway.openai(gateway.customer()).chat.completions.create(
        model=name, messages=HELLO, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: Hello"


def test_clients_own_fault_is_told_and_not_retried_elsewhere(gateway: RunningGateway) -> None:
    good = gateway.model("echo")
    customer = gateway.customer("1")
    with pytest.raises(openai.BadRequestError):
        gateway.openai(customer).chat.completions.create(
            model=gateway.model("status-400"), messages=HELLO, extra_body={"models": [good]}
        )
    assert len(gateway.simulator.calls.all()) == 1
    assert gateway.balance(customer) == (1, 0)


def test_providers_401_is_the_operators_and_names_no_key(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    with pytest.raises(openai.InternalServerError) as failed:
        gateway.openai(customer).chat.completions.create(model=gateway.model("status-401"), messages=HELLO)
    assert failed.value.status_code == 502
    assert gateway.simulator.key not in failed.value.response.text
    assert gateway.simulator.base_url not in failed.value.response.text
    assert gateway.balance(customer) == (1, 0)


@pytest.fixture(autouse=True)
def nothing_is_left_held(gateway: RunningGateway) -> Iterator[None]:
    yield
    held = gateway.connection.execute("select sum(held_usd) from gateway.accounts").fetchone()
    assert held is not None
    assert held[0] in {None, Decimal(0)}
    assert gateway.books_add_up()
