"""The Messages API through the official anthropic SDK, over models of OpenAI's wire and of Anthropic's."""

from __future__ import annotations

import json
from decimal import ROUND_UP, Decimal
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from tests.fixtures import contract
from tests.fixtures.certificates import authorities
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway, serve
from tests.fixtures.wire import MARKUP, RawClient, RawProvider, money, nothing_is_left_held, settled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infra.local.postgrest import PostgRest
    from tests.fixtures.database import Database
    from tests.fixtures.gateway import Customer

__all__ = ["gateway", "module_gateway", "nothing_is_left_held"]

MESSAGES = "/v1/messages"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WIRES = ["openai-compatible", "anthropic"]
PRICES = {"input": "0.50", "cached_input": "0.05", "cache_write": "0.625", "output": "1.50"}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PIXEL_DIGEST = "sha256:38db2b7dfdf1c5c1"
WEATHER: list[Any] = [
    {
        "name": "get_weather",
        "description": "Tells the weather.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
TIME: list[Any] = [
    {"name": "get_time", "input_schema": {"type": "object", "properties": {"zone": {"type": "string"}}}}
]


def sdk(gateway: RunningGateway, customer: Customer, **options: Any) -> anthropic.Anthropic:
    """The official SDK, pointed here; it does not retry unless a test asks it to."""
    checked = anthropic.DefaultHttpxClient(verify=authorities(), event_hooks={"response": [contract.check]})
    client = anthropic.Anthropic(
        base_url=gateway.url,
        **{"api_key": customer.key, "max_retries": 0, "timeout": 30, "http_client": checked, **options},
    )
    return gateway.clients.enter_context(client)


def model(gateway: RunningGateway, wire: str, behaviour: str, **options: Any) -> str:
    base_url = gateway.simulator.base_url
    if wire == "anthropic":
        base_url = base_url.removesuffix("/v1") + "/anthropic/v1"
    return gateway.model(behaviour, provider=wire, **{"base_url": base_url, "prices": PRICES, **options})


def charge(usage: Any) -> Decimal:
    """By hand, of Anthropic's usage: at the prices above and 5 %, rounded up at the tenth decimal."""
    exact: Decimal = (
        usage.input_tokens * Decimal(PRICES["input"])
        + (usage.cache_read_input_tokens or 0) * Decimal(PRICES["cached_input"])
        + (usage.cache_creation_input_tokens or 0) * Decimal(PRICES["cache_write"])
        + usage.output_tokens * Decimal(PRICES["output"])
    )
    return (exact / Decimal(1_000_000) * MARKUP).quantize(Decimal("1e-10"), ROUND_UP)


def told(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_extra["gateway_usage"]
    return found


def streamed(client: anthropic.Anthropic, **request: Any) -> tuple[Any, list[Any]]:
    """The message that the SDK puts together, and the events that it was made of."""
    with client.messages.stream(**request) as stream:
        events = list(stream)
        return stream.get_final_message(), events


def content(answer: Any) -> list[dict[str, Any]]:
    """Blocks as JSON, without the ids of calls, which differ from call to call."""
    blocks = [block.to_dict() for block in answer.content]
    return [
        {
            name: value
            for name, value in block.items()
            if value is not None and not (name == "id" and block["type"] == "tool_use")
        }
        for block in blocks
    ]


@pytest.mark.parametrize("wire", WIRES)
def test_answer_is_charged_to_the_last_digit(gateway: RunningGateway, wire: str) -> None:
    name = model(gateway, wire, "echo")
    customer = gateway.customer("1")
    answer = sdk(gateway, customer).messages.create(model=name, max_tokens=100, messages=HELLO)
    assert content(answer) == [{"type": "text", "text": "You said: Hello"}]
    assert answer.stop_reason == "end_turn"
    assert answer.role == "assistant"
    due = charge(answer.usage)
    assert due > 0
    assert gateway.balance(customer) == (1 - due, 0)
    assert Decimal(told(answer)["charge_usd"]) == due
    assert told(answer)["tokens_charged"] == answer.usage.input_tokens + answer.usage.output_tokens
    row = gateway.request(told(answer)["request_id"])
    assert (row["endpoint"], row["outcome"], row["streamed"]) == ("messages", "succeeded", False)
    assert row["finish_reason"] == "stop"
    assert answer._request_id == told(answer)["request_id"]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("behaviour", "fields"),
    [
        ("echo", {}),
        ("echo", {"system": "Be brief.", "stop_sequences": ["x"], "metadata": {"user_id": "u" * 80}}),
        ("long-50", {"max_tokens": 20}),
        ("reasoning-30", {}),
        ("cached-4", {}),
        ("cache-write-5", {}),
        ("filtered", {}),
        ("echo", {"tools": WEATHER}),
        ("tools-parallel", {"tools": WEATHER + TIME}),
        ("tools-parallel", {"tools": WEATHER + TIME, "tool_choice": {"type": "any"}}),
        ("echo", {"tools": WEATHER + TIME, "tool_choice": {"type": "tool", "name": "get_time"}}),
        (
            "tools-parallel",
            {"tools": WEATHER + TIME, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        ("echo", {"tools": WEATHER, "max_tokens": 6}),
        ("echo", {"tools": WEATHER, "tool_choice": {"type": "none"}}),
        ("reasoning-10+tools-parallel", {"tools": WEATHER + TIME}),
        (
            "echo",
            {
                "output_config": {
                    "format": {
                        "type": "json_schema",
                        "schema": {
                            "type": "object",
                            "properties": {"a": {"type": "integer"}},
                            "required": ["a"],
                            "additionalProperties": False,
                        },
                    }
                }
            },
        ),
    ],
)
def test_streamed_and_plain_answers_are_the_same_message_usage_and_charge(
    gateway: RunningGateway, wire: str, behaviour: str, fields: dict[str, Any]
) -> None:
    name = model(gateway, wire, behaviour)
    customer = gateway.customer("1")
    client = sdk(gateway, customer)
    request = {"model": name, "max_tokens": 200, "messages": HELLO, **fields}
    plain = client.messages.create(**request)
    final, events = streamed(client, **request)
    assert content(final) == content(plain)
    assert (final.stop_reason, final.stop_sequence) == (plain.stop_reason, plain.stop_sequence)
    assert charge(final.usage) == charge(plain.usage)
    rows = settled(gateway, customer, 2)
    assert [money(row["charge_usd"]) for row in rows] == [charge(plain.usage)] * 2
    assert gateway.balance(customer) == (1 - 2 * charge(plain.usage), 0)
    [last] = [event for event in events if event.type == "message_delta"]
    assert Decimal(told(last)["charge_usd"]) == charge(plain.usage)
    # One block at a time, from its start to its stop.
    order = [
        (event.type, event.index)
        for event in events
        if event.type in {"content_block_start", "content_block_stop"}
    ]
    expected = [
        (kind, index)
        for index in range(len(plain.content))
        for kind in ("content_block_start", "content_block_stop")
    ]
    assert order == expected


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("behaviour", "fields", "reason"),
    [
        ("echo", {}, "end_turn"),
        ("long-50", {"max_tokens": 20}, "max_tokens"),
        ("echo", {"tools": WEATHER}, "tool_use"),
        ("filtered", {}, "refusal"),
    ],
)
def test_stop_reasons(
    gateway: RunningGateway, wire: str, behaviour: str, fields: dict[str, Any], reason: str
) -> None:
    name = model(gateway, wire, behaviour)
    client = sdk(gateway, gateway.customer("1"))
    answer = client.messages.create(**{"model": name, "max_tokens": 100, "messages": HELLO, **fields})
    assert answer.stop_reason == reason


def test_stop_sequence_is_told_where_anthropic_tells_it(gateway: RunningGateway) -> None:
    name = model(gateway, "anthropic", "echo")
    client = sdk(gateway, gateway.customer("1"))
    answer = client.messages.create(model=name, max_tokens=100, messages=HELLO, stop_sequences=["said"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "said")


@pytest.mark.parametrize("wire", WIRES)
def test_a_conversation_with_tools_arrives_whole_and_in_order(gateway: RunningGateway, wire: str) -> None:
    """The model lists what it was given: every text, image, call and result."""
    client = sdk(gateway, gateway.customer("1"))
    name = model(gateway, wire, "inventory")
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    conversation: list[Any] = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look.", "cache_control": {"type": "ephemeral"}},
                image,
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I ask."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Bergen"}},
                {"type": "tool_use", "id": "toolu_2", "name": "get_time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Rain"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "content": [{"type": "text", "text": "Clock broken"}],
                    "is_error": True,
                },
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    answer = client.messages.create(
        model=name,
        max_tokens=1000,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=conversation,
        tools=WEATHER + TIME,
    )
    [block] = answer.content
    assert block.type == "text"
    given = json.loads(block.text)
    assert [
        piece for piece in given if "text" in piece and "tool" not in piece and piece["role"] != "tool"
    ] == [
        {"role": "system", "text": "Be brief."},
        {"role": "user", "text": "Look."},
        {"role": "assistant", "text": "I ask."},
        {"role": "user", "text": "And now?"},
    ]
    assert [piece["image"] for piece in given if "image" in piece][1] == "https://example.org/a.png"
    assert sum("image" in piece for piece in given) == 2
    assert [(piece["call"], piece["arguments"]) for piece in given if "call" in piece] == [
        ("get_weather", {"city": "Bergen"}),
        ("get_time", {}),
    ]
    results = [(piece["tool"], piece["text"]) for piece in given if "tool" in piece]
    assert results[0] == ("get_weather", "Rain")
    assert results[1][0] == "get_time"
    assert "Clock broken" in results[1][1]


def test_images_of_a_tool_result_reach_a_model_whose_tools_answer_in_text(gateway: RunningGateway) -> None:
    client = sdk(gateway, gateway.customer("1"))
    name = model(gateway, "openai-compatible", "inventory")
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    answer = client.messages.create(
        model=name,
        max_tokens=1000,
        messages=[
            *HELLO,
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [image]}],
            },
        ],
        tools=WEATHER,
    )
    [block] = answer.content
    assert block.type == "text"
    given = json.loads(block.text)
    kinds = [piece["role"] if "image" not in piece else "image" for piece in given]
    assert kinds.index("image") > max(i for i, piece in enumerate(given) if "tool" in piece)


