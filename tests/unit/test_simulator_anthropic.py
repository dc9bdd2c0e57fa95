"""The simulator's Messages API against Anthropic's own SDK: what it takes, and what it says."""

from __future__ import annotations

import base64
import functools
import json
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import anthropic
import httpx
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_create_params import MessageCreateParams
from anthropic.types.shared import ErrorResponse
from pydantic import TypeAdapter, ValidationError

from infra.local.simulator.answers import example, picture, signature
from infra.local.simulator.anthropic_request import MessagesRequest
from tests.fixtures.certificates import authorities

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.simulator import Simulator

HELLO: Any = [{"role": "user", "content": "Grüße, 世界 👋"}]
PNG = base64.b64encode(picture("red")).decode()
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"name": "get_weather", "description": "Weather", "input_schema": SCHEMA},
    {"name": "get_time", "input_schema": {"type": "object"}},
]


def url(simulator: Simulator) -> str:
    return simulator.base_url.removesuffix("/v1") + "/anthropic"


@pytest.fixture
def client(simulator: Simulator) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url(simulator), api_key=simulator.key, max_retries=0) as made:
        yield made


def create(client: anthropic.Anthropic, model: str = "echo", **fields: Any) -> Message:
    answer: Message = client.messages.create(
        **{"model": model, "max_tokens": 4096, "messages": HELLO, **fields}
    )
    Message.model_validate(answer.model_dump(), strict=False)
    return answer


def streamed(client: anthropic.Anthropic, model: str = "echo", **fields: Any) -> Message:
    with client.messages.stream(
        **{"model": model, "max_tokens": 4096, "messages": HELLO, **fields}
    ) as stream:
        for _ in stream:
            pass
        return stream.get_final_message()


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("echo", {}),
        ("long-50", {"max_tokens": 7}),
        ("reasoning", {}),
        ("reasoning+redacted", {}),
        ("reasoning", {"thinking": {"type": "adaptive", "display": "omitted"}}),
        ("reasoning", {"thinking": {"type": "disabled"}}),
        ("echo", {"tools": TOOLS}),
        ("tools-parallel+reasoning", {"tools": TOOLS}),
        (
            "tools-parallel",
            {"tools": TOOLS, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        ),
        ("cached+cache-write", {}),
        ("filtered", {}),
        ("blocked", {}),
        ("echo", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    ],
)
def test_the_stream_and_the_plain_answer_are_one_message(
    client: anthropic.Anthropic, model: str, fields: dict[str, Any]
) -> None:
    plain = create(client, model, **fields).model_dump(exclude={"id"}, exclude_none=True)
    whole = streamed(client, model, **fields).model_dump(exclude={"id"}, exclude_none=True)
    for message in (plain, whole):
        for block in message["content"]:
            block.pop("parsed_output", None)
            if "id" in block:
                block["id"] = block["id"].rpartition("_")[2]
    assert plain == whole


def test_echo_says_the_prompt_back_and_counts_it(client: anthropic.Anthropic) -> None:
    answer = create(client)
    assert [block.type for block in answer.content] == ["text"]
    assert getattr(answer.content[0], "text", None) == "You said: Grüße, 世界 👋"
    assert answer.stop_reason == "end_turn"
    counted = client.messages.count_tokens(model="echo", messages=HELLO)
    assert counted.input_tokens == answer.usage.input_tokens > 0


