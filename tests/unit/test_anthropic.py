"""Anthropic's wire, judged by the vendors' own types: theirs for what we send and read, OpenAI's for what we
answer."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from gateway.errors import Unprocessable
from gateway.providers.anthropic import ANTHROPIC, read_usage
from gateway.providers.registry import provider_named
from gateway.providers.wire import (
    Chunk,
    Fault,
    ProviderCall,
    ProviderError,
    StreamDone,
    StreamEvent,
    StreamFailed,
)
from gateway.schemas.chat import ChatCompletionRequest
from gateway.schemas.usage import TokenUsage
from gateway.tokens import input_bound

FIXTURES = Path(__file__).parents[1] / "fixtures" / "anthropic"
KEY = "opaque-anthropic-key"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
CALL = ProviderCall(
    provider=provider_named("anthropic"),
    base_url="https://api.anthropic.com/v1/",
    model="claude-haiku-4-5",
    body={"messages": HELLO},
    output_bound=4096,
    stream=False,
    key=KEY,
    wants_usage=True,
)
NEWEST = replace(CALL, model="claude-opus-5-5")
PIXEL = "data:image/png;base64,iVBORw0KGgo="
MARK = {"type": "ephemeral", "ttl": "5m"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}

_PLAIN: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)
_STREAMED: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsStreaming)
_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
# Models up to 4.6 take them; the SDK's types are of the newest.
_SAMPLING = {"temperature", "top_p", "top_k"}


def _read(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def _listed(value: Any) -> Any:
    """The value with each iterable that a validator left lazy as a list."""
    if isinstance(value, dict):
        return {name: _listed(entry) for name, entry in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    return [_listed(entry) for entry in value]


def _sent(call: ProviderCall = CALL, /, **body: Any) -> dict[str, Any]:
    """What the call sends, which the SDK's type takes whole: what it did not know it would leave out."""
    call = replace(call, body={"model": "m", "messages": HELLO, **body})
    ChatCompletionRequest.model_validate(call.body)
    before = json.dumps(call.body)
    sent: dict[str, Any] = json.loads(ANTHROPIC.build_request(call).content)
    assert json.dumps(call.body) == before
    judged = {name: value for name, value in sent.items() if name not in _SAMPLING}
    assert _listed((_STREAMED if call.stream else _PLAIN).validate_python(judged)) == judged
    return sent


def _messages(*messages: dict[str, Any], **body: Any) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = _sent(messages=list(messages), **body)["messages"]
    return turns


def _refused(call: ProviderCall = CALL, /, **body: Any) -> Unprocessable:
    with pytest.raises(Unprocessable) as caught:
        _sent(call, **body)
    return caught.value


# The request.


def test_the_request_goes_to_messages_with_the_key_in_its_header() -> None:
    request = ANTHROPIC.build_request(CALL)
    assert (request.method, request.url) == ("POST", "https://api.anthropic.com/v1/messages")
    assert request.headers["x-api-key"] == KEY
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in request.headers
    assert KEY not in request.url + repr(request) + repr(CALL)
    streamed = ANTHROPIC.build_request(replace(CALL, stream=True))
    assert streamed.headers["accept-encoding"] == "identity"
    assert json.loads(streamed.content)["stream"] is True
    with pytest.raises(ProviderError) as caught:
        ANTHROPIC.build_request(replace(CALL, key=" "))
    assert caught.value.fault is Fault.OPERATOR


def test_a_plain_question_is_model_bound_and_turn() -> None:
    assert _sent(max_tokens=7, max_completion_tokens=8, stream_options={"include_usage": True}) == {
        "model": "claude-haiku-4-5",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    }


def test_without_a_bound_there_is_no_request() -> None:
    assert _refused(replace(CALL, output_bound=None)).param == "max_tokens"


def test_system_and_developer_messages_are_the_system_prompt_with_their_marks() -> None:
    sent = _sent(
        messages=[
            {"role": "system", "content": "One."},
            {"role": "user", "content": "Hi"},
            {"role": "developer", "content": [{"type": "text", "text": "Two.", "cache_control": MARK}]},
            {"role": "system", "content": "Three.", "cache_control": MARK},
        ]
    )
    assert sent["system"] == [
        {"type": "text", "text": "One."},
        {"type": "text", "text": "Two.", "cache_control": MARK},
        {"type": "text", "text": "Three.", "cache_control": MARK},
    ]
    assert [turn["role"] for turn in sent["messages"]] == ["user"]


def test_turns_alternate_and_keep_their_order() -> None:
    turns = _messages(
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": None, "refusal": "d"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "e"}]},
        {"role": "user", "content": "f", "cache_control": MARK},
    )
    assert [(turn["role"], "".join(block["text"] for block in turn["content"])) for turn in turns] == [
        ("user", "ab"),
        ("assistant", "cde"),
        ("user", "f"),
    ]
    assert turns[-1]["content"][-1]["cache_control"] == MARK


def test_white_space_alone_is_no_text_to_the_api_and_beside_text_it_is() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    blank = {"type": "text", "text": " \n"}
    sent = _sent(
        messages=[
            {"role": "system", "content": "\n"},
            {"role": "user", "content": [blank, {"type": "text", "text": "a"}, blank]},
            {"role": "assistant", "content": "\n\n", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "\n"},
            {"role": "assistant", "content": " "},
            {"role": "user", "content": [blank, blank], "cache_control": MARK},
        ]
    )
    assert "system" not in sent
    assert sent["messages"] == [
        {"role": "user", "content": [blank, {"type": "text", "text": "a"}, blank]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "\n"}]},
    ]


def test_calls_and_results_are_one_turn_each() -> None:
    turns = _messages(
        {"role": "user", "content": "Weather in Oslo and Bergen?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'},
                },
                {"id": "c2", "type": "function", "function": {"name": "get_weather", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain", "name": "get_weather"},
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": [
                {"type": "text", "text": "a map"},
                {"type": "image_url", "image_url": {"url": PIXEL}},
            ],
            "is_error": True,
            "cache_control": MARK,
        },
        {"role": "user", "content": "So?"},
        tools=[WEATHER],
    )
    assert turns[1]["content"] == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "c2", "name": "get_weather", "input": {}},
    ]
    assert turns[2]["role"] == "user"
    assert turns[2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": "rain"},
        {
            "type": "tool_result",
            "tool_use_id": "c2",
            "content": [
                {"type": "text", "text": "a map"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                },
            ],
            "is_error": True,
            "cache_control": MARK,
        },
        {"type": "text", "text": "So?"},
    ]