@anthropic.beta_tool
def get_weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: Where.
    """
    return f"Rain in {city}"


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("streams", [False, True])
def test_the_sdk_runs_a_loop_of_tools(gateway: RunningGateway, wire: str, *, streams: bool) -> None:
    """It asks for a thread that the server keeps, and goes on without one where it is told of none."""
    customer = gateway.customer("1")
    client = sdk(gateway, customer)
    runner = client.beta.messages.tool_runner(
        model=model(gateway, wire, "echo"),
        max_tokens=200,
        messages=HELLO,
        tools=[get_weather],
        stream=streams,
    )
    last: Any = runner.until_done()
    assert (last.stop_reason, last.content[0].text) == ("end_turn", "You said: Rain in example")
    assert len(settled(gateway, customer, 2)) == gateway.simulator.calls.count() == 2


def test_a_thread_is_refused_in_the_words_that_clients_know(gateway: RunningGateway) -> None:
    """What a provider keeps under the gateway's own key, other customers' clients could go on with."""
    customer = gateway.customer("1")
    name = model(gateway, "anthropic", "echo")
    body = {"model": name, "max_tokens": 10, "messages": HELLO}
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        with pytest.raises(anthropic.types.ThreadUnsupportedRequestError) as caught:
            sdk(gateway, customer).post(MESSAGES, body={**body, "thread": thread}, cast_to=object)
        assert caught.value.details.error_code == "thread_unsupported_request"
    assert gateway.simulator.calls.count() == 0
    assert gateway.http(customer).post(MESSAGES, json={**body, "thread": None}).status_code == 200


def sent(gateway: RunningGateway) -> dict[str, Any]:
    """The body of the provider's last call."""
    body: dict[str, Any] = gateway.simulator.calls.last().body
    return body