def test_each_class_of_tokens_is_apart(client: anthropic.Anthropic) -> None:
    whole = create(client).usage.input_tokens
    usage = create(client, "cached-3+cache-write-2").usage
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (3, 2)
    assert usage.input_tokens == whole - 5
    assert usage.cache_creation is not None
    assert usage.cache_creation.ephemeral_5m_input_tokens == 2
    content: Any = [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    long = create(client, "cache-write-2", messages=[{"role": "user", "content": content}]).usage
    assert long.cache_creation is not None
    assert long.cache_creation.ephemeral_1h_input_tokens == 2
    thought = create(client, "reasoning-9").usage
    assert thought.output_tokens_details is not None
    assert thought.output_tokens_details.thinking_tokens == 9 < thought.output_tokens


def test_a_turn_with_tools_and_thoughts_goes_round(client: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    first = create(client, "tools-parallel+reasoning", tools=TOOLS, thinking=thinking)
    assert [block.type for block in first.content] == ["thinking", "tool_use", "tool_use"]
    assert first.stop_reason == "tool_use"
    calls = [block for block in first.content if block.type == "tool_use"]
    assert calls[0].input == example(SCHEMA)
    results: Any = [
        {"type": "tool_result", "tool_use_id": call.id, "content": f"result of {call.name}"} for call in calls
    ]
    turns: Any = [*HELLO, first.to_param(), {"role": "user", "content": results}]
    second = create(client, "inventory", messages=turns, tools=TOOLS, thinking=thinking)
    given = json.loads(getattr(second.content[0], "text", ""))
    assert given == [
        {"role": "user", "text": HELLO[0]["content"]},
        {"role": "assistant", "call": "get_weather", "arguments": example(SCHEMA)},
        {"role": "assistant", "call": "get_time", "arguments": {}},
        {"role": "tool", "tool": "get_weather", "text": "result of get_weather"},
        {"role": "tool", "tool": "get_time", "text": "result of get_time"},
    ]


def test_stop_sequences_are_named(client: anthropic.Anthropic) -> None:
    answer = create(client, messages=[{"role": "user", "content": "one STOP two"}], stop_sequences=["STOP"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "STOP")


def with_tool_turns(*results: Any) -> list[Any]:
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_time", "input": {}}
    return [*HELLO, {"role": "assistant", "content": [call]}, {"role": "user", "content": list(results)}]


RESULT: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "noon"}
TEXT: Any = {"type": "text", "text": "Hi"}
MARK: Any = {"cache_control": {"type": "ephemeral"}}
IMAGE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
THOUGHT: Any = {"type": "thinking", "thinking": "Hm", "signature": signature("Hm")}


def user(*blocks: Any) -> list[Any]:
    return [{"role": "user", "content": list(blocks)}]


TAKEN: list[dict[str, Any]] = [
    {"system": "Be brief."},
    {"system": [TEXT | MARK]},
    {"messages": [*HELLO, *HELLO]},
    {
        "messages": user(
            TEXT, IMAGE | MARK, {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}
        )
    },
    {
        "messages": user(
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A"}}
        )
    },
    {"messages": with_tool_turns(RESULT, TEXT), "tools": TOOLS},
    {"messages": with_tool_turns(RESULT | {"content": [TEXT, IMAGE], "is_error": True}), "tools": TOOLS},
    {"messages": [*HELLO, {"role": "assistant", "content": [THOUGHT, TEXT]}, *HELLO]},
    {"messages": [*HELLO, {"role": "assistant", "content": "The answer is"}]},
    {"metadata": {"user_id": "u"}, "service_tier": "auto"},
    {"tools": [TOOLS[0] | MARK | {"strict": True, "type": "custom"}], "tool_choice": {"type": "none"}},
    {"output_config": {"effort": "max"}},
    {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
]


@functools.cache
def sdk_type(kind: Any) -> TypeAdapter[Any]:
    """One of the SDK's types to hold against; made once, for it takes a tenth of a second."""
    return TypeAdapter(kind)


@pytest.mark.parametrize("fields", TAKEN)
def test_what_the_sdk_types_take_is_taken(client: anthropic.Anthropic, fields: dict[str, Any]) -> None:
    body = {"model": "echo", "max_tokens": 4096, "messages": HELLO, **fields}
    sdk_type(MessageCreateParams).validate_python(body)
    create(client, **fields)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n: Extra inputs are not permitted"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": "x", "name": "Ada"}]}, "messages.0.name: Extra inputs"),
    ({"messages": user({"type": "image_url", "image_url": {"url": "https://a"}})}, "messages.0.content.0"),
    ({"messages": user(TEXT | {"text": ""})}, "messages.0.content.0.text"),
    ({"messages": [{"role": "user", "content": ""}]}, "non-empty content"),
    ({"messages": user(IMAGE | {"source": IMAGE["source"] | {"data": "no base64!"}})}, "base64"),
    ({"messages": user(IMAGE | {"source": IMAGE["source"] | {"media_type": "image/tiff"}})}, "media_type"),
    ({"messages": with_tool_turns(TEXT), "tools": TOOLS}, "without `tool_result` blocks"),
    ({"messages": with_tool_turns(TEXT, RESULT), "tools": TOOLS}, "must come first"),
    ({"messages": with_tool_turns(RESULT, RESULT), "tools": TOOLS}, "single result"),
    (
        {"messages": with_tool_turns(RESULT | {"tool_use_id": "other"}), "tools": TOOLS},
        "without `tool_result`",
    ),
    ({"messages": user(RESULT), "tools": TOOLS}, "unexpected `tool_use_id`"),
    ({"messages": with_tool_turns(RESULT)[:2], "tools": TOOLS}, "without `tool_result` blocks"),
    ({"messages": [*HELLO, {"role": "assistant", "content": [THOUGHT | {"signature": "x"}]}]}, "signature"),
    ({"messages": [*HELLO, {"role": "assistant", "content": [IMAGE]}]}, "not allowed"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "So "}]}, "trailing whitespace"),
    ({"messages": user(*[TEXT | MARK] * 5)}, "maximum of 4 blocks with cache_control"),
    ({"temperature": 1.5}, "temperature"),
    ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools.0"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "unique"),
    ({"tools": TOOLS, "tool_choice": "auto"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "not found"),
    ({"tool_choice": {"type": "auto"}}, "tool_choice may only"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1000}}, "budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "greater than `thinking.budget_tokens`"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "temperature": 0}, "temperature"),
    ({"thinking": {"type": "adaptive"}, "tools": TOOLS, "tool_choice": {"type": "any"}}, "forces tool use"),
    (
        {"messages": with_tool_turns(RESULT), "thinking": {"type": "enabled", "budget_tokens": 1024}},
        "Expected `thinking`",
    ),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}, "additionalProp"),
    ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_anthropic_refuses_is_refused_in_its_words(
    simulator: Simulator, fields: dict[str, Any], words: str
) -> None:
    body = {"model": "echo", "max_tokens": 4096, "messages": HELLO, **fields}
    response = httpx.post(
        f"{url(simulator)}/v1/messages", json=body, headers=headers(simulator), verify=authorities()
    )
    assert response.status_code == 400, response.text
    told = ErrorResponse.model_validate(response.json())
    assert told.error.type == "invalid_request_error"
    assert words in told.error.message
    assert response.headers["request-id"] == told.request_id