def test_an_id_that_anthropic_would_not_take_still_joins_call_and_result() -> None:
    call = {"id": "functions.get:0 é", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = _messages(
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": ""},
    )
    used, result = turns[0]["content"][0], turns[1]["content"][0]
    assert used["id"] == result["tool_use_id"]
    assert used["id"].isascii()
    assert used["id"].replace("_", "").isalnum()
    assert "content" not in result


@pytest.mark.parametrize(
    "arguments",
    ["{", "[1]", "7", "NaN", '"x"', '{"a":1,"a":2}', "{}{}", '{"a":1e999}', '{"a":' * 500 + "1" + "}" * 500],
)
def test_arguments_that_are_no_object_are_refused_by_their_path(arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    error = _refused(messages=[{"role": "assistant", "tool_calls": [call]}])
    assert error.param == "messages.0.tool_calls.0.function.arguments"


def test_images_go_by_url_and_as_bytes() -> None:
    def source(url: str) -> Any:
        part = {"type": "image_url", "image_url": {"url": url, "detail": "auto"}, "cache_control": MARK}
        block = _messages({"role": "user", "content": [part]})[0]["content"][0]
        assert block["cache_control"] == MARK
        return block["source"]

    assert source("https://e.org/a.png") == {"type": "url", "url": "https://e.org/a.png"}
    assert source("data:IMAGE/JPG;charset=x;base64,aGk=") == {
        "type": "base64",
        "media_type": "image/jpeg",
        "data": "aGk=",
    }


def test_files_are_documents() -> None:
    def block(**file: Any) -> Any:
        return _messages({"role": "user", "content": [{"type": "file", "file": file}]})[0]["content"][0]

    text = base64.b64encode("Grüße".encode()).decode()
    assert block(file_data=f"data:text/markdown;base64,{text}", filename="a.md") == {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "Grüße"},
        "title": "a.md",
    }
    assert block(file_data="data:application/pdf;base64,JVBE", citations={"enabled": True}) == {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
        "citations": {"enabled": True},
    }
    assert block(file_data="https://e.org/a.pdf")["source"] == {"type": "url", "url": "https://e.org/a.pdf"}
    assert block(file_data=PIXEL)["type"] == "image"


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ({"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}, ""),
        ({"type": "video_url", "video_url": {"url": "https://e.org"}}, ""),
        ({"type": "image_url", "image_url": {"url": "ftp://e.org/a"}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/tiff;base64,aGk="}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,raw"}}, ".image_url.url"),
        ({"type": "file", "file": {"file_id": "file-1"}}, ".file.file_id"),
        ({"type": "file", "file": {"file_data": "JVBE"}}, ".file.file_data"),
        ({"type": "file", "file": {"file_data": "data:application/zip;base64,aGk="}}, ".file.file_data"),
    ],
)
def test_content_that_it_can_not_be_given_is_refused_by_its_path(part: dict[str, Any], path: str) -> None:
    dropping = replace(CALL, dropped=frozenset({"messages", "messages.0", f"messages.0.content.1{path}"}))
    error = _refused(
        dropping, messages=[{"role": "user", "content": [{"type": "text", "text": "See:"}, part]}]
    )
    assert (error.param, error.code) == (f"messages.0.content.1{path}", "unsupported_content")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "name": "f", "content": "x"}, "messages.0.role"),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "messages.0.audio"),
        (
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
            "messages.0.function_call",
        ),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]},
            "messages.0.content.0",
        ),
        (
            {"role": "system", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]},
            "messages.0.content.0",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]},
            "messages.0.tool_calls.0.type",
        ),
    ],
)
def test_messages_that_have_no_counterpart_are_refused(message: dict[str, Any], param: str) -> None:
    assert _refused(messages=[message]).param == param


@pytest.mark.parametrize("refusal", [7, True, ["x"], {"x": 1}])
def test_a_refusal_that_is_no_text_is_refused(refusal: Any) -> None:
    assert _refused(messages=[{"role": "assistant", "refusal": refusal}]).param == "messages.0.refusal"


def test_tools_and_their_choice() -> None:
    tool = {**WEATHER, "function": {**WEATHER["function"], "strict": True}, "cache_control": MARK}
    bare = {"type": "function", "function": {"name": "now"}}
    sent = _sent(tools=[tool, bare], tool_choice="required", parallel_tool_calls=False)
    assert sent["tools"] == [
        {
            "name": "get_weather",
            "description": "Get the weather",
            "strict": True,
            "input_schema": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "additionalProperties": False,
            },
            "cache_control": MARK,
        },
        {"name": "now", "input_schema": {"type": "object"}},
    ]
    assert sent["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        (None, True, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ({"type": "function", "function": {"name": "now"}}, None, {"type": "tool", "name": "now"}),
    ],
)
def test_each_choice_of_tools(choice: Any, parallel: bool | None, expected: Any) -> None:
    sent = _sent(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=parallel)
    assert sent.get("tool_choice") == expected
    if not isinstance(choice, dict):
        assert "tool_choice" not in _sent(tools=[], tool_choice=choice, parallel_tool_calls=parallel)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_model_that_can_not_be_made_to_call_a_tool_is_not_told_to(choice: Any) -> None:
    for model in ("claude-fable-5-1", "claude-mythos-5-1", "claude-opus-5-5", "claude-sonnet-5-5"):
        call = replace(CALL, model=model)
        error = _refused(call, tools=[WEATHER], tool_choice=choice)
        assert (error.param, error.code) == ("tool_choice", "unsupported_parameter")
        dropping = replace(call, dropped=frozenset({"tool_choice"}))
        assert "tool_choice" not in _sent(dropping, tools=[WEATHER], tool_choice=choice)
        assert _sent(call, tools=[WEATHER], tool_choice="none")["tool_choice"] == {"type": "none"}
    for model in ("claude-fable-5", "claude-opus-5", "claude-haiku-5-5", "a-name-of-our-own"):
        sent = _sent(replace(CALL, model=model), tools=[WEATHER], tool_choice=choice)
        assert sent["tool_choice"]["type"] in {"any", "tool"}


@pytest.mark.parametrize("tool", [{"type": "web_search_20250305", "name": "web_search"}, {"type": "custom"}])
def test_tools_of_the_providers_own_are_refused(tool: dict[str, Any]) -> None:
    assert _refused(tools=[WEATHER, tool]).param == "tools.1.type"