def test_anthropic_is_sent_what_the_client_said_and_nothing_else(gateway: RunningGateway) -> None:
    """Documents, citations, marks for caching, thoughts with their signatures: all as it is."""
    customer = gateway.customer("1")
    client = sdk(gateway, customer)
    name = model(gateway, "anthropic", "reasoning-10+tools-parallel")
    request: dict[str, Any] = {
        "max_tokens": 2048,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{**WEATHER[0], "cache_control": {"type": "ephemeral"}}],
        "metadata": {"user_id": "u" * 100},
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "document",
                        "source": {"type": "text", "media_type": "text/plain", "data": "It rains."},
                        "title": "Weather",
                        "citations": {"enabled": True},
                    },
                    {"type": "text", "text": "So?"},
                ],
            }
        ],
    }
    first = client.messages.create(model=name, **request)
    assert [block.type for block in first.content] == ["thinking", "tool_use"]
    asked = {**request, "model": "reasoning-10+tools-parallel", "stream": False}
    assert sent(gateway) == asked
    call = first.content[1]
    assert call.type == "tool_use"
    history = [
        *request["messages"],
        {"role": "assistant", "content": [block.to_dict() for block in first.content]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": call.id,
                    "content": [
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": PIXEL},
                        }
                    ],
                }
            ],
        },
    ]
    client.messages.create(model=name, **{**request, "messages": history})
    assert sent(gateway) == {**asked, "messages": history}