def headers(simulator: Simulator, **changed: str) -> dict[str, str]:
    return {"x-api-key": simulator.key, "anthropic-version": "2023-06-01", **changed}


def test_the_key_and_the_version_belong_in_their_headers(simulator: Simulator) -> None:
    body = {"model": "echo", "max_tokens": 10, "messages": HELLO}
    place = f"{url(simulator)}/v1/messages"
    bearer = {"authorization": f"Bearer {simulator.key}", "anthropic-version": "2023-06-01"}
    for given, status in (
        (headers(simulator), 200),
        (headers(simulator) | {"x-api-key": "wrong"}, 401),
        (bearer, 200),
        (bearer | {"authorization": "Bearer wrong"}, 401),
        ({"anthropic-version": "2023-06-01"}, 401),
        ({"x-api-key": simulator.key}, 400),
        (headers(simulator) | {"anthropic-version": "2020-01-01"}, 400),
    ):
        assert httpx.post(place, json=body, headers=given, verify=authorities()).status_code == status
    assert httpx.post(
        place, json=body, headers=headers(simulator), verify=authorities(), params={"key": simulator.key}
    ).is_error


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (403, anthropic.PermissionDeniedError),
        (404, anthropic.NotFoundError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (529, anthropic.InternalServerError),
    ],
)
def test_each_status_on_demand_is_the_sdks_own_error(
    client: anthropic.Anthropic, status: int, error: type[anthropic.APIStatusError]
) -> None:
    with pytest.raises(error) as raised:
        create(client, f"status-{status}")
    told: Any = raised.value.body
    assert told["type"] == "error"
    assert client.api_key is not None
    assert client.api_key in told["error"]["message"]  # the careless provider that the gateway has to bear


def test_an_unknown_model_and_a_long_prompt_are_refused(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="model: claude"):
        create(client, "claude")
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        create(client, "too-long")


def events(simulator: Simulator, model: str, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": model, "max_tokens": 100, "messages": HELLO, "stream": True, **fields}
    adapter = sdk_type(RawMessageStreamEvent)
    found = []
    with httpx.stream(
        "POST", f"{url(simulator)}/v1/messages", json=body, headers=headers(simulator)
    ) as response:
        for block in response.read().decode().split("\n\n"):
            if not block:
                continue
            name, _, data = block.partition("\ndata: ")
            value = json.loads(data)
            assert name == f"event: {value['type']}"
            if value["type"] not in {"ping", "error"}:
                adapter.validate_python(value)
            found.append(value)
    return found


def test_every_event_is_one_of_the_sdks(simulator: Simulator) -> None:
    kinds = [event["type"] for event in events(simulator, "tools-parallel+reasoning", tools=TOOLS)]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
    assert "ping" in kinds


def test_streams_fail_on_demand(simulator: Simulator) -> None:
    failed = events(simulator, "error-in-stream-4")
    assert len(failed) == 5
    assert failed[-1] == {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    assert [event["type"] for event in events(simulator, "cut-clean-3")][-1] == "ping"
    with pytest.raises(httpx.RemoteProtocolError):
        events(simulator, "cut-3")
    with pytest.raises(ValueError, match=r".+"):
        events(simulator, "malformed")


def test_usage_is_left_out_on_demand(simulator: Simulator) -> None:
    with pytest.raises(ValidationError):  # the SDK knows no message without usage
        events(simulator, "no-usage")


def test_sampling_parameters_went_with_the_version_of_october_2026(simulator: Simulator) -> None:
    body = {"model": "echo", "max_tokens": 10, "messages": HELLO}
    place = f"{url(simulator)}/v1/messages"
    for name, value in (("temperature", 1.0), ("top_p", 0.5), ("top_k", 3)):
        older = httpx.post(place, json=body | {name: value}, headers=headers(simulator), verify=authorities())
        assert older.status_code == 200
        later = headers(simulator) | {"anthropic-version": "2026-10-21"}
        newer = httpx.post(place, json=body | {name: value}, headers=later, verify=authorities())
        assert newer.status_code == 400
        assert newer.json()["error"]["message"] == f"{name}: Extra inputs are not permitted"


def test_the_simulator_takes_no_field_that_the_sdk_does_not_have() -> None:
    known = {name for kind in get_args(MessageCreateParams) for name in get_type_hints(kind)}
    assert set(MessagesRequest.model_fields) - known == {"temperature", "top_p", "top_k"}