def test_json_by_a_schema_is_native_and_without_one_refused() -> None:
    form = {
        "type": "json_schema",
        "json_schema": {
            "name": "n",
            "description": "A city.",
            "schema": {"type": "object", "properties": {}},
        },
    }
    assert _sent(response_format=form)["output_config"] == {
        "format": {
            "type": "json_schema",
            "schema": {
                "description": "A city.",
                "type": "object",
                "properties": {},
                "additionalProperties": False,
            },
        }
    }
    assert "output_config" not in _sent(response_format={"type": "text"})
    assert _refused(response_format={"type": "json_object"}).param == "response_format"
    other = {"format": {"type": "json_schema", "schema": {}}}
    assert _refused(response_format=form, output_config=other).param == "response_format"


def test_objects_of_a_schema_are_closed_where_it_does_not_say() -> None:
    """The API takes no others. Of one without properties nothing would be left: the API may refuse it."""
    person = {"type": "object", "properties": {"name": {"type": "string"}}}
    closed = {**person, "additionalProperties": False}
    said = {"type": "object", "additionalProperties": {"type": "string"}}

    def schema(of: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {
                "list": {"type": "array", "items": of},
                "either": {"anyOf": [of, {"type": "null"}]},
                "maybe": {**of, "type": ["object", "null"]},
                "type": {"const": person, "enum": [person], "default": person},
                "free": said,
                "any": {"type": "object"},
            },
            "$defs": {"person": of},
        }

    expected = {**schema(closed), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema(person)}}
    assert _sent(response_format=form)["output_config"]["format"]["schema"] == expected
    tool = {"type": "function", "function": {"name": "f", "parameters": schema(person)}}
    assert _sent(tools=[tool])["tools"][0]["input_schema"] == schema(person)
    tool["function"] = {"name": "f", "parameters": schema(person), "strict": True}
    assert _sent(tools=[tool])["tools"][0]["input_schema"] == expected
    tool["function"] = {"name": "f", "strict": True}
    assert _sent(tools=[tool])["tools"][0]["input_schema"] == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("model", "effort", "thinking", "told"),
    [
        ("claude-opus-5-5", "high", {"type": "adaptive", "display": "summarized"}, "high"),
        ("claude-sonnet-4-6", "minimal", {"type": "adaptive", "display": "summarized"}, "low"),
        ("a-name-of-our-own", "max", {"type": "adaptive", "display": "summarized"}, "max"),
        ("claude-opus-5", "none", {"type": "disabled"}, None),
        ("claude-haiku-4-5-20251001", "none", {"type": "disabled"}, None),
        ("claude-haiku-5-5", "none", {"type": "disabled"}, None),
        ("claude-sonnet-5", "none", {"type": "disabled"}, None),
        ("claude-sonnet-5-5", "none", {"type": "between_tools"}, None),
        ("claude-haiku-4-5-20251001", "medium", {"type": "enabled", "budget_tokens": 2048}, None),
        ("claude-sonnet-4-20250514", "low", {"type": "enabled", "budget_tokens": 1024}, None),
        ("claude-3-7-sonnet-20250219", "xhigh", {"type": "enabled", "budget_tokens": 3891}, None),
    ],
)
def test_reasoning_effort_is_said_as_the_model_takes_it(
    model: str, effort: str, thinking: Any, told: str | None
) -> None:
    sent = _sent(replace(CALL, model=model), reasoning_effort=effort)
    assert sent["thinking"] == thinking
    assert sent.get("output_config", {}).get("effort") == told


def test_a_budget_for_thinking_leaves_room_for_an_answer() -> None:
    for bound in (1025, 1026, 2000, 100_000):
        for effort in ("minimal", "high", "max"):
            thinking = _sent(replace(CALL, output_bound=bound), reasoning_effort=effort)["thinking"]
            assert 1024 <= thinking["budget_tokens"] < bound
    assert _refused(replace(CALL, output_bound=1024), reasoning_effort="low").param == "reasoning_effort"


@pytest.mark.parametrize(
    ("model", "effort"),
    [
        ("claude-3-5-haiku-20241022", "low"),
        ("claude-fable-5-1", "none"),
        ("claude-opus-5-5", "none"),
        ("claude-opus-5", "extreme"),
    ],
)
def test_effort_that_a_model_lacks_is_refused(model: str, effort: str) -> None:
    error = _refused(replace(CALL, model=model), reasoning_effort=effort)
    assert (error.param, error.code) == ("reasoning_effort", "unsupported_parameter")
    dropping = replace(CALL, model=model, dropped=frozenset({"reasoning_effort"}))
    assert "thinking" not in _sent(dropping, reasoning_effort=effort)


def test_thinking_of_the_clients_own_goes_on_as_it_is() -> None:
    own = {"type": "enabled", "budget_tokens": 2000, "display": "omitted"}
    assert _sent(thinking=own)["thinking"] == own
    sent = _sent(NEWEST, thinking={"type": "adaptive"}, reasoning_effort="low")
    assert sent["thinking"] == {"type": "adaptive"}
    assert sent["output_config"] == {"effort": "low"}
    assert _refused(thinking=own, reasoning_effort="low").param == "reasoning_effort"
    assert _refused(thinking="yes").param == "thinking"


def test_sampling_goes_to_the_models_that_take_it() -> None:
    sent = _sent(temperature=0.2, top_p=0.9, top_k=5, stop="END", user="u-1", service_tier="default")
    assert {name: sent[name] for name in _SAMPLING} == {"temperature": 0.2, "top_p": 0.9, "top_k": 5}
    assert sent["stop_sequences"] == ["END"]
    assert sent["metadata"] == {"user_id": "u-1"}
    assert sent["service_tier"] == "standard_only"
    for name, value in (("temperature", 0.2), ("top_p", 0.9), ("top_k", 5)):
        assert _refused(NEWEST, **{name: value}).param == name
        assert name not in _sent(replace(NEWEST, dropped=frozenset({name})), **{name: value})
    assert not _SAMPLING & _sent(NEWEST, temperature=1, top_p=1.0).keys()
    assert _refused(temperature=1.5).param == "temperature"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("seed", 7),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("audio", {"voice": "alloy"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content"}),
        ("functions", [{"name": "f"}]),
        ("web_search_options", {}),
        ("store", True),
        ("metadata", {"topic": "x"}),
        ("service_tier", "flex"),
        # Dearer, at prices that no price list of ours has.
        ("speed", "fast"),
        ("inference_geo", "us"),
        ("mcp_servers", [{}]),
        ("vendor_field", {"x": 1}),
        ("response_format", {"type": "json_object"}),
        ("tool_choice", {"type": "allowed_tools"}),
    ],
)
def test_a_parameter_that_it_lacks_is_refused_unless_it_may_be_dropped(name: str, value: Any) -> None:
    error = _refused(**{name: value})
    assert (error.status, error.param, error.code) == (422, name, "unsupported_parameter")
    assert "Anthropic" in error.message
    assert _sent(replace(CALL, dropped=frozenset({name})), **{name: value}) == _sent()


