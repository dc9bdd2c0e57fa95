from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import Unprocessable
from gateway.http import validate
from gateway.schemas.chat import ChatCompletionRequest, GenerateRequest, LayersChatRequest

USER = {"role": "user", "content": "Hi"}


def _chat(**changes: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **changes}


@pytest.mark.parametrize(
    "body",
    [
        _chat(),
        _chat(
            messages=[
                {"role": "system", "content": "s"},
                {"role": "developer", "content": [{"type": "text", "text": "t"}]},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
                {
                    "role": "user",
                    "content": [{"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}}],
                },
                {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]},
                {
                    "role": "user",
                    "content": [{"type": "video_url", "video_url": {"url": "https://x"}}],
                    "name": "n",
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "content": "42", "tool_call_id": "c"},
                {"role": "assistant", "refusal": "No.", "content": None},
            ]
        ),
        _chat(temperature=1, top_p=0.5, n=2, seed=-1, stop="x", logprobs=True, top_logprobs=3),
        _chat(stop=["a", "b"], user="u", stream=True, stream_options={"include_usage": True}),
        _chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}], tool_choice="auto"),
        _chat(tools=[{"type": "custom", "custom": {"name": "x"}}], tool_choice={"type": "function"}),
        _chat(response_format={"type": "json_schema", "json_schema": {"name": "x"}}),
        _chat(temperature=None, max_tokens=None, tools=None, stream=None, stop=None, models=None),
        _chat(vendor_field={"anything": [1]}, model="deepseek/deepseek-r1-0528"),
    ],
)
def test_what_openai_takes_is_taken_and_nothing_is_dropped(body: dict[str, Any]) -> None:
    before = repr(body)
    request = validate(ChatCompletionRequest, body)
    assert repr(body) == before
    assert set(body) <= set(request.model_dump())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [USER]}, "model"),
        ({"model": "m"}, "messages"),
        (_chat(model=""), "model"),
        (_chat(model=7), "model"),
        (_chat(messages=[]), "messages"),
        (_chat(messages="Hi"), "messages"),
        (_chat(messages=["Hi"]), "messages.0"),
        (_chat(messages=[USER, {"content": "x"}]), "messages.1.role"),
        (_chat(messages=[{"role": "robot", "content": "x"}]), "messages.0.role"),
        (_chat(messages=[{"role": "user", "content": 5}]), "messages.0.content"),
        (_chat(messages=[{"role": "user"}]), "messages.0"),
        (_chat(messages=[{"role": "user", "content": [{"text": "x"}]}]), "messages.0.content.0.type"),
        (_chat(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages.0.content.0"),
        (
            _chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            "messages.0.content.0.image_url.url",
        ),
        (
            _chat(messages=[{"role": "user", "content": [{"type": "text", "text": 5}]}]),
            "messages.0.content.0.text",
        ),
        (_chat(messages=[{"role": "tool", "content": "x"}]), "messages.0"),
        (
            _chat(messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]),
            "messages.0.tool_calls.0.function.arguments",
        ),
        (_chat(max_tokens=False), "max_tokens"),
        (_chat(max_tokens=True), "max_tokens"),
        (_chat(max_tokens="5"), "max_tokens"),
        (_chat(max_tokens=5.0), "max_tokens"),
        (_chat(max_tokens=0), "max_tokens"),
        (_chat(max_tokens=-1), "max_tokens"),
        (_chat(max_tokens=10**30), "max_tokens"),
        (_chat(max_completion_tokens=0), "max_completion_tokens"),
        (_chat(n=0), "n"),
        (_chat(n=129), "n"),
        (_chat(n=True), "n"),
        (_chat(stream="true"), "stream"),
        (_chat(stream=1), "stream"),
        (_chat(stream_options=[]), "stream_options"),
        (_chat(stream_options={"include_usage": 1}), "stream_options.include_usage"),
        (_chat(temperature=2.1), "temperature"),
        (_chat(temperature=True), "temperature"),
        (_chat(top_p=-0.1), "top_p"),
        (_chat(top_logprobs=21), "top_logprobs"),
        (_chat(seed=2**63), "seed"),
        (_chat(stop=[1]), "stop.0"),
        (_chat(models="m"), "models"),
        (_chat(models=["m"] * 17), "models"),
        (_chat(models=["a", 7]), "models.1"),
        (_chat(tools=[{"type": "function"}]), "tools.0"),
        (_chat(tools={"type": "function"}), "tools"),
        (_chat(response_format="json"), "response_format"),
    ],
)
def test_what_is_invalid_is_422_and_names_the_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        validate(ChatCompletionRequest, body)
    assert caught.value.param == param
    assert caught.value.message.startswith(f"{param}: ")