def test_thoughts_of_another_provider_come_back_to_it_and_never_reach_anthropic(
    gateway: RunningGateway,
) -> None:
    customer = gateway.customer("1")
    client = sdk(gateway, customer)
    name = model(gateway, "openai-compatible", "reasoning-10")
    first = client.messages.create(model=name, max_tokens=100, messages=HELLO)
    thought = first.content[0]
    assert thought.type == "thinking"
    assert thought.thinking
    history: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": [block.to_dict() for block in first.content]},
        {"role": "user", "content": "Go on"},
    ]
    client.messages.create(model=name, max_tokens=100, messages=history)
    assert sent(gateway)["messages"][1]["reasoning_content"] == thought.thinking
    native = model(gateway, "anthropic", "echo")
    client.messages.create(model=native, max_tokens=100, messages=history)
    [text] = sent(gateway)["messages"][1]["content"]
    assert text["type"] == "text"


def test_a_conversation_that_another_provider_began_goes_on_at_anthropic(gateway: RunningGateway) -> None:
    """The simulator is as strict as the API: about ids, texts of white space alone, and signatures."""
    client = sdk(gateway, gateway.customer("1"))
    began: list[Any] = [
        {"type": "thinking", "thinking": "Weather?", "signature": "gateway:reasoning_content"},
        {"type": "text", "text": "\n\n"},
        {"type": "tool_use", "id": "functions.get_weather:0", "name": "get_weather", "input": {}},
    ]
    answer = client.messages.create(
        model=model(gateway, "anthropic", "inventory"),
        max_tokens=100,
        messages=[
            *HELLO,
            {"role": "assistant", "content": began},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "functions.get_weather:0", "content": "Rain"}
                ],
            },
        ],
        tools=WEATHER,
    )
    [block] = answer.content
    assert block.type == "text"
    assert [piece for piece in json.loads(block.text) if piece["role"] != "user"] == [
        {"role": "assistant", "call": "get_weather", "arguments": {}},
        {"role": "tool", "tool": "get_weather", "text": "Rain"},
    ]


def test_gemini_goes_on_from_its_own_signatures(gateway: RunningGateway) -> None:
    """They come with its calls, and travel through the client in a block that it sends back."""
    base_url = gateway.simulator.base_url.removesuffix("/v1") + "/gemini/v1beta"
    name = gateway.model("reasoning-10+tools-parallel", provider="gemini", base_url=base_url, prices=PRICES)
    client = sdk(gateway, gateway.customer("1"))
    tools = WEATHER + TIME
    for answer in (
        client.messages.create(model=name, max_tokens=100, messages=HELLO, tools=tools),
        streamed(client, model=name, max_tokens=100, messages=HELLO, tools=tools)[0],
    ):
        blocks = [block.to_dict() for block in answer.content]
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": "Rain"}
            for block in blocks
            if block["type"] == "tool_use"
        ]
        assert len(results) == 2
        history: list[Any] = [
            *HELLO,
            {"role": "assistant", "content": blocks},
            {"role": "user", "content": results},
        ]
        client.messages.create(model=name, max_tokens=100, messages=history, tools=tools)
        first, second = sent(gateway)["contents"][1]["parts"]
        # Gemini signs the first of several calls. The documented stand-in would be the sign of a loss.
        assert len(first["thoughtSignature"]) > 40
        assert "thoughtSignature" not in second