def test_parameters_that_ask_for_what_is_so_anyway_are_no_fault() -> None:
    quiet = {
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "store": False,
        "modalities": ["text"],
        "seed": None,
        "models": ["other"],
        "route": "fallback",
    }
    assert _sent(**quiet) == _sent()


def test_a_user_that_is_named_twice_is_named_once() -> None:
    assert _sent(user="a", safety_identifier="a", metadata={"user_id": "a"})["metadata"] == {"user_id": "a"}
    assert _refused(user="a", safety_identifier="b").param == "user"


def test_details_inside_messages_are_refused_by_their_path() -> None:
    part = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}}
    messages = [{"role": "user", "name": "ann", "content": [part]}]
    assert _refused(messages=messages).param == "messages.0.name"
    without_name = replace(CALL, dropped=frozenset({"messages.0.name"}))
    assert _refused(without_name, messages=messages).param == "messages.0.content.0.image_url.detail"
    both = replace(CALL, dropped=frozenset({"messages.0.name", "messages.0.content.0.image_url.detail"}))
    assert len(_sent(both, messages=messages)["messages"]) == 1


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0, 2) | st.text("ab.{", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)

_EXTRAS = (
    *("thinking", "output_config", "cache_control", "metadata", "service_tier", "user"),
    *("reasoning_effort", "safety_identifier", "tool_choice", "top_k", "stop", "vendor"),
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(_EXTRAS, _JSON),
    ),
    st.dictionaries(
        st.sampled_from(["reasoning_details", "cache_control", "is_error", "citations", "refusal", "name"]),
        _JSON,
    ),
    _JSON,
    st.sampled_from([CALL, NEWEST]),
)
def test_whatever_is_sent_is_translated_or_refused(
    body: dict[str, Any], message: dict[str, Any], file_data: Any, call: ProviderCall
) -> None:
    part = {"type": "file", "file": {"file_data": file_data}}
    messages = [{"role": "user", "content": [part]}, {**message, "role": "assistant", "content": "x"}]
    for tried in ({"messages": HELLO, **body}, {"messages": messages}, {"messages": messages[1:], **body}):
        try:
            ANTHROPIC.build_request(replace(call, body=tried))
        except Unprocessable as error:
            assert error.param  # noqa: PT017 - a refusal is as good as a request


# No content is lost.

_TEXTS = st.text(min_size=1, max_size=20)
_IDS = st.text("abc.:", min_size=1, max_size=6)
_TEXT_PARTS = st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=20))
_IMAGE_PARTS = st.builds(
    lambda kind, data: {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}},
    st.sampled_from(["png", "jpeg", "gif", "webp"]),
    st.binary(min_size=1, max_size=9).map(lambda data: base64.b64encode(data).decode()),
)
_URL_PARTS = st.builds(
    lambda name: {"type": "image_url", "image_url": {"url": f"https://e.org/{name}"}},
    st.text("abc", max_size=4),
)
_FILE_PARTS = st.builds(
    lambda text: {
        "type": "file",
        "file": {"file_data": f"data:text/plain;base64,{base64.b64encode(text.encode()).decode()}"},
    },
    _TEXTS,
)
_PARTS = st.lists(_TEXT_PARTS | _IMAGE_PARTS | _URL_PARTS | _FILE_PARTS, max_size=4)
_CALLS = st.builds(
    lambda call_id, name, arguments: {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments)},
    },
    _IDS,
    st.text("abc_", min_size=1, max_size=6),
    st.dictionaries(_TEXTS, _JSON, max_size=3),
)
_CONVERSATIONS = st.lists(
    st.one_of(
        st.builds(
            lambda content: {"role": "system", "content": content},
            st.text(max_size=9) | st.lists(_TEXT_PARTS),
        ),
        st.builds(lambda content: {"role": "user", "content": content}, st.text(max_size=9) | _PARTS),
        st.builds(
            lambda content, calls: {"role": "assistant", "content": content, "tool_calls": calls},
            st.none() | st.text(max_size=9) | st.lists(_TEXT_PARTS, max_size=3),
            st.lists(_CALLS, max_size=3),
        ),
        st.builds(
            lambda call_id, content: {"role": "tool", "tool_call_id": call_id, "content": content},
            _IDS,
            st.text(max_size=9) | _PARTS,
        ),
    ),
    min_size=1,
    max_size=8,
)


def _atoms_asked(messages: list[Any]) -> list[tuple[Any, ...]]:
    """Everything that an OpenAI conversation says, in order, each with who says it."""
    said: list[tuple[Any, ...]] = []
    for message in messages:
        role = message["role"]
        content = message.get("content") or []
        parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts = [part for part in parts if part["type"] == "text"]
        if role != "tool" and not any(part["text"].strip() for part in texts):
            parts = [part for part in parts if part["type"] != "text"]
        if role == "tool":
            said.append(("result",))
        for part in parts:
            if part["type"] == "text":
                said += [(role, part["text"])] if part["text"] else []
            elif part["type"] == "file":
                data = part["file"]["file_data"].partition(",")[2]
                said.append((role, "document", base64.b64decode(data).decode()))
            else:
                said.append((role, "image", part["image_url"]["url"]))
        for call in message.get("tool_calls") or []:
            said.append(("call", call["function"]["name"], json.loads(call["function"]["arguments"])))
    return said