def test_the_message_does_not_repeat_the_input() -> None:
    body = _chat(messages=[{"role": "user", "content": {"secret": "hunter2" * 1000}}])
    with pytest.raises(Unprocessable) as caught:
        validate(ChatCompletionRequest, body)
    assert "hunter2" not in caught.value.message
    assert "must be a string or an array" in caught.value.message


@pytest.mark.parametrize("value", [None, [], "x", 7])
def test_a_body_that_is_no_object_is_422(value: Any) -> None:
    with pytest.raises(Unprocessable, match="JSON object"):
        validate(ChatCompletionRequest, value)


def test_many_bad_messages_are_refused_at_the_first() -> None:
    with pytest.raises(Unprocessable) as caught:
        validate(ChatCompletionRequest, _chat(messages=[{}] * 200_000))
    assert caught.value.param == "messages.0.role"


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 5),
        ({"max_tokens": 9, "max_completion_tokens": 6}, 6),
        ({"max_tokens": None, "max_completion_tokens": 6}, 6),
    ],
)
def test_the_tighter_of_two_bounds_holds(bounds: dict[str, Any], expected: int | None) -> None:
    assert validate(ChatCompletionRequest, _chat(**bounds)).output_bound == expected


def test_what_the_gateway_asks_of_a_request() -> None:
    plain = validate(ChatCompletionRequest, _chat())
    assert (plain.choices, plain.wants_stream, plain.wants_usage, plain.candidates) == (
        1,
        False,
        False,
        ("m",),
    )
    request = validate(
        ChatCompletionRequest,
        _chat(n=3, stream=True, stream_options={"include_usage": True}, models=["b", "m", "c", "b"]),
    )
    assert (request.choices, request.wants_stream, request.wants_usage) == (3, True, True)
    assert request.candidates == ("m", "b", "c")


@pytest.mark.parametrize("model_id", [1, 2**31 - 1, "sim/echo"])
def test_generate(model_id: int | str) -> None:
    request = validate(GenerateRequest, {"text": "t", "model_id": model_id, "max_length": 9, "extra": 1})
    assert request.model_id == model_id
    assert validate(GenerateRequest, {"text": "t", "model_id": model_id}).max_length is None


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"text": ""}, "text"),
        ({"text": 7}, "text"),
        ({"model_id": True}, "model_id"),
        ({"model_id": 0}, "model_id"),
        ({"model_id": 2**31}, "model_id"),
        ({"model_id": ""}, "model_id"),
        ({"model_id": None}, "model_id"),
        ({"model_id": 1.5}, "model_id"),
        ({"max_length": 0}, "max_length"),
    ],
)
def test_generate_refuses(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        validate(GenerateRequest, {"text": "t", "model_id": 1, **changes})
    assert caught.value.param == param


def test_layers_chat() -> None:
    body = {"providerName": "openai", "model_name": "gpt", "message": "Hi"}
    assert validate(LayersChatRequest, body).providerName == "openai"
    for name in body:
        with pytest.raises(Unprocessable) as caught:
            validate(LayersChatRequest, {**body, name: ""})
        assert caught.value.param == name
        with pytest.raises(Unprocessable) as caught:
            validate(LayersChatRequest, {key: value for key, value in body.items() if key != name})
        assert caught.value.param == name
