"""The simulator against the official SDK: what the gateway's tests lean on must itself hold."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

import httpx
import openai
import pytest
import tiktoken

from infra.local.simulator.answers import example
from infra.local.simulator.behaviour import Behaviour, parse_behaviour

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

    from tests.fixtures.simulator import Simulator

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Grüße, 世界 👋"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"enum": ["C", "F"]},
            },
        },
    },
}
CLOCK: ChatCompletionToolParam = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=simulator.base_url, api_key=simulator.key, max_retries=0) as made:
        yield made


def tokens(text: str) -> int:
    return len(tiktoken.get_encoding("o200k_base").encode(text))


async def test_echo_says_the_prompt_back_with_true_usage(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="echo", messages=HELLO)
    choice = answer.choices[0]
    assert choice.message.content == "You said: Grüße, 世界 👋"
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == tokens("You said: Grüße, 世界 👋")
    # 3 for the message, its role, its text, 3 for the answer
    assert answer.usage.prompt_tokens == 3 + tokens("user") + tokens("Grüße, 世界 👋") + 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("bound", [1, 5, 17])
async def test_the_answer_has_exactly_the_tokens_of_its_bound(
    client: openai.AsyncOpenAI, name: str, bound: int
) -> None:
    answer = await client.chat.completions.create(model="long", messages=HELLO, extra_body={name: bound})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == bound
    assert tokens(answer.choices[0].message.content or "") == bound
    assert answer.choices[0].finish_reason == "length"


async def test_an_answer_that_fits_its_bound_exactly_is_not_cut(client: openai.AsyncOpenAI) -> None:
    whole = tokens("You said: Grüße, 世界 👋")
    answer = await client.chat.completions.create(model="echo", messages=HELLO, max_completion_tokens=whole)
    assert answer.choices[0].finish_reason == "stop"


async def test_unbounded_answers_past_the_bound(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="long-50+unbounded", messages=HELLO, max_tokens=10)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 50


async def test_a_stream_says_the_same_as_the_plain_answer(client: openai.AsyncOpenAI) -> None:
    plain = await client.chat.completions.create(model="echo", messages=HELLO, n=2)
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model="echo", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
        )
    ]
    for index in (0, 1):
        parts = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        said = "".join(part.delta.content or "" for part in parts)
        assert said == plain.choices[index].message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage


async def raw_events(simulator: Simulator, **body: object) -> list[str]:
    async with httpx.AsyncClient() as client:
        response = await client.post(
            f"{simulator.base_url}/chat/completions",
            headers={"authorization": f"Bearer {simulator.key}"},
            json={"messages": HELLO, "stream": True, **body},
        )
    assert response.status_code == 200
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


async def test_usage_is_told_only_where_it_was_asked_for(simulator: Simulator) -> None:
    *chunks, end = await raw_events(simulator, model="echo")
    assert end == "[DONE]"
    assert all("usage" not in json.loads(chunk) for chunk in chunks)
    *chunks, last, end = await raw_events(simulator, model="echo", stream_options={"include_usage": True})
    assert all(json.loads(chunk)["usage"] is None for chunk in chunks)
    assert json.loads(last)["choices"] == []
    *chunks, end = await raw_events(simulator, model="no-usage", stream_options={"include_usage": True})
    assert all("usage" not in json.loads(chunk) for chunk in chunks)


async def test_usage_comes_in_the_other_shapes_that_servers_have(simulator: Simulator) -> None:
    asked = {"include_usage": True}
    *chunks, last, _end = await raw_events(simulator, model="usage-last", stream_options=asked)
    assert json.loads(last)["choices"][0]["finish_reason"] == "stop"
    assert json.loads(last)["usage"]["completion_tokens"] > 0
    *chunks, last, _end = await raw_events(simulator, model="usage-each", stream_options=asked)
    produced = [json.loads(chunk)["usage"]["completion_tokens"] for chunk in chunks]
    assert produced == sorted(produced)
    assert produced[-1] == json.loads(last)["usage"]["completion_tokens"]


async def test_tools_are_called_and_streamed_in_fragments(client: openai.AsyncOpenAI) -> None:
    plain = await client.chat.completions.create(model="echo", messages=HELLO, tools=[WEATHER, CLOCK])
    choice = plain.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "example", "days": 1, "unit": "C"}
    fragments = [
        part.function.arguments or ""
        async for chunk in await client.chat.completions.create(
            model="echo", messages=HELLO, tools=[WEATHER], stream=True
        )
        for part in chunk.choices[0].delta.tool_calls or []
        if part.function
    ]
    assert len([fragment for fragment in fragments if fragment]) > 2
    assert "".join(fragments) == call.function.arguments


async def test_every_tool_is_called_where_parallel_calls_are_asked_for(client: openai.AsyncOpenAI) -> None:
    async def names(**options: bool) -> list[str]:
        answer = await client.chat.completions.create(
            model="tools-parallel", messages=HELLO, tools=[WEATHER, CLOCK], extra_body=options
        )
        calls = answer.choices[0].message.tool_calls or []
        return [call.function.name for call in calls if call.type == "function"]

    assert await names() == ["get_weather", "get_time"]
    assert await names(parallel_tool_calls=False) == ["get_weather"]


async def test_tool_choice_none_and_a_tools_answer_give_text(client: openai.AsyncOpenAI) -> None:
    refused = await client.chat.completions.create(
        model="echo", messages=HELLO, tools=[WEATHER], tool_choice="none"
    )
    assert refused.choices[0].message.tool_calls is None
    answered = await client.chat.completions.create(
        model="echo",
        messages=[*HELLO, {"role": "tool", "tool_call_id": "call_1", "content": "22 °C"}],
        tools=[WEATHER],
    )
    assert answered.choices[0].message.content == "You said: 22 °C"


async def test_a_json_schema_is_kept_to(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="echo",
        messages=HELLO,
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "point",
                "schema": {"properties": {"x": {"type": "integer", "minimum": 7}}},
            },
        },
    )
    assert json.loads(answer.choices[0].message.content or "") == {"x": 7}


async def test_reasoning_and_cached_tokens_are_inside_the_totals(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="reasoning-10+cached-4", messages=HELLO)
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 10
    assert answer.usage.completion_tokens == 10 + tokens("You said: Grüße, 世界 👋")
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert (answer.choices[0].message.model_extra or {})["reasoning_content"].startswith("Let me think")


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("status-400", openai.BadRequestError),
        ("status-401", openai.AuthenticationError),
        ("status-429", openai.RateLimitError),
        ("status-500", openai.InternalServerError),
        ("status-503", openai.InternalServerError),
        ("status-418", openai.APIStatusError),
        ("no-such-model", openai.NotFoundError),
        ("echo+no-such-part", openai.NotFoundError),
    ],
)
async def test_refusals_raise_the_sdks_own_errors(
    client: openai.AsyncOpenAI, model: str, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        await client.chat.completions.create(model=model, messages=HELLO)
    assert caught.value.type
    if model == "status-429":
        assert caught.value.response.headers["retry-after"] == "1"


async def test_a_wrong_key_is_refused(simulator: Simulator) -> None:
    async with openai.AsyncOpenAI(base_url=simulator.base_url, api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="echo", messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_cut_drops_the_connection_after_that_many_chunks(
    client: openai.AsyncOpenAI, simulator: Simulator
) -> None:
    stream = await client.chat.completions.create(model="cut-4", messages=HELLO, stream=True)
    received = [await anext(stream) for _ in range(4)]
    assert [chunk.choices[0].delta.content for chunk in received] == ["", "You", " said", ":"]
    with pytest.raises(openai.APIConnectionError):
        await anext(stream)
    assert simulator.calls.last().finished is False
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(model="cut", messages=HELLO)


async def test_streams_go_wrong_as_asked(simulator: Simulator) -> None:
    ended = await raw_events(simulator, model="cut-clean-2")
    assert len(ended) == 2
    assert all(json.loads(event)["choices"][0]["finish_reason"] is None for event in ended)
    *before, failed = await raw_events(simulator, model="error-in-stream-3")
    assert len(before) == 3
    assert json.loads(failed)["error"]["type"] == "server_error"
    *_whole, broken = await raw_events(simulator, model="malformed")
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken)


async def test_delays_are_kept(client: openai.AsyncOpenAI) -> None:
    start = time.monotonic()
    await client.chat.completions.create(model="slow-200ms", messages=HELLO)
    assert time.monotonic() - start >= 0.2
    start = time.monotonic()
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model="drip-20ms", messages=HELLO, stream=True
        )
    ]
    assert time.monotonic() - start >= 0.02 * (len(chunks) - 1)


@pytest.mark.parametrize(
    ("model", "stream"), [("hang", False), ("hang", True), ("hang-2", True), ("drip-9s", True)]
)
async def test_a_client_that_leaves_is_noticed(simulator: Simulator, model: str, stream: bool) -> None:
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {simulator.key}"}) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.post(
                    f"{simulator.base_url}/chat/completions",
                    json={"model": model, "messages": HELLO, "stream": stream},
                )
    await asyncio.to_thread(simulator.calls.wait_for, lambda log: log.last().disconnected)
    assert simulator.calls.last().finished is False


async def test_calls_are_counted_by_model(simulator: Simulator, client: openai.AsyncOpenAI) -> None:
    for model in ("echo", "echo", "long-5"):
        await client.chat.completions.create(model=model, messages=HELLO, extra_headers={"x-mark": "seen"})
    root = simulator.base_url.removesuffix("/v1")
    async with httpx.AsyncClient() as plain:
        shown = (await plain.get(f"{root}/sim/calls")).json()
        assert shown["calls"] == {"echo": 2, "long-5": 1}
        assert shown["log"][-1]["headers"]["x-mark"] == "seen"
        assert shown["log"][-1]["finished"] is True
        assert (await plain.delete(f"{root}/sim/calls")).status_code == 204
    assert simulator.calls.count() == 0


async def test_the_header_wins_over_the_models_name(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(
            model="echo", messages=HELLO, extra_headers={"x-sim-behaviour": "status-503"}
        )


@pytest.mark.parametrize(
    "name", ["", "+", "echo-3", "status-200", "status-99", "cut-3s", "slow-", "ECHO", "drip-1m"]
)
def test_a_name_that_says_nothing_is_no_model(name: str) -> None:
    assert parse_behaviour(name) is None


def test_the_parts_of_a_name_add_up() -> None:
    assert parse_behaviour("slow-2s+drip-50ms+cut-clean-7") == Behaviour(
        first_byte_delay=2.0, chunk_delay=0.05, clean_end_after=7
    )


def test_an_example_follows_references_and_ends_on_loops() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"$ref": "#/$defs/Name"}, "child": {"$ref": "#"}},
        "$defs": {"Name": {"type": "string", "minLength": 9}},
    }
    assert example(schema)["name"] == "example.."