def _atoms_sent(role: str, blocks: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    said: list[tuple[Any, ...]] = []
    for block in blocks:
        match block["type"]:
            case "text":
                said.append((role, block["text"]))
            case "image" | "document":
                source = block["source"]
                shown = {
                    "url": source.get("url"),
                    "text": source.get("data"),
                    "base64": f"data:{source.get('media_type')};base64,{source.get('data')}",
                }
                said.append((role, block["type"], shown[source["type"]]))
            case "tool_use":
                said.append(("call", block["name"], block["input"]))
            case "tool_result":
                inside: Any = block.get("content", [])
                inside = [{"type": "text", "text": inside}] if isinstance(inside, str) else inside
                said += [("result",), *_atoms_sent("tool", inside)]
    return said


@given(_CONVERSATIONS)
def test_no_content_of_a_conversation_is_lost(messages: list[dict[str, Any]]) -> None:
    sent = _sent(messages=messages)
    asked = _atoms_asked(messages)
    assert _atoms_sent("system", sent.get("system", [])) == [atom for atom in asked if atom[0] == "system"]
    turns = [atom for turn in sent["messages"] for atom in _atoms_sent(turn["role"], turn["content"])]
    assert turns == [atom for atom in asked if atom[0] != "system"]
    for one, next_one in pairwise(sent["messages"]):
        assert one["role"] != next_one["role"]
    ids = [call["id"] for message in messages for call in message.get("tool_calls") or []]
    used = [
        block["id"] for turn in sent["messages"] for block in turn["content"] if block["type"] == "tool_use"
    ]
    # Which result belongs to which call is as clear as it was.
    assert [ids.index(one) for one in ids] == [used.index(one) for one in used]


# Answers.


def _answer(name: str) -> Any:
    Message.model_validate_json(_read(name))
    answer = ANTHROPIC.parse_answer(CALL, _read(name))
    ChatCompletion.model_validate(answer.body)
    return answer


def test_a_plain_answer() -> None:
    answer = _answer("message.json")
    assert answer.body["id"] == "msg_01XFDUDYJgAACzvnptvVoYEL"
    assert answer.body["model"] == "claude-opus-5"
    choice = answer.body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello!", "refusal": None}
    assert (choice["finish_reason"], choice["native_finish_reason"]) == ("stop", "end_turn")
    assert answer.usage == TokenUsage(input=12, output=6)
    assert answer.body["usage"] == {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18}
    assert answer.generated == ("Hello!",)
    assert answer.finish_reasons == ("stop",)


def test_an_answer_that_calls_a_tool() -> None:
    answer = _answer("message_tools.json")
    message = answer.body["choices"][0]["message"]
    assert message["tool_calls"] == [
        {
            "id": "toolu_01A09q90qw90lq917835lq9",
            "type": "function",
            "function": {
                "name": "get_weather",
                "arguments": '{"location": "San Francisco, CA", "unit": "celsius"}',
            },
        }
    ]
    assert answer.finish_reasons == ("tool_calls",)
    assert answer.generated[0].endswith('get_weather{"location": "San Francisco, CA", "unit": "celsius"}')


def test_an_answer_that_was_thought_over_carries_its_signature() -> None:
    answer = _answer("message_thinking.json")
    message = answer.body["choices"][0]["message"]
    assert message["content"] == "Based on my analysis..."
    assert message["reasoning_content"].startswith("Let me break this down.")
    assert message["reasoning_details"] == [
        {
            "type": "reasoning.text",
            "format": "anthropic-claude-v1",
            "index": 0,
            "block": 0,
            "text": message["reasoning_content"],
            "signature": "WaUjzkypQ2mUEVM36O2Txu....",
        }
    ]
    assert answer.usage == TokenUsage(input=30, output=309, cached_input=0, cache_write=0, reasoning=241)
    assert answer.body["service_tier"] == "default"


def test_a_refusal_is_filtered_content() -> None:
    answer = _answer("message_refused.json")
    choice = answer.body["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["refusal"] == "This request was declined because it could enable cyber harm."
    assert answer.generated == ("Hello..",)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "stop"),
        ("a_reason_of_a_later_day", "stop"),
    ],
)
def test_each_stop_reason_has_its_finish_reason(reason: str, finish: str) -> None:
    body = json.loads(_read("message.json")) | {"stop_reason": reason, "stop_sequence": "END"}
    answer = ANTHROPIC.parse_answer(CALL, json.dumps(body).encode())
    choice = answer.body["choices"][0]
    assert (choice["finish_reason"], choice["native_finish_reason"]) == (finish, reason)
    assert choice["stop_reason"] == "END"


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[]", b"7", b"{}", b'{"content":{}}', b'{"content":[7]}', b"[" * 200_000]
)
def test_an_answer_that_is_none_is_502(content: bytes) -> None:
    with pytest.raises(ProviderError) as caught:
        ANTHROPIC.parse_answer(CALL, content)
    assert (caught.value.fault, caught.value.as_gateway_error().status) == (Fault.PROTOCOL, 502)


# Usage.


def test_cache_reads_and_writes_are_classes_of_their_own() -> None:
    answer = _answer("message_cached.json")
    assert answer.usage is not None
    assert (answer.usage.input, answer.usage.cached_input, answer.usage.cache_write) == (2048, 1800, 248)
    # What was written for an hour is a part of what was written, at a price of its own.
    assert answer.usage.cache_write_1h == 100
    assert answer.usage.total_input == 2048 + 1800 + 248
    assert answer.body["usage"]["prompt_tokens"] == 4096
    assert answer.body["usage"]["prompt_tokens_details"] == {
        "cached_tokens": 1800,
        "cache_write_tokens": 248,
        "cache_write_1h_tokens": 100,
    }


def test_the_lifetimes_of_a_stream_are_those_that_it_began_with() -> None:
    data = _read("stream_text.sse").replace(
        b'{"input_tokens": 25,',
        b'{"input_tokens": 25, "cache_creation_input_tokens": 9, '
        b'"cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 7},',
    )
    stream, _ = _stream(data)
    assert stream.usage == TokenUsage(input=25, cache_write=9, cache_write_1h=7, output=15)


@pytest.mark.parametrize(
    "reported",
    [
        None,
        7,
        {},
        {"input_tokens": 5},
        {"output_tokens": 5},
        {"input_tokens": -1, "output_tokens": 5},
        {"input_tokens": "5", "output_tokens": 5},
        {"input_tokens": True, "output_tokens": 5},
        {"input_tokens": 10**9, "output_tokens": 5},
        {"input_tokens": 0, "output_tokens": 5},
    ],
)
def test_usage_that_makes_no_sense_is_none(reported: Any) -> None:
    assert read_usage(reported) is None