def test_a_user_whom_a_provider_can_not_be_told_is_left_out_and_that_is_said(gateway: RunningGateway) -> None:
    base_url = gateway.simulator.base_url.removesuffix("/v1") + "/gemini/v1beta"
    name = gateway.model("echo", provider="gemini", base_url=base_url, prices=PRICES)
    body = {"model": name, "max_tokens": 10, "messages": HELLO, "metadata": {"user_id": "u"}}
    client = gateway.http(gateway.customer("1"))
    for streams in (False, True):
        response = client.post(MESSAGES, json={**body, "stream": streams})
        assert response.status_code == 200
        assert response.headers["x-gateway-dropped-parameters"] == "user"
    # What says something to the model is not: its setting is not set.
    wrong = client.post(
        MESSAGES,
        json={**body, "tools": WEATHER, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    )
    assert wrong.status_code == 400
    assert wrong.json()["error"]["details"]["error_code"] == "unsupported_parameter"


def test_a_fallback_to_another_wire_is_translated_within_the_request(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    name = "test/either-wire"
    gateway.call(
        "create_model",
        p_name=name,
        p_context_length=128_000,
        p_max_output_tokens=4096,
        p_offers=[
            {"provider": "anthropic", "upstream_model": "status-529", "prices": PRICES},
            {"provider": "openai-compatible", "upstream_model": "echo", "prices": PRICES},
        ],
    )
    base_url = gateway.simulator.base_url
    gateway.service(
        name, base_url=base_url.removesuffix("/v1") + "/anthropic/v1", priority=1, provider="anthropic"
    )
    gateway.service(name, base_url=base_url, priority=2)
    client = sdk(gateway, customer)
    answer = client.messages.create(model=name, max_tokens=100, messages=HELLO)
    assert content(answer) == [{"type": "text", "text": "You said: Hello"}]
    final, _ = streamed(client, model=name, max_tokens=100, messages=HELLO)
    assert content(final) == content(answer)
    rows = settled(gateway, customer, 2)
    assert all(row["failed_routes"] for row in rows)
    assert [money(row["charge_usd"]) for row in rows] == [charge(answer.usage)] * 2


# Errors


def refused(gateway: RunningGateway, customer: Customer, **request: Any) -> anthropic.APIStatusError:
    client = sdk(gateway, customer)
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(**{"max_tokens": 100, "messages": HELLO, **request})
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["request_id"] == caught.value.request_id == caught.value.response.headers["x-request-id"]
    return caught.value


def test_errors_are_the_sdks_own(gateway: RunningGateway) -> None:
    name = model(gateway, "openai-compatible", "echo")
    customer = gateway.customer("1")
    stranger = gateway.customer("1")
    unknown = refused(gateway, type(stranger)(0, stranger.key[:-1] + "x", 0, ""), model=name)
    assert isinstance(unknown, anthropic.AuthenticationError)
    assert unknown.type == "authentication_error"
    missing = refused(gateway, customer, model="no/such-model")
    assert isinstance(missing, anthropic.NotFoundError)
    assert (missing.type, missing.error_code) == ("not_found_error", "model_not_found")
    poor = refused(gateway, gateway.customer("0.0000001"), model=name)
    assert poor.status_code == 402
    assert (poor.type, poor.error_code) == ("billing_error", "insufficient_credits")
    invalid = refused(gateway, customer, model=name, max_tokens=0)
    assert isinstance(invalid, anthropic.BadRequestError)
    assert invalid.type == "invalid_request_error"
    assert str(invalid.api_message).startswith("max_tokens: ")
    hurried = gateway.customer("1", requests_per_minute=1)
    sdk(gateway, hurried).messages.create(model=name, max_tokens=100, messages=HELLO)
    limited = refused(gateway, hurried, model=name)
    assert isinstance(limited, anthropic.RateLimitError)
    assert limited.type == "rate_limit_error"
    assert int(limited.response.headers["retry-after"]) > 0
    other = model(gateway, "openai-compatible", "echo")
    row = gateway.connection.execute("select id from gateway.models where name = %s", [other]).fetchone()
    assert row is not None
    blocked = gateway.customer("1", p_allowed_models=[row[0]])
    forbidden = refused(gateway, blocked, model=name)
    assert isinstance(forbidden, anthropic.PermissionDeniedError)


FAILURES = [
    ("status-400", 400, "invalid_request_error"),
    ("too-long", 400, "invalid_request_error"),
    ("status-401", 502, "api_error"),
    ("status-429", 503, "overloaded_error"),
    ("status-500", 502, "api_error"),
    ("status-529", 503, "overloaded_error"),
]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("behaviour", "status", "kind", "streams"),
    [
        *((*failure, streams) for failure in FAILURES for streams in (False, True)),
        # A stream is malformed once it has begun.
        ("malformed", 502, "api_error", False),
    ],
)
def test_failures_of_a_provider_have_anthropics_shape_and_cost_nothing(
    gateway: RunningGateway, wire: str, behaviour: str, status: int, kind: str, *, streams: bool
) -> None:
    customer = gateway.customer("1")
    name = model(gateway, wire, behaviour)
    error = refused(gateway, customer, model=name, **({"stream": True} if streams else {}))
    assert (error.status_code, error.type) == (status, kind)
    assert gateway.balance(customer) == (1, 0)


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens"])
def test_errors_before_the_route_itself_have_its_shape_too(gateway: RunningGateway, path: str) -> None:
    customer = gateway.customer("1")
    client = gateway.http(customer)
    cases = [
        (client.post(path, content=b"{"), 400, "invalid_request_error"),
        (client.post(path, content=b"[]"), 400, "invalid_request_error"),
        (client.get(path), 405, "invalid_request_error"),
        (client.post(path, content=b"x" * 7_000_000), 413, "request_too_large"),
        (gateway.http().post(path, json={}), 401, "authentication_error"),
    ]
    for response, status, kind in cases:
        assert response.status_code == status
        body = response.json()
        assert set(body) == {"type", "error", "request_id"}
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"speed": "fast"}, "speed"),
    ({"container": "container_1"}, "container"),
    ({"mcp_servers": [{"type": "url", "url": "https://example.org", "name": "m"}]}, "mcp_servers"),
    ({"inference_geo": "us"}, "inference_geo"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
    ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, "tools.0"),
    ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management.edits.0.type"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
            ]
        },
        "messages.0.content.0.source",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]},
        "messages.0.content.0",
    ),
]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[param for _, param in REFUSED])
def test_what_has_another_price_or_reaches_the_gateways_own_files_is_refused(
    gateway: RunningGateway, wire: str, fields: dict[str, Any], param: str
) -> None:
    customer = gateway.customer("1")
    name = model(gateway, wire, "echo")
    body = {"model": name, "max_tokens": 100, "messages": HELLO, **fields}
    response = gateway.http(customer).post(MESSAGES, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["details"]["param"] == param
    assert gateway.requests(customer) == []
    assert gateway.simulator.calls.count() == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "document",
                                "source": {"type": "text", "media_type": "text/plain", "data": "x"},
                                "citations": {"enabled": True},
                            }
                        ],
                    }
                ]
            },
            "messages.0.content.0.citations",
        ),
    ],
)
def test_what_only_anthropic_knows_is_refused_by_name_for_others_and_not_charged(
    gateway: RunningGateway, fields: dict[str, Any], param: str
) -> None:
    customer = gateway.customer("1")
    name = model(gateway, "openai-compatible", "echo")
    body = {"model": name, "max_tokens": 100, "messages": HELLO, **fields}
    response = gateway.http(customer).post(MESSAGES, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["details"] == {"error_code": "unsupported_content", "param": param}
    assert gateway.balance(customer) == (1, 0)
    assert gateway.simulator.calls.count() == 0


# Headers


def test_headers_go_on_to_anthropic_where_they_change_no_price(gateway: RunningGateway) -> None:
    name = model(gateway, "anthropic", "echo")
    client = sdk(gateway, gateway.customer("1"))
    client.messages.create(
        model=name,
        max_tokens=100,
        messages=HELLO,
        extra_headers={
            "anthropic-beta": "interleaved-thinking-2025-05-14, fast-mode-2026-02-01,context-1m-2025-08-07"
        },
    )
    headers = gateway.simulator.calls.last().headers
    assert headers["anthropic-beta"] == "interleaved-thinking-2025-05-14"
    assert headers["anthropic-version"]
    assert headers["x-api-key"] == gateway.simulator.key


def test_a_bearer_token_does_as_well_and_no_version_is_demanded(gateway: RunningGateway) -> None:
    name = model(gateway, "anthropic", "echo")
    customer = gateway.customer("1")
    response = gateway.http(customer).post(
        MESSAGES, json={"model": name, "max_tokens": 10, "messages": HELLO}
    )
    assert response.status_code == 200
    assert "x-ratelimit-remaining-requests" in response.headers


# Streams that end otherwise


@pytest.mark.parametrize("wire", WIRES)
def test_an_error_inside_a_stream_is_anthropics_event_and_what_came_is_charged(
    gateway: RunningGateway, wire: str
) -> None:
    customer = gateway.customer("1")
    name = model(gateway, wire, "long-50+cut-12")
    client = sdk(gateway, customer)
    events: list[Any] = []
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        client.messages.stream(model=name, max_tokens=100, messages=HELLO) as stream,
    ):
        events += stream
    assert caught.value.type == "api_error"
    [row] = settled(gateway, customer)
    assert (row["outcome"], row["usage_estimated"]) == ("cut", True)
    assert row["output_tokens"] > 0
    assert gateway.balance(customer) == (1 - money(row["charge_usd"]), 0)


