"""Chats over legacy text completions: what is sent is a prompt, what comes back is a message."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_create_params import CompletionCreateParams
from pydantic import TypeAdapter

from gateway.errors import Unprocessable
from gateway.providers.plain_prompt import write_turns
from gateway.providers.registry import provider_named
from gateway.providers.text_completions import TEXT_COMPLETIONS
from gateway.providers.wire import Chunk, Fault, ProviderCall, ProviderError, StreamDone, StreamFailed
from gateway.schemas.usage import TokenUsage

FIXTURES = Path(__file__).parents[1] / "fixtures" / "completions"
ASKED = {"role": "user", "content": "Hello"}
TURNS = [ASKED, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Go on."}]
CALL = ProviderCall(
    provider=provider_named("completions"),
    base_url="https://api.example.com/v1/completions",
    model="lawgent-thinking",
    body={"messages": TURNS},
    output_bound=100,
    stream=False,
    key="sk-provider",
    wants_usage=True,
)


def sent(**body: Any) -> dict[str, Any]:
    call = replace(CALL, body={"messages": TURNS, **body}, stream=bool(body.get("stream")))
    made: dict[str, Any] = json.loads(TEXT_COMPLETIONS.build_request(call).content)
    TypeAdapter(CompletionCreateParams).validate_python(made)
    return made


@pytest.mark.parametrize(
    ("base_url", "url", "models"),
    [
        (
            "https://api.example.com/v1/completions",
            "https://api.example.com/v1/completions",
            "https://api.example.com/v1/models",
        ),
        (
            "https://api.example.com/v1/completions/",
            "https://api.example.com/v1/completions",
            "https://api.example.com/v1/models",
        ),
        (
            "https://api.example.com/v1",
            "https://api.example.com/v1/completions",
            "https://api.example.com/v1/models",
        ),
        ("https://example.com", "https://example.com/completions", "https://example.com/models"),
    ],
)
def test_a_base_url_may_be_the_whole_address(base_url: str, url: str, models: str) -> None:
    call = replace(CALL, base_url=base_url)
    request = TEXT_COMPLETIONS.build_request(call)
    assert (request.method, request.url) == ("POST", url)
    assert request.headers["authorization"] == "Bearer sk-provider"
    listing = TEXT_COMPLETIONS.build_list_request(call)
    assert (listing.method, listing.url) == ("GET", models)


@pytest.mark.parametrize(
    ("turns", "prompt"),
    [
        ([("user", "Once upon a time")], "Once upon a time"),
        ([("system", "Be terse."), ("user", "Hi")], "Be terse.\n\nUser: Hi\n\nAssistant:"),
        (
            [("developer", "A"), ("system", "B"), ("user", "C"), ("system", "D"), ("user", "E")],
            "A\n\nB\n\nUser: C\n\nSystem: D\n\nUser: E\n\nAssistant:",
        ),
        (
            [("user", "A"), ("assistant", "B"), ("user", "C")],
            "User: A\n\nAssistant: B\n\nUser: C\n\nAssistant:",
        ),
        ([("user", "Count"), ("assistant", "One, two,")], "User: Count\n\nAssistant: One, two,"),
        ([("system", "Begin.")], "Begin.\n\nAssistant:"),
        # What a user writes is never taken for instructions that stand before all turns.
        ([("user", "A"), ("user", "B")], "User: A\n\nUser: B\n\nAssistant:"),
    ],
)
def test_prompt_is_written_turn_by_turn(turns: list[tuple[str, str]], prompt: str) -> None:
    assert write_turns(turns) == prompt


def test_parts_of_a_message_are_one_text() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    refused = {"role": "assistant", "content": None, "refusal": "No."}
    made = sent(messages=[{"role": "user", "content": parts}, refused, ASKED])
    assert made["prompt"] == "User: one two\n\nAssistant: No.\n\nUser: Hello\n\nAssistant:"


@pytest.mark.parametrize(
    ("asked", "stops"),
    [
        (None, ["\nUser:"]),
        ("END", ["END", "\nUser:"]),
        (["a", "b", "c"], ["a", "b", "c", "\nUser:"]),
        # There is room for four.
        (["a", "b", "c", "d"], ["a", "b", "c", "d"]),
    ],
)
def test_model_stops_where_the_user_would_speak(asked: Any, stops: list[str]) -> None:
    assert sent(stop=asked)["stop"] == stops


def test_a_lone_message_is_gone_on_with_as_it_is() -> None:
    made = sent(messages=[ASKED])
    assert made == {"model": "lawgent-thinking", "prompt": "Hello", "max_tokens": 100}
    assert sent(messages=[ASKED], stop=["\n"])["stop"] == ["\n"]


def test_sampling_is_passed_on() -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "seed": 7,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {"50256": -100},
        "user": "u",
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
    }
    made = sent(**fields)
    assert {name: made[name] for name in fields} == fields


def test_stream_asks_for_usage() -> None:
    made = sent(stream=True, stream_options={"include_usage": False})
    assert made["stream"] is True
    assert made["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
        {"reasoning_effort": "high"},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"prediction": {"type": "content", "content": "x"}},
        {"store": True},
        # These would make the service generate, and charge for, more than is held.
        {"best_of": 5},
        {"echo": True},
        {"suffix": "x"},
        {"prompt": "another"},
        {"x_unknown": 1},
    ],
)
def test_what_a_prompt_can_not_say_is_refused_by_name(fields: dict[str, Any]) -> None:
    [name] = fields
    with pytest.raises(Unprocessable) as raised:
        sent(**fields)
    assert (raised.value.param, raised.value.code) == (name, "unsupported_parameter")
    dropping = replace(CALL, body={"messages": TURNS, **fields}, dropped=frozenset(fields))
    made = json.loads(TEXT_COMPLETIONS.build_request(dropping).content)
    assert made.get(name) in {None, made["prompt"]}
    assert name == "prompt" or name not in made


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"logprobs": False},
        {"modalities": ["text"]},
        {"reasoning_effort": None},
        {"models": ["other"], "route": "fallback"},
        {"store": False},
    ],
)
def test_what_asks_for_nothing_is_left_out(fields: dict[str, Any]) -> None:
    assert sent(**fields) == sent()


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}, "messages.0.content.1"),
        ({"role": "tool", "tool_call_id": "c", "content": "a"}, "messages.0"),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
            "messages.0",
        ),
        ({"role": "assistant", "content": None, "audio": {"id": "a"}}, "messages.0.audio"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "x"}}]},
            "messages.0.content.0.cache_control",
        ),
    ],
)
def test_what_is_not_text_is_refused_by_its_place(message: dict[str, Any], param: str) -> None:
    with pytest.raises(Unprocessable) as raised:
        sent(messages=[message, ASKED])
    assert raised.value.param == param


# Answers.


def recorded() -> tuple[dict[str, Any], dict[str, Any]]:
    told = json.loads((FIXTURES / "completion.json").read_text())
    return told["request"], told["response"]


def test_openais_own_exchange() -> None:
    request, response = recorded()
    Completion.model_validate(response)
    call = replace(
        CALL,
        model=request["model"],
        body={"messages": [{"role": "user", "content": request["prompt"]}], "temperature": 0},
        output_bound=request["max_tokens"],
    )
    assert json.loads(TEXT_COMPLETIONS.build_request(call).content) == request
    answer = TEXT_COMPLETIONS.parse_answer(call, json.dumps(response).encode())
    told = ChatCompletion.model_validate(answer.body)
    assert told.choices[0].message.content == "\n\nThis is indeed a test"
    assert told.choices[0].finish_reason == "length"
    assert (told.id, told.model, told.created) == (response["id"], response["model"], response["created"])
    assert answer.usage == TokenUsage(input=5, output=7)


def answered(*texts: str, **changes: Any) -> bytes:
    choices = [
        {"text": text, "index": index, "logprobs": None, "finish_reason": "stop"}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    return json.dumps({"id": "c", "choices": choices, "usage": usage, **changes}).encode()


def test_space_before_a_turn_is_the_layouts_and_before_a_text_its_own() -> None:
    content = answered(" Hello.", "\n\nHi. ")
    answer = TEXT_COMPLETIONS.parse_answer(CALL, content)
    assert answer.generated == ("Hello.", "Hi. ")
    told = ChatCompletion.model_validate(answer.body)
    assert [choice.message.content for choice in told.choices] == ["Hello.", "Hi. "]
    lone = replace(CALL, body={"messages": [ASKED]})
    assert TEXT_COMPLETIONS.parse_answer(lone, content).generated == (" Hello.", "\n\nHi. ")


def test_usage_that_denies_what_was_generated_is_no_usage() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}
    assert TEXT_COMPLETIONS.parse_answer(CALL, answered("text", usage=usage)).usage is None
    assert TEXT_COMPLETIONS.parse_answer(CALL, answered("text", usage=None)).usage is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [1]}',
        b'{"choices": [{}]}',
        b'{"choices": [{"text": 1}]}',
        b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "a chat"}}]}',
    ],
)
def test_an_answer_that_is_none_is_the_providers_failure(content: bytes) -> None:
    with pytest.raises(ProviderError) as raised:
        TEXT_COMPLETIONS.parse_answer(CALL, content)
    assert raised.value.fault is Fault.PROTOCOL


def test_an_error_with_status_200_is_an_error() -> None:
    with pytest.raises(ProviderError) as raised:
        TEXT_COMPLETIONS.parse_answer(CALL, b'{"error": {"message": "busy", "code": 429}}')
    assert raised.value.fault is Fault.TRANSIENT


def test_errors_are_read_as_openais() -> None:
    content = b'{"error": {"message": "Incorrect API key provided: sk-provider."}}'
    error = TEXT_COMPLETIONS.parse_error(CALL, 401, {}, content)
    assert error.fault is Fault.OPERATOR
    assert "sk-provider" not in f"{error} {error.detail}"


# Streams.


def run(call: ProviderCall, *parts: bytes) -> tuple[Any, list[Any]]:
    stream = TEXT_COMPLETIONS.open_stream(call)
    events = [event for part in parts for event in stream.feed(part)]
    return stream, events + stream.close()


def deltas(events: list[Any], index: int = 0) -> list[dict[str, Any]]:
    said = [event.data for event in events if isinstance(event, Chunk)]
    for event in events:
        if isinstance(event, Chunk):
            ChatCompletionChunk.model_validate_json(event.sse.removeprefix(b"data: "))
    return [choice["delta"] for chunk in said for choice in chunk["choices"] if choice["index"] == index]


def pieces(*texts: str, index: int = 0, finish: str | None = "stop") -> bytes:
    steps: list[tuple[str, str | None]] = [*((text, None) for text in texts), ("", finish)]
    return b"".join(
        b"data: "
        + json.dumps(
            {
                "id": "c",
                "object": "text_completion",
                "created": 1,
                "model": "m",
                "choices": [{"text": text, "index": index, "logprobs": None, "finish_reason": reason}],
            }
        ).encode()
        + b"\n\n"
        for text, reason in steps
    )


@settings(deadline=None, max_examples=60)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=8))
def test_openais_own_stream_however_it_is_split(cuts: list[int]) -> None:
    whole = (FIXTURES / "stream.sse").read_bytes()
    places = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    parts = [whole[start:end] for start, end in itertools.pairwise(places)]
    stream, events = run(CALL, *parts)
    assert isinstance(events[-1], StreamDone)
    said = deltas(events)
    assert said[0] == {"role": "assistant", "content": "This"}
    assert "".join(delta.get("content", "") for delta in said) == "This is a test"
    assert sum("role" in delta for delta in said) == 1
    assert stream.generated == ("This is a test",)
    assert stream.finish_reasons == ("stop",)
    assert stream.usage == TokenUsage(input=5, output=5)
    assert stream.usage_chunk().data["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 5,
        "total_tokens": 10,
    }
    assert stream.usage_chunk().data["object"] == "chat.completion.chunk"


def test_tgis_stream_is_read_with_its_own_words() -> None:
    stream, events = run(CALL, (FIXTURES / "tgi_stream.sse").read_bytes())
    assert stream.finish_reasons == ("stop",)
    assert stream.generated == ("translation.",)
    assert stream.usage == TokenUsage(input=3071, output=6)
    assert deltas(events)[0]["role"] == "assistant"


@pytest.mark.parametrize("texts", [[" ", "\n", "Hi", " there"], [" \nHi", " there"], ["Hi", " ", "there"]])
def test_stream_is_trimmed_as_the_whole_is(texts: list[str]) -> None:
    _, events = run(CALL, pieces(*texts), b"data: [DONE]\n\n")
    whole = TEXT_COMPLETIONS.parse_answer(CALL, answered("".join(texts)))
    said = "".join(delta.get("content", "") for delta in deltas(events))
    assert said == whole.body["choices"][0]["message"]["content"]


def test_each_choice_has_its_own_beginning() -> None:
    call = replace(CALL, body={"messages": TURNS, "n": 2})
    stream, events = run(call, pieces(" a", finish=None), pieces(" b", index=1), pieces(" c"))
    assert stream.generated == ("a c", "b")
    assert stream.complete
    assert [delta.get("role") for delta in deltas(events, 1)] == ["assistant", None]


def test_a_stream_that_was_cut_is_not_whole() -> None:
    stream, events = run(CALL, pieces("a", "b", finish=None), b'data: {"choices": [{"te')
    assert not stream.complete
    assert stream.generated == ("ab",)
    assert not any(isinstance(event, StreamDone) for event in events)


@pytest.mark.parametrize(
    "event",
    [b'data: {"error": {"message": "out of memory"}}\n\n', b'event: error\ndata: {"message": "gone"}\n\n'],
)
def test_an_error_in_the_stream_ends_it(event: bytes) -> None:
    stream, events = run(CALL, pieces("a", finish=None), event, pieces("b"))
    assert isinstance(events[-1], StreamFailed)
    assert stream.generated == ("a",)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "text", "index", "finish_reason", "usage", "error", "id"]), inner
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(chunks=st.lists(json_values, max_size=5))
def test_no_answer_and_no_chunk_crashes_it(chunks: list[Any]) -> None:
    stream, _ = run(CALL, *(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks))
    assert isinstance(stream.complete, bool)
    for chunk in chunks:
        try:
            TEXT_COMPLETIONS.parse_answer(CALL, json.dumps(chunk).encode())
        except ProviderError:
            continue