def test_a_prompt_that_was_read_from_the_cache_whole_is_usage() -> None:
    reported = {"input_tokens": 0, "cache_read_input_tokens": 900, "output_tokens": 5}
    assert read_usage(reported) == TokenUsage(input=0, cached_input=900, output=5)


def test_usage_that_denies_what_was_generated_is_none() -> None:
    body = json.loads(_read("message.json")) | {"usage": {"input_tokens": 9, "output_tokens": 0}}
    assert ANTHROPIC.parse_answer(CALL, json.dumps(body).encode()).usage is None


_COUNTS = st.none() | st.integers(0, 1000)


@given(_COUNTS, _COUNTS, _COUNTS, _COUNTS, _COUNTS)
def test_each_token_is_counted_once(
    fresh: int | None, read: int | None, written: int | None, output: int | None, thought: int | None
) -> None:
    usage = read_usage(
        {
            "input_tokens": fresh,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "output_tokens": output,
            "output_tokens_details": None if thought is None else {"thinking_tokens": thought},
        }
    )
    sent = (fresh or 0) + (read or 0) + (written or 0)
    assert (usage is None) == (fresh is None or output is None or not sent)
    if usage is not None and output is not None:
        assert (usage.total_input, usage.total_output, usage.total) == (sent, output, sent + output)
        assert usage.reasoning == (None if thought is None else min(thought, output))


# Streams.


def _stream(
    data: bytes, *, cuts: tuple[int, ...] = (), call: ProviderCall = CALL
) -> tuple[Any, list[StreamEvent]]:
    stream = ANTHROPIC.open_stream(replace(call, stream=True))
    events: list[StreamEvent] = []
    for start, end in pairwise((0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data))):
        events += stream.feed(data[start:end])
    events += stream.close()
    for event in events:
        if isinstance(event, Chunk):
            sent = json.loads(event.sse.removeprefix(b"data: "))
            assert sent == event.data
            ChatCompletionChunk.model_validate(sent)
    return stream, events


def _joined(events: list[StreamEvent]) -> dict[str, Any]:
    """What OpenAI's own SDK makes of the chunks."""
    state = ChatCompletionStreamState()
    for event in events:
        if isinstance(event, Chunk):
            state.handle_chunk(ChatCompletionChunk.model_validate(event.data))
    choice = state.get_final_completion().model_dump()["choices"][0]
    message = choice["message"]
    for call in message.get("tool_calls") or []:
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    return {
        "finish_reason": choice["finish_reason"],
        **{name: value for name, value in message.items() if value},
    }


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    choice = body["choices"][0]
    message = {name: value for name, value in choice["message"].items() if value}
    return {"finish_reason": choice["finish_reason"], **message}


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("stream_*.sse")))
def test_the_recorded_streams_are_what_the_sdk_reads(name: str) -> None:
    events = [
        json.loads(line.removeprefix(b"data: "))
        for line in _read(name).splitlines()
        if line.startswith(b"data: ")
    ]
    for event in events:
        if event["type"] in {"ping", "error"} or "usage" not in event.get("message", event | {"usage": {}}):
            continue
        # The documents leave the usage of some events out.
        _EVENT.validate_python({"usage": {"output_tokens": 0}, **event})


def test_a_stream_of_text() -> None:
    stream, events = _stream(_read("stream_text.sse"))
    assert isinstance(events[-1], StreamDone)
    chunks = [event.data for event in events if isinstance(event, Chunk)]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "Hello"},
        {"content": "!"},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert {chunk["id"] for chunk in chunks} == {"msg_1nZdL29xx5MUA1yADyHTEsnR8uuvGzszyY"}
    assert stream.usage == TokenUsage(input=25, output=15)
    assert stream.complete
    assert stream.generated == ("Hello!",)
    assert stream.finish_reasons == ("stop",)
    last = stream.usage_chunk(gateway_usage={"x": 1})
    ChatCompletionChunk.model_validate(last.data)
    assert last.data["usage"] == {"prompt_tokens": 25, "completion_tokens": 15, "total_tokens": 40}
    assert last.data["gateway_usage"] == {"x": 1}


def test_a_stream_that_calls_a_tool() -> None:
    stream, events = _stream(_read("stream_tools.sse"))
    joined = _joined(events)
    assert joined["content"] == "Okay, let's check the weather for San Francisco, CA:"
    assert joined["tool_calls"] == [
        {
            "id": "toolu_01T1x1fJ34qAmk2tNTrN7Up6",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"location": "San Francisco, CA"}'},
        }
    ]
    assert joined["finish_reason"] == "tool_calls"
    assert stream.usage == TokenUsage(input=472, output=89)


def test_a_stream_that_is_thought_over() -> None:
    stream, events = _stream(_read("stream_thinking.sse"))
    joined = _joined(events)
    assert joined["reasoning_content"].endswith("so GCD(1071, 462) = 21.")
    assert joined["reasoning_details"] == [
        {
            "type": "reasoning.text",
            "format": "anthropic-claude-v1",
            "index": 0,
            "block": 0,
            "text": joined["reasoning_content"],
            "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds...",
        }
    ]
    assert stream.usage is None
    assert stream.complete


@pytest.mark.parametrize("name", ["stream_text.sse", "stream_tools.sse", "stream_thinking.sse"])
@given(cuts=st.lists(st.integers(0, 10_000), max_size=6).map(tuple))
def test_it_does_not_matter_how_the_bytes_arrive(name: str, cuts: tuple[int, ...]) -> None:
    whole, parts = _stream(_read(name)), _stream(_read(name), cuts=cuts)
    assert _joined(whole[1]) == _joined(parts[1])
    assert whole[0].usage == parts[0].usage


def test_nothing_is_given_out_before_there_is_content() -> None:
    # So that a provider that is overloaded in that moment can still give way to another.
    stream, events = _stream(_read("stream_overloaded.sse"))
    (failed,) = events
    assert isinstance(failed, StreamFailed)
    assert failed.error.retryable
    assert (failed.error.status, failed.error.as_gateway_error().status) == (529, 503)
    assert not stream.complete
    assert stream.feed(_read("stream_text.sse")) == []