@pytest.mark.parametrize("path", [MESSAGES, "/v1/chat/completions"])
def test_a_cut_stream_is_charged_for_the_input_as_its_provider_told_it(
    gateway: RunningGateway, path: str
) -> None:
    """It is told at the start, by classes: what was read from a cache is not to be paid as if it were new."""
    customer = gateway.customer("1")
    name = model(gateway, "anthropic", "cached-4+cache-write-2+long-50+cut-12")
    body = {"model": name, "max_tokens": 100, "messages": HELLO, "stream": True}
    assert "error" in gateway.http(customer).post(path, json=body).text
    told = gateway.simulator.calls.last().usage
    [row] = settled(gateway, customer)
    assert (row["outcome"], row["usage_estimated"]) == ("cut", True)
    assert (row["input_tokens"], row["cached_input_tokens"], row["cache_write_tokens"]) == (
        told["input_tokens"],
        4,
        2,
    )
    assert 0 < row["output_tokens"] < told["output_tokens"]


@pytest.mark.parametrize("wire", WIRES)
def test_client_that_leaves_pays_what_was_streamed(gateway: RunningGateway, wire: str) -> None:
    customer = gateway.customer("1")
    name = model(gateway, wire, "long-50+hang-21")
    body = {"model": name, "max_tokens": 100, "messages": HELLO, "stream": True}
    client = RawClient(gateway.url).post(MESSAGES, body, x_api_key=customer.key)
    client.read_until(b"text_delta", 10)
    gateway.simulator.calls.wait_for(lambda log: log.last().chunks_sent == 21)
    client.leave()
    gateway.simulator.calls.wait_for(lambda log: log.last().disconnected)
    [row] = settled(gateway, customer)
    assert (row["outcome"], row["status"]) == ("cancelled", 499)
    assert 10 <= row["output_tokens"] <= 21
    assert gateway.balance(customer) == (1 - money(row["charge_usd"]), 0)