@given(st.integers(0, 10_000))
def test_a_stream_that_was_cut_is_not_whole_and_has_told_no_usage(cut: int) -> None:
    data = _read("stream_tools.sse")
    before_the_end = data[: cut % data.index(b"event: message_delta")]
    stream, events = _stream(before_the_end)
    assert not stream.complete
    # What message_start says of the output is a guess: it is counted instead. The input is known by then.
    assert stream.usage is None
    assert stream.input_usage in {None, TokenUsage(input=472)}
    assert stream.input_usage is not None or not stream.generated[0]
    assert not any(isinstance(event, StreamDone | StreamFailed) for event in events)
    assert stream.generated[0] == "".join(
        [
            *[
                event.data["choices"][0]["delta"].get("content") or ""
                for event in events
                if isinstance(event, Chunk)
            ],
            *[
                piece
                for event in events
                if isinstance(event, Chunk)
                for call in event.data["choices"][0]["delta"].get("tool_calls") or []
                for piece in (call["function"].get("name") or "", call["function"]["arguments"])
            ],
        ]
    )


def test_a_stream_without_its_last_event_is_whole() -> None:
    data = _read("stream_text.sse").replace(b'event: message_stop\ndata: {"type": "message_stop"}\n\n', b"")
    stream, events = _stream(data)
    assert stream.complete
    assert stream.usage == TokenUsage(input=25, output=15)
    assert not any(isinstance(event, StreamDone) for event in events)


@pytest.mark.parametrize("data", [b"data: {\n\n", b"data: 7\n\n", b"event: message_start\ndata: []\n\n"])
def test_an_event_that_can_not_be_read_ends_the_stream(data: bytes) -> None:
    _, events = _stream(data + _read("stream_text.sse"))
    (failed,) = events
    assert isinstance(failed, StreamFailed)
    assert failed.error.fault is Fault.PROTOCOL


def test_events_of_a_later_day_are_passed_over() -> None:
    later = (
        b'event: news\ndata: {"type":"news"}\n\n'
        b'data: {"type":"content_block_start","index":9,"content_block":{"type":"hologram"}}\n\n'
        b'data: {"type":"content_block_delta","index":9,"delta":{"type":"text_delta","text":"?"}}\n\n'
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"odour_delta"}}\n\n'
        b'data: {"type":"content_block_stop","index":9}\n\n'
    )
    stream, _ = _stream(later + _read("stream_text.sse"))
    assert stream.generated == ("Hello!",)


_SIGNATURES = st.text("abcDEF=", min_size=1, max_size=8)
_THOUGHTS = st.builds(
    lambda text, signature: {"type": "thinking", "thinking": text, "signature": signature},
    st.text(max_size=20),
    _SIGNATURES,
) | st.builds(lambda data: {"type": "redacted_thinking", "data": data}, _SIGNATURES)
_USES = st.builds(
    lambda call_id, name, given: {"type": "tool_use", "id": f"toolu_{call_id}", "name": name, "input": given},
    st.integers(0, 999),
    st.text("abc_", min_size=1, max_size=6),
    st.dictionaries(_TEXTS, _JSON, max_size=3),
)
_BLOCKS = st.builds(
    lambda texts, rest: [*texts, *rest],
    st.lists(_THOUGHTS | st.builds(lambda text: {"type": "text", "text": text}, _TEXTS), max_size=4),
    st.lists(_THOUGHTS | _USES, max_size=4),
)


def _events_of(message: dict[str, Any], size: int) -> bytes:
    """The message as the API would stream it, its texts in pieces of `size` characters."""

    def pieces(text: str) -> list[str]:
        return [text[start : start + size] for start in range(0, len(text), size)]

    start = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    for index, block in enumerate(message["content"]):
        opened, deltas = dict(block), []
        match block["type"]:
            case "text":
                opened["text"] = ""
                deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
            case "thinking":
                opened |= {"thinking": "", "signature": ""}
                deltas = [
                    {"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])
                ]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            case "tool_use":
                opened["input"] = {}
                text = json.dumps(block["input"], ensure_ascii=False) if block["input"] else ""
                deltas = [
                    {"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces(text)]
                ]
        events.append({"type": "content_block_start", "index": index, "content_block": opened})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    ending = {name: message[name] for name in ("stop_reason", "stop_sequence")}
    told = {"output_tokens": message["usage"]["output_tokens"]}
    events += [{"type": "message_delta", "delta": ending, "usage": told}, {"type": "message_stop"}]
    for event in events:
        _EVENT.validate_python(event)
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def _message(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-5",
        "content": blocks,
        "stop_reason": "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "cache_read_input_tokens": 3, "output_tokens": 50},
    }


@given(_BLOCKS, st.integers(1, 5))
def test_the_streamed_and_the_plain_answer_are_the_same(blocks: list[dict[str, Any]], size: int) -> None:
    message = _message(blocks)
    plain = ANTHROPIC.parse_answer(CALL, json.dumps(message).encode())
    stream, events = _stream(_events_of(message, size))
    assert _joined(events) == _whole(plain.body)
    assert (stream.usage, stream.generated, stream.finish_reasons) == (
        plain.usage,
        plain.generated,
        plain.finish_reasons,
    )


@given(_BLOCKS)
def test_an_answer_that_is_sent_back_is_what_was_answered(blocks: list[dict[str, Any]]) -> None:
    """Blocks in their order, thoughts unchanged: the API demands it of a turn that called tools."""
    answer = ANTHROPIC.parse_answer(CALL, json.dumps(_message(blocks)).encode())
    echoed = json.loads(json.dumps(answer.body["choices"][0]["message"]))
    turns = _sent(NEWEST, messages=[*HELLO, echoed])["messages"]
    # Texts make one block, where the first of them stood; a place among the thoughts is no text's to lose.
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    texts = texts if "".join(texts).strip() else []
    expected: list[dict[str, Any]] = []
    for block in blocks:
        if block["type"] != "text":
            expected.append(block)
        elif texts:
            expected.append({"type": "text", "text": "".join(texts)})
            texts = []
    assert (turns[1]["content"] if len(turns) > 1 else []) == expected


def test_reasoning_that_anthropic_did_not_sign_stays_behind() -> None:
    foreign = {
        "role": "assistant",
        "content": "4",
        "reasoning_content": "2 + 2",
        "reasoning_details": [
            {"type": "reasoning.text", "text": "2 + 2", "format": "unknown", "signature": "x"},
            {"type": "reasoning.summary", "summary": "sums"},
            {"type": "reasoning.text", "text": "2 + 2"},
            7,
        ],
    }
    assert _messages(*HELLO, foreign)[1]["content"] == [{"type": "text", "text": "4"}]


def test_citations_stream_as_they_are_answered() -> None:
    cited = {
        "type": "char_location",
        "cited_text": "a",
        "document_index": 0,
        "start_char_index": 0,
        "end_char_index": 1,
    }
    message = _message([{"type": "text", "text": "A.", "citations": [cited, cited]}])
    plain = ANTHROPIC.parse_answer(CALL, json.dumps(message).encode())
    delta = {"type": "citations_delta", "citation": cited}
    event = {"type": "content_block_delta", "index": 0, "delta": delta}
    _EVENT.validate_python(event)
    end = b"event: content_block_stop"
    data = _events_of(_message([{"type": "text", "text": "A."}]), 9)
    _, events = _stream(data.replace(end, 2 * f"data: {json.dumps(event)}\n\n".encode() + end))
    told = plain.body["choices"][0]["message"]["citations"]
    assert told == [{"index": 0, **cited}, {"index": 1, **cited}]
    assert _joined(events)["citations"] == told


# Errors.


@pytest.mark.parametrize(
    ("status", "fault", "answered"),
    [
        (400, Fault.CLIENT, 400),
        (401, Fault.OPERATOR, 502),
        (402, Fault.OPERATOR, 502),
        (403, Fault.OPERATOR, 502),
        (404, Fault.OPERATOR, 502),
        (413, Fault.CLIENT, 413),
        (429, Fault.TRANSIENT, 503),
        (500, Fault.TRANSIENT, 502),
        (504, Fault.TRANSIENT, 504),
        (529, Fault.TRANSIENT, 503),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_each_recorded_error_has_its_fault(status: int, fault: Fault, answered: int, inside: bool) -> None:
    body = next(body for told, body in json.loads(_read("errors.json")) if told == status)
    body["error"]["message"] += f" {KEY}"
    if inside:
        _, (event,) = _stream(f"event: error\ndata: {json.dumps(body)}\n\n".encode())
        assert isinstance(event, StreamFailed)
        error = event.error
    else:
        error = ANTHROPIC.parse_error(CALL, status, {"Retry-After": "7"}, json.dumps(body).encode())
        assert error.retry_after == (None if fault is Fault.OPERATOR else 7.0)
    given_out = error.as_gateway_error()
    assert (error.status, error.fault, given_out.status) == (status, fault, answered)
    assert KEY not in f"{given_out.body()} {given_out.detail} {error}"
    if fault is Fault.CLIENT:
        assert given_out.message.startswith("Anthropic refused the request: ")
    elif fault is Fault.TRANSIENT:
        assert body["error"]["type"] in (given_out.detail or "")


@pytest.mark.parametrize(
    ("said", "fault", "code"),
    [
        ("prompt is too long: 200123 tokens > 200000 maximum", Fault.CLIENT, "context_length_exceeded"),
        (
            "input length and `max_tokens` exceed context limit: 199000 + 20000 > 200000",
            Fault.CLIENT,
            "context_length_exceeded",
        ),
        ("Output blocked by content filtering policy", Fault.CLIENT, "content_policy_violation"),
        ("tools.0.name: Field required", Fault.CLIENT, "provider_refused"),
        ("Your credit balance is too low to access the Anthropic API.", Fault.OPERATOR, None),
        ("You have reached your specified API usage limits.", Fault.OPERATOR, None),
    ],
)
def test_what_a_400_is_about(said: str, fault: Fault, code: str | None) -> None:
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
    error = ANTHROPIC.parse_error(CALL, 400, {}, json.dumps(body).encode())
    assert error.fault is fault
    if fault is Fault.CLIENT:
        assert error.as_gateway_error().code == code
        assert said in error.message
    else:
        assert said not in error.as_gateway_error().message
        assert said in (error.detail or "")


@pytest.mark.parametrize("content", [b"", b"<html>", b"7", b'{"error":7}', b'{"error":{"message":7}}'])
def test_an_error_in_any_shape_is_one(content: bytes) -> None:
    assert ANTHROPIC.parse_error(CALL, 400, {}, content).fault is Fault.CLIENT
    assert ANTHROPIC.parse_error(CALL, 503, {}, content).retryable
    assert ANTHROPIC.parse_error(CALL, 302, {}, content).fault is Fault.OPERATOR


def test_an_error_with_status_200_is_an_error() -> None:
    with pytest.raises(ProviderError) as caught:
        ANTHROPIC.parse_answer(
            CALL, b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
        )
    assert caught.value.status == 529


# The list of models.


def test_the_list_of_models_is_read() -> None:
    request = ANTHROPIC.build_list_request(CALL)
    assert request.url == "https://api.anthropic.com/v1/models?limit=1000"
    assert request.headers["x-api-key"] == KEY
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert ANTHROPIC.parse_list(_read("models.json")) == frozenset(
        {"claude-opus-4-6", "claude-haiku-4-5-20251001"}
    )
    assert ANTHROPIC.parse_list(b"{}") is None
    assert ANTHROPIC.parse_list(b"<") is None


# The bound on input.


def test_what_anthropic_adds_to_a_prompt_is_within_the_bound() -> None:
    plain = input_bound({"messages": HELLO})
    with_tools = input_bound({"messages": HELLO, "tools": [WEATHER]})
    assert plain is not None
    assert with_tools is not None
    # 804 tokens before its tools' own, at its dearest model (Opus 4.7, tool_choice any).
    assert with_tools - plain - len(json.dumps(WEATHER, separators=(",", ":"))) >= 804


def test_thoughts_that_are_sent_back_have_a_bound_and_media_have_none() -> None:
    answer = ANTHROPIC.parse_answer(CALL, _read("message_thinking.json"))
    echoed = answer.body["choices"][0]["message"]
    bound = input_bound({"messages": [*HELLO, echoed]})
    assert bound is not None
    assert bound >= len(json.dumps(echoed["reasoning_details"]))
    failed = {"role": "tool", "tool_call_id": "c", "content": "no", "is_error": True}
    assert input_bound({"messages": [*HELLO, failed]}) is not None
    for part in (
        {"type": "image_url", "image_url": {"url": PIXEL}},
        {"type": "file", "file": {"file_data": PIXEL}},
    ):
        assert input_bound({"messages": [{"role": "user", "content": [part]}]}) is None


def test_nothing_that_it_says_is_a_price() -> None:
    assert ANTHROPIC.open_stream(CALL).reported_cost_usd is None
    assert ANTHROPIC.parse_answer(CALL, _read("message.json")).reported_cost_usd is None