def test_a_route_that_gave_way_is_not_what_a_client_pays_who_leaves_the_next(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    name = "test/gives-way"
    gateway.call(
        "create_model",
        p_name=name,
        p_context_length=128_000,
        p_max_output_tokens=4096,
        p_offers=[
            {"provider": "anthropic", "upstream_model": "cached-4+error-in-stream-1", "prices": PRICES},
            {"provider": "openai-compatible", "upstream_model": "hang", "prices": PRICES},
        ],
    )
    base_url = gateway.simulator.base_url
    gateway.service(
        name, base_url=base_url.removesuffix("/v1") + "/anthropic/v1", priority=1, provider="anthropic"
    )
    gateway.service(name, base_url=base_url, priority=2)
    body = {"model": name, "max_tokens": 100, "messages": HELLO, "stream": True}
    client = RawClient(gateway.url).post(MESSAGES, body, x_api_key=customer.key)
    gateway.simulator.calls.wait_for(lambda log: log.count() == 2)
    client.leave()
    gateway.simulator.calls.wait_for(lambda log: log.last().disconnected)
    [row] = settled(gateway, customer)
    assert (row["outcome"], row["usage_estimated"]) == ("cancelled", True)
    assert row["input_tokens"] > 0
    assert row["cached_input_tokens"] is None


@pytest.mark.parametrize("wire", WIRES)
def test_usage_that_was_not_told_is_counted(gateway: RunningGateway, wire: str) -> None:
    customer = gateway.customer("1")
    name = model(gateway, wire, "no-usage")
    client = sdk(gateway, customer)
    plain = client.messages.create(model=name, max_tokens=100, messages=HELLO)
    final, _ = streamed(client, model=name, max_tokens=100, messages=HELLO)
    assert final.usage.output_tokens == plain.usage.output_tokens > 0
    rows = settled(gateway, customer, 2)
    assert all(row["usage_estimated"] for row in rows)
    assert [money(row["charge_usd"]) for row in rows] == [charge(plain.usage), charge(final.usage)]


@pytest.fixture
def impatient(
    module_database: Database, module_postgrest: PostgRest, simulator: Any, tmp_path: Path
) -> Iterator[RunningGateway]:
    with serve(module_database, module_postgrest, simulator, tmp_path, keep_alive_seconds=0.05) as running:
        yield running


@pytest.mark.parametrize("wire", WIRES)
def test_silence_is_filled_with_pings(gateway: RunningGateway, impatient: RunningGateway, wire: str) -> None:
    customer = gateway.customer("1")
    name = model(gateway, wire, "long-3+drip-200ms")
    body = {"model": name, "max_tokens": 100, "messages": HELLO, "stream": True}
    response = impatient.http(customer).post(MESSAGES, json=body)
    assert response.text.count('event: ping\ndata: {"type":"ping"}\n\n') >= 2
    assert ": keep-alive" not in response.text
    final, events = streamed(sdk(impatient, customer), model=name, max_tokens=100, messages=HELLO)
    assert final.stop_reason == "end_turn"
    assert events[0].type == "message_start"


def test_an_idempotency_key_is_charged_once(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    client = sdk(gateway, customer)
    request: dict[str, Any] = {
        "model": model(gateway, "openai-compatible", "echo"),
        "max_tokens": 100,
        "messages": HELLO,
        "extra_headers": {"Idempotency-Key": "order-1"},
    }
    client.messages.create(**request)
    with pytest.raises(anthropic.ConflictError) as caught:
        client.messages.create(**request)
    assert caught.value.error_code == "idempotency_key_reused"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(settled(gateway, customer)) == 1


# What is held


@pytest.mark.parametrize("wire", WIRES)
def test_the_hold_covers_the_charge_and_the_bound_is_sent(gateway: RunningGateway, wire: str) -> None:
    customer = gateway.customer("1")
    name = model(gateway, wire, "long-1000")
    answer = sdk(gateway, customer).messages.create(model=name, max_tokens=50, messages=HELLO)
    assert answer.usage.output_tokens == sent(gateway)["max_tokens"] == 50
    [row] = settled(gateway, customer)
    assert money(row["uncollected_usd"]) == 0
    assert money(row["hold_usd"]) >= money(row["charge_usd"]) > 0


def test_sampling_is_said_in_openais_terms(gateway: RunningGateway) -> None:
    name = model(gateway, "openai-compatible", "echo")
    client = sdk(gateway, gateway.customer("1"))
    client.messages.create(
        model=name,
        max_tokens=100,
        messages=HELLO,
        thinking={"type": "enabled", "budget_tokens": 90},
        metadata={"user_id": "u"},
        stop_sequences=["x"],
        extra_body={"temperature": 0.5, "top_p": 0.9},
    )
    body = sent(gateway)
    assert {name: body[name] for name in ("temperature", "top_p", "stop", "user", "reasoning_effort")} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["x"],
        "user": "u",
        "reasoning_effort": "high",
    }
    assert "thinking" not in body
    assert "metadata" not in body


def test_a_cache_of_an_hour_is_held_and_charged_at_its_own_price(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    prices = {**PRICES, "cache_write_1h": "1.00"}
    name = model(gateway, "anthropic", "cache-write-5", prices=prices)
    marked = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    answer = sdk(gateway, customer).messages.create(
        model=name,
        max_tokens=100,
        system=[marked],  # type: ignore[list-item]
        messages=HELLO,
    )
    usage = answer.usage
    assert usage.cache_creation_input_tokens == 5
    exact = usage.input_tokens * Decimal("0.50") + 5 * Decimal("1.00") + usage.output_tokens * Decimal("1.50")
    [row] = settled(gateway, customer)
    assert money(row["charge_usd"]) == exact / Decimal(1_000_000) * MARKUP


# The estimate


def test_tokens_are_estimated_without_a_charge_or_a_call(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    client = sdk(gateway, customer)
    name = model(gateway, "openai-compatible", "echo")
    counted = client.messages.count_tokens(model=name, messages=HELLO, system="Be brief.", tools=WEATHER)
    answer = client.messages.create(
        model=name, max_tokens=100, messages=HELLO, system="Be brief.", tools=WEATHER
    )
    assert abs(counted.input_tokens - answer.usage.input_tokens) <= 20
    assert len(gateway.requests(customer)) == 1
    assert gateway.simulator.calls.count() == 1
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="no/such-model", messages=HELLO)
    with pytest.raises(anthropic.AuthenticationError):
        sdk(gateway, type(customer)(0, "sk_unknown", 0, "")).messages.count_tokens(model=name, messages=HELLO)


def test_the_estimate_is_for_keys_that_may_chat_and_models_that_they_may_use(gateway: RunningGateway) -> None:
    name = model(gateway, "openai-compatible", "echo")
    body = {"model": name, "messages": HELLO}
    path = f"{MESSAGES}/count_tokens"
    other = gateway.http(gateway.customer("1", p_scopes=["usage"])).post(path, json=body)
    assert (other.status_code, other.json()["error"]["details"]["error_code"]) == (403, "scope_missing")
    poor = gateway.http(gateway.customer(None)).post(path, json=body)
    assert poor.status_code == 200
    assert set(poor.json()) == {"input_tokens"}


def test_a_provider_that_ends_before_it_began_is_a_502(gateway: RunningGateway) -> None:
    with RawProvider.of(b"", headers={"content-type": "text/event-stream"}) as provider:
        name = model(gateway, "anthropic", "echo", base_url=provider.base_url)
        error = refused(gateway, gateway.customer("1"), model=name, stream=True)
    assert (error.status_code, error.type) == (502, "api_error")
